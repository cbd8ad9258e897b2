"""What one row times: calls on rotating inputs, the bytes that are useful, and the check that must hold first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels.backend import kernel_named
from tinyserve_viz.kernels.bench.device import Device, DeviceArray, DeviceCall, Noise, prepare, status_of
from tinyserve_viz.kernels.bench.grid import BLOCK_SIZE, Model
from tinyserve_viz.kernels.bench.row import Row
from tinyserve_viz.kernels.bench.timing import Launch, l2_state, time_calls
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

# Relative error ‖found − expected‖ / ‖expected‖ above which attention counts as wrong; fp16 outputs give some 3e-4.
TOLERANCE = 2e-3
_TRIAL_US = 5000.0


class WrongResultError(KernelError):
    """A kernel computed something else than its reference: no time of it is worth anything."""


class Call(Protocol):
    """What is launched: a kernel's call on device arrays, or what does the same by other means."""

    @property
    def kernel(self) -> str:
        """The kernel's name."""
        ...

    @property
    def arrays(self) -> Mapping[str, DeviceArray]:
        """What it works on and writes."""
        ...

    @property
    def status(self) -> DeviceArray:
        """Its status word."""
        ...

    @property
    def entries(self) -> list[str]:
        """Kernels that it launches, in order."""
        ...

    def launch(self, stream: Any = None) -> None:
        """Put it on the stream."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One row. `variants` are forms of the same call (work lists of several lengths); the fastest is the row's.

    A variant is a list over rotating sets of inputs, each the calls that one launch of the row consists of.
    """

    op: str
    impl: str
    shape: str
    num_bytes: int
    variants: Mapping[str, Sequence[Sequence[Call]]]
    check: Callable[[Sequence[Call]], float | None]
    restores: Sequence[Sequence[tuple[DeviceArray, DeviceArray]]] = ()  # (target, source) before each call, per set
    touched_bytes: int = 0  # of one set, where it is not num_bytes
    calls_per_launch: int = 1
    plans: Mapping[str, Sequence[Sequence[Call]]] = field(default_factory=dict)  # timed apart, per variant
    baseline: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(slots=True, eq=False)
class Bench:
    """The run: device, shapes, kernels that are wanted, and the inputs that every family shares."""

    device: Device
    grid: str
    wanted: frozenset[str]
    seed: int = 0
    elements: int = 1 << 31  # of each of K and V; less where the memory is small
    left_out: list[str] = field(default_factory=list)
    _noise: dict[str, Noise] = field(default_factory=dict)

    def wants(self, *kernels: str) -> bool:
        """Whether a row that runs these kernels is asked for."""
        return not self.wanted or bool(self.wanted & set(kernels))

    def noise(self, name: str) -> Noise:
        """Random fp16 inputs: `keys`, `values` or `boxes`."""
        if name not in self._noise:
            count = self.elements if name != "boxes" else self.elements // 8
            self._noise[name] = Noise(self.device, count, self.seed + len(name))
        return self._noise[name]

    def num_blocks(self, model: Model) -> int:
        """Blocks of a model's pool in the memory for inputs."""
        return self.elements // (BLOCK_SIZE * model.num_kv_heads * model.head_dim)

    def fits(self, row: str, blocks: int, model: Model) -> bool:
        """Whether a row's blocks are there; it is left out, and named, where they are not."""
        if blocks > (there := self.num_blocks(model)):
            self.left_out.append(f"{row}: takes {blocks} blocks, {there} fit in the memory")
        return blocks <= there

    def rng(self, *key: int) -> np.random.Generator:
        """Random numbers that depend on the seed and the key alone."""
        return np.random.default_rng([self.seed, *key])

    def call(self, kernel: str, arrays: Mapping[str, DeviceArray | NDArray[Any]], **scalars: Any) -> DeviceCall:
        """A prepared call on this device."""
        return prepare(self.device, kernel, arrays, **scalars)


Family = Callable[[Bench], Iterator[Work]]


