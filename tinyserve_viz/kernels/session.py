"""Where a replay's arrays live and its kernels run: one interface, so that the pipeline does not know the backend.

A session holds arrays (`Held`) that only kernels touch; small inputs go in, and only what is asked for comes back.
Kernels are called one by one (`call`), or as a program (`run`): a function that makes the same calls on the same held
arrays in every step, which a backend may prepare once and replay. Times and status words are handed out by `end_step`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.backend import Backend, kernel_named
from tinyserve_viz.kernels.definition import Status

Sizes = dict[str, int]
"""What a step's useful bytes are counted from; the caller may add to it until the step ends."""
BytesOf = Callable[[Sizes], int]
Read = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An array that lives with the kernels; `data` is the session's own (a NumPy array, an address of the device)."""

    shape: tuple[int, ...]
    dtype: str
    data: Any


Given = Held | NDArray[Any]


class CallTime(NamedTuple):
    """One kernel call of a step: `us` microseconds of all its launches, of which the useful bytes are `num_bytes`."""

    kernel: str
    us: float
    num_bytes: int
    status: Status


class Calls(Protocol):
    """What a program is built from: its inputs by name, and calls whose results later calls may take."""

    def input(self, name: str) -> Held:
        """An array that every run brings."""
        ...

    def call(
        self, kernel: str, arrays: Mapping[str, Held | None], bytes_of: BytesOf, **scalars: Any
    ) -> dict[str, Held]:
        """Call a kernel; axes that only outputs have stand among the scalars. Returns all that it writes."""
        ...

    def new(self, shape: tuple[int, ...], dtype: str) -> Held:
        """An array for a kernel to fill."""
        ...

    def first_column(self, held: Held) -> Held:
        """held[:, 0] as an array of its own."""
        ...

    def read_early(self, read: Mapping[str, Held]) -> None:
        """These results can be had while the calls that follow still run. Once a program."""
        ...


Build = Callable[[Calls], dict[str, Held]]
"""Makes a program's calls and names what each run reads back. It must depend on nothing but the program's key."""


class Running(NamedTuple):
    """A program under way. Each waits for its results, which hold until the program runs again."""

    early: Callable[[], Read]  # what the program read early
    rest: Callable[[], Read]


