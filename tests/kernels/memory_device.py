"""A device made of host memory: what `CudaSession` asks of a GPU, with the references for kernels.

Addresses are those of buffers that nobody else knows, work waits on a stream until somebody synchronizes, and a capture
only writes down. So a session that reads before it waits, or keeps an address too long, shows here without a GPU.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import DeviceLost, OutOfDeviceMemory
from tinyserve_viz.kernels.cuda_backend import Plan
from tinyserve_viz.kernels.definition import KernelDef

_FIRST = 1 << 40


class MemoryDevice:
    """`counts` counts what was asked for; `room` bytes can be had; `fail_at` names a kernel whose launch loses it."""

    name, num_multiprocessors = "memory", 4

    def __init__(self, room: int = 1 << 32, fail_at: str = "") -> None:
        self.room, self.fail_at, self.lost = room, fail_at, False
        self.counts: Counter[str] = Counter()
        self.closed = False
        self._buffers: dict[int, NDArray[np.uint8]] = {}
        self._pinned: dict[int, NDArray[np.uint8]] = {}
        self._stream: list[Callable[[], None]] = []
        self._capturing: list[Callable[[], None]] | None = None
        self._gate: tuple[NDArray[np.uint8], int] | None = None
        self._clock = 0.0

    # memory
    def memory(self) -> tuple[int, int]:
        return self.room - sum(len(b) for b in self._buffers.values()), self.room

    def alloc(self, size: int) -> int:
        if size > self.memory()[0]:
            raise OutOfDeviceMemory(f"out of GPU memory: {size >> 20} MiB asked for")
        buffer = np.full(max(size, 256), 0xEE, np.uint8)
        self._buffers[buffer.ctypes.data] = buffer
        return buffer.ctypes.data

    def free(self, address: int) -> None:
        del self._buffers[address]

    def pinned(self, size: int) -> NDArray[np.uint8]:
        memory = np.full(size, 0xDD, np.uint8)
        self._pinned[memory.ctypes.data] = memory
        return memory

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        del self._pinned[memory.ctypes.data]

    @property
    def num_open(self) -> int:
        return len(self._buffers) + len(self._pinned)

    def _check(self, address: int, size: int) -> None:
        for start, buffer in self._buffers.items():
            if start <= address and address + size <= start + len(buffer):
                return
        raise AssertionError(f"{size} bytes at {address} are not on the device")

    # the stream
    def _put(self, what: str, work: Callable[[], None]) -> None:
        self.counts[what] += 1
        (self._stream if self._capturing is None else self._capturing).append(work)

    def synchronize(self) -> None:
        self.counts["synchronize"] += 1
        self._opened()
        work, self._stream = self._stream, []
        for one in work:
            one()

    def _opened(self) -> None:
        assert self._capturing is None
        if self._gate is not None:
            flag, value = self._gate
            assert int(flag[:4].view(np.uint32)[0]) >= value, "waited for a stream that is held back: a deadlock"
            self._gate = None

    def hold_back(self, flag: NDArray[np.uint8], value: int) -> bool:
        self._gate = (flag, value)
        return True

    def upload(self, target: int, source: int, size: int) -> None:
        self._check(target, size)
        self._put("upload", lambda: ctypes.memmove(target, source, size))

    def download(self, target: int, source: int, size: int) -> None:
        self._check(source, size)
        self._put("download", lambda: ctypes.memmove(target, source, size))

    def copy(self, target: int, source: int, size: int) -> None:
        self._put("copy", lambda: ctypes.memmove(target, source, size))

    def copy_column(self, target: int, source: int, row_bytes: int, width: int, rows: int) -> None:
        def work() -> None:
            for row in range(rows):
                ctypes.memmove(target + row * width, source + row * row_bytes, width)

        self._put("copy", work)

    def fill(self, target: int, byte: int, size: int) -> None:
        self._put("fill", lambda: ctypes.memset(target, byte, size))

    # kernels
    def plan(self, kernel: KernelDef, axes: Mapping[str, int], has: Mapping[str, bool]) -> Plan:
        return Plan(((kernel.name, kernel, (1, 1, 1), 32, 0),))

    def launch(self, plan: Plan, arguments: Sequence[Any]) -> None:
        kernel: KernelDef = plan.launches[0][1]
        if kernel.name == self.fail_at:
            self.lost = True
            raise DeviceLost(f"{self.name} failed to launch {kernel.name}: an illegal memory access was encountered")
        self._put("launch", lambda: self._run(kernel, arguments))

    def _run(self, kernel: KernelDef, arguments: Sequence[Any]) -> None:
        pointers = arguments[: len(kernel.args)]
        axes = dict(zip(kernel.axes, arguments[len(pointers) :], strict=False))
        scalars = arguments[len(pointers) + len(axes) : -1]
        given: dict[str, Any] = {}
        for arg, pointer in zip(kernel.args, pointers, strict=True):
            if arg.role == "scratch":
                continue
            shape = [int(axis) if axis.isdigit() else axes[axis] for axis in arg.axes]
            given[arg.name] = self._array(pointer, shape, arg.dtype) if pointer else None
        names = [scalar.name for scalar in kernel.scalars]
        with np.errstate(all="ignore"):
            status = kernel.reference(**given, **dict(zip(names, scalars, strict=True)))
        self._array(arguments[-1], [1], "int32")[0] |= int(status)
        self._clock += 3.0

    def _array(self, address: int, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        self._check(address, size)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)

    def event(self) -> list[float]:
        return [float("nan")]

    def record(self, event: list[float], in_graph: bool = False) -> None:
        assert in_graph == (self._capturing is not None), "an event in a graph must be an external one"

        def work() -> None:
            event[0] = self._clock

        work.of_event = event  # type: ignore[attr-defined]
        (self._stream if self._capturing is None else self._capturing).append(work)

    def wait_for(self, event: list[float]) -> None:
        """Run what is on the stream up to the event, and no further."""
        self.counts["wait"] += 1
        self._opened()
        before, event[0] = event[0], float("nan")
        while self._stream and np.isnan(event[0]):
            self._stream.pop(0)()
        if np.isnan(event[0]):  # it happened before
            event[0] = before

    def elapsed_us(self, start: list[float], end: list[float]) -> float:
        ahead = [getattr(work, "of_event", None) for work in self._stream]
        assert not any(one is start or one is end for one in ahead), "times are read before the work is over"
        return end[0] - start[0] or 0.001

    def capture(self, work: Callable[[], None]) -> list[Callable[[], None]]:
        self.counts["capture"] += 1
        self._capturing = []
        work()
        graph, self._capturing = self._capturing, None
        return graph

    def replay(self, graph: list[Callable[[], None]]) -> None:
        self.counts["replay"] += 1
        self._stream.extend(graph)

    def drop_graph(self, graph: list[Callable[[], None]]) -> None:
        self.counts["dropped"] += 1

    def close(self) -> None:
        self.closed = True