def measure(device: Device, work: Work, copy_gbs: float) -> Row:
    """Check, then time. A result that is wrong gives a row with `error` and no time."""
    row: Row = {"op": work.op, "impl": work.impl, "shape": work.shape, "provenance": "measured"}
    try:
        errors = [checked(device, work, variant) for variant in work.variants.values()]
    except WrongResultError as error:
        return row | {"error": str(error)}
    chosen = fastest(device, work)
    calls = work.variants[chosen]
    timing = time_calls(device, _launches(calls), _restores(device, work))
    us = timing.us / work.calls_per_launch
    rate = work.num_bytes / us / 1000 if work.num_bytes else None
    touched = work.touched_bytes or work.num_bytes
    notes = [chosen, work.note, "" if touched == 0 else f"sets {len(calls)}"]
    row |= {
        "us": us,
        "gbs": rate,
        "pct_copy": None if rate is None else 100 * rate / copy_gbs,
        "bytes": work.num_bytes,
        "spread": timing.spread,
        "iqr_us": timing.iqr_us / work.calls_per_launch,
        "replays": timing.replays,
        "calls": timing.calls * work.calls_per_launch,
        "how": timing.how,
        "l2": l2_state(device, touched, len(calls)),
        "sets": len(calls),
        "checked": True,
        "note": ", ".join(note for note in notes if note),
        **work.facts,
    }
    if row["l2"] != "cold":
        row["note"] += f", L2 {row['l2']}"
    if (relative := max((error for error in errors if error is not None), default=None)) is not None:
        row["err"] = relative
    if work.baseline:
        row["baseline"] = work.baseline
    if chosen in work.plans:
        plan = time_calls(device, _launches(work.plans[chosen]), row_us=_TRIAL_US)
        row["plan_us"] = plan.us
        row["note"] += f", plan {plan.us:.1f} µs"
    return row


def checked(device: Device, work: Work, calls: Sequence[Sequence[Call]]) -> float | None:
    """Run the first set once, from the state that the row restores, and hold it to its reference."""
    for target, source in work.restores[0] if work.restores else ():
        device.copy(target, source)
    for call in calls[0]:
        call.launch()
        if status := status_of(device, call.status):
            raise WrongResultError(f"{call.kernel}: status is {status!r}")
    return work.check(calls[0])


def fastest(device: Device, work: Work) -> str:
    """The variant with the least time in a short trial."""
    if len(work.variants) == 1:
        return next(iter(work.variants))
    trial = {
        name: time_calls(device, _launches(calls), _restores(device, work), _TRIAL_US).us
        for name, calls in work.variants.items()
    }
    return min(trial, key=trial.__getitem__)


def _launches(calls: Sequence[Sequence[Call]]) -> list[Launch]:
    def launch(group: Sequence[Call], stream: Any) -> None:
        for call in group:
            call.launch(stream)

    return [partial(launch, group) for group in calls]


def _restores(device: Device, work: Work) -> list[Launch]:
    def restore(copies: Sequence[tuple[DeviceArray, DeviceArray]], stream: Any) -> None:
        for target, source in copies:
            device.copy(target, source, stream)

    return [partial(restore, copies) for copies in work.restores]


def measure_all(families: Sequence[Family], bench: Bench, copy_gbs: float, budget_s: float) -> Iterator[Row]:
    """Every row of the families in order; once `budget_s` seconds are over, what is left is only named."""
    started = time.monotonic()
    for family in families:
        if time.monotonic() - started > budget_s:
            bench.left_out.append(f"{family.__name__}: time budget of {budget_s:g} s reached")
            continue
        try:
            for work in family(bench):
                if time.monotonic() - started > budget_s:
                    late = f"{family.__name__} from {work.shape} on: time budget of {budget_s:g} s reached"
                    bench.left_out.append(late)
                    break
                yield measure(bench.device, work, copy_gbs)
        except bench.device.driver.MemoryError as error:
            bench.left_out.append(f"the rest of {family.__name__}: out of GPU memory ({error})")


def as_reference(device: Device, call: Call, arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, Any]) -> None:
    """Hold everything that a call wrote to what the NumPy reference writes from the same inputs.

    Raises:
        WrongResultError: a bit differs.
    """
    kernel = kernel_named(call.kernel)
    expected = NumpyBackend().run(kernel, {name: array.copy() for name, array in arrays.items()}, scalars)
    for arg in kernel.args:
        if arg.role in ("out", "inout") and arg.name in call.arrays:
            same(arg.name, device.read(call.arrays[arg.name]), expected[arg.name])


def same(name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Bit for bit.

    Raises:
        WrongResultError: where they differ first.
    """
    if found.shape != expected.shape:
        raise WrongResultError(f"{name} has shape {found.shape}, expected {expected.shape}")
    bits = {2: np.uint16, 4: np.uint32}
    if found.dtype.kind == "f":
        kind = bits[found.dtype.itemsize]
        wrong = np.ascontiguousarray(found).view(kind) != np.ascontiguousarray(expected).view(kind)
    else:
        wrong = found != expected
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise WrongResultError(f"{name}{list(at)} is {found[at]}, expected {expected[at]}")


def close(name: str, found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The relative error.

    Raises:
        WrongResultError: it is above TOLERANCE, or not a number.
    """
    error = float(np.linalg.norm(found.astype(np.float64) - expected) / max(float(np.linalg.norm(expected)), 1e-30))
    if not error <= TOLERANCE:
        raise WrongResultError(f"{name}: relative error {error:.1e} against float64, at most {TOLERANCE:g} is right")
    return error