class Session(Protocol):
    """A backend for the length of a replay. Everything it raises on its own is a TinyserveError."""

    backend: str
    device: str
    provenance: str  # of its times: `reference` is the wall time of NumPy, `measured` a kernel's own time
    num_workers: int  # of a work list
    copy_gb_per_s: float | None  # a device-to-device copy measured at the start, bytes read + written

    def hold(self, array: NDArray[Any]) -> Held:
        """Keep a copy of `array` for the whole replay."""
        ...

    def drop(self, held: Held) -> None:
        """Give the memory of a kept array back."""
        ...

    def part(self, held: Held, index: int) -> Held:
        """held[index], without a copy."""
        ...

    def fill(self, held: Held, byte: int = 0) -> None:
        """Set every byte."""
        ...

    def read(self, *held: Held) -> list[NDArray[Any]]:
        """Contents; for reading only."""
        ...

    def read_later(self, *held: Held) -> Callable[[], list[NDArray[Any]]]:
        """Contents as they are between the calls before and after; waits for them where it is called at last."""
        ...

    def read_blocks(self, held: Held, blocks: NDArray[Any]) -> NDArray[Any]:
        """held[:, blocks] of an array [layers][blocks][…]; for reading only."""
        ...

    def call(self, kernel: str, arrays: Mapping[str, Given | None], num_bytes: int, **scalars: Any) -> dict[str, Held]:
        """Call one kernel; NumPy arrays go in with the call. Results last until `end_step`."""
        ...

    def run(self, key: Hashable, build: Build, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> Running:
        """Start a program; runs with one key make the same calls. Key None: nothing is prepared for another run."""
        ...

    def begin_step(self, verify: bool) -> None:
        """A step begins; with `verify`, whoever can repeats its calls and compares."""
        ...

    def end_step(self) -> list[CallTime]:
        """Wait for all calls since the last `end_step` and tell of each."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

    def take_mismatches(self) -> list[str]:
        """What repeated calls gave differently since the last time, in words."""
        ...

    @property
    def verify_us(self) -> float:
        """Host time that repeating and comparing took since the last step began."""
        ...


class HostSession:
    """NumPy arrays and a backend that works on them: the references, or one that wraps them in a test."""

    verify_us = 0.0
    num_workers = 32  # the references read the list, so its cuts are exercised without a GPU
    copy_gb_per_s: float | None = None

    def __init__(self, backend: Backend, device: str = "") -> None:
        self._backend = backend
        self.backend, self.device = backend.name, device
        self.provenance = "reference" if backend.name == "numpy" else "measured"
        self._done: list[tuple[str, float, int | BytesOf, Sizes, Status]] = []

    def hold(self, array: NDArray[Any]) -> Held:
        """A copy; of zeros none is made, so that a pool costs the memory of the blocks in use."""
        copy = np.zeros(array.shape, array.dtype)
        if np.ascontiguousarray(array).reshape(-1).view(np.uint8).any():
            copy[...] = array
        return self._held(copy)

    def _held(self, array: NDArray[Any]) -> Held:
        return Held(array.shape, str(array.dtype), array)

    def drop(self, held: Held) -> None:
        """Nothing: NumPy's arrays go when nobody names them."""

    def part(self, held: Held, index: int) -> Held:
        """A view."""
        return self._held(held.data[index])

    def fill(self, held: Held, byte: int = 0) -> None:
        """Set every byte."""
        held.data.view(np.uint8)[...] = byte

    def read(self, *held: Held) -> list[NDArray[Any]]:
        """The arrays themselves."""
        return [one.data for one in held]

    def read_later(self, *held: Held) -> Callable[[], list[NDArray[Any]]]:
        """Copies, for a later call may write to the arrays."""
        found = [one.data.copy() for one in held]
        return lambda: found

    def read_blocks(self, held: Held, blocks: NDArray[Any]) -> NDArray[Any]:
        """A copy of the blocks."""
        found: NDArray[Any] = held.data[:, blocks]
        return found

    def call(self, kernel: str, arrays: Mapping[str, Given | None], num_bytes: int, **scalars: Any) -> dict[str, Held]:
        """Run it now."""
        return self._call(kernel, arrays, num_bytes, {}, scalars)

    def _call(
        self,
        kernel: str,
        arrays: Mapping[str, Given | None],
        num_bytes: int | BytesOf,
        sizes: Sizes,
        scalars: Mapping[str, Any],
    ) -> dict[str, Held]:
        given = {name: one.data if isinstance(one, Held) else one for name, one in arrays.items()}
        started = time.perf_counter()
        outputs = self._backend.run(kernel_named(kernel), given, scalars)
        spent = (time.perf_counter() - started) * 1e6
        self._done.append((kernel, spent, num_bytes, sizes, Status(int(outputs["status"][0]))))
        return {name: self._held(array) for name, array in outputs.items() if name != "status"}

    def run(self, key: Hashable, build: Build, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> Running:
        """Build it anew: a reference has nothing to prepare."""
        del key
        calls = _HostCalls(self, inputs, sizes)
        rest = {name: held.data for name, held in build(calls).items()}
        return Running(lambda: calls.early, lambda: rest)

    def begin_step(self, verify: bool) -> None:
        """Nothing: the reference is not held to itself."""

    def end_step(self) -> list[CallTime]:
        """The calls since the last time, which are over."""
        done, self._done = self._done, []
        return [
            CallTime(kernel, us, num_bytes if isinstance(num_bytes, int) else num_bytes(sizes), status)
            for kernel, us, num_bytes, sizes, status in done
        ]

    def take_mismatches(self) -> list[str]:
        """None: nothing is repeated."""
        return []

    def close(self) -> None:
        """Nothing is open."""


class _HostCalls:
    """A program's calls, each run at once."""

    def __init__(self, session: HostSession, inputs: Mapping[str, NDArray[Any]], sizes: Sizes) -> None:
        self._session, self._inputs, self._sizes = session, inputs, sizes
        self.early: Read = {}

    def input(self, name: str) -> Held:
        return self._session._held(self._inputs[name])

    def call(
        self, kernel: str, arrays: Mapping[str, Held | None], bytes_of: BytesOf, **scalars: Any
    ) -> dict[str, Held]:
        return self._session._call(kernel, arrays, bytes_of, self._sizes, scalars)

    def new(self, shape: tuple[int, ...], dtype: str) -> Held:
        return self._session._held(np.empty(shape, dtype))

    def first_column(self, held: Held) -> Held:
        return self._session._held(np.ascontiguousarray(held.data[:, 0]))

    def read_early(self, read: Mapping[str, Held]) -> None:
        self.early = {name: held.data for name, held in read.items()}


def run_on_host_arrays(session: Session, kernel: str, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> Read:
    """Run a kernel of the session on arrays that live on the host, as `Backend.run` does; `status` is not among them.

    Raises:
        KernelError: the arguments do not fit.
    """
    if any(not isinstance(array, np.ndarray) for array in arrays.values()):
        raise KernelError(f"{kernel}: expected NumPy arrays")
    num_bytes = sum(array.nbytes for array in arrays.values())
    outputs = session.call(kernel, arrays, num_bytes, **scalars)
    return dict(zip(outputs, session.read(*outputs.values()), strict=True))
