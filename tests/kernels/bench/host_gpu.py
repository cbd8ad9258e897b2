"""A GPU made of host memory: addresses are the host's, a launch runs the NumPy reference, events take a set time.

It lets the whole bench run without a GPU: inputs, checks, rows, the order of things. Its times mean nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinyserve_viz.kernels.definition import KernelDef
from tinyserve_viz.kernels.numpy_backend import NumpyBackend

LAUNCH_MS = 0.005


class Memory:
    """An allocation, aligned to 256 bytes as CUDA's are."""

    def __init__(self, size: int) -> None:
        self._buffer = ctypes.create_string_buffer(size + 256)
        self._address = -(-ctypes.addressof(self._buffer) // 256) * 256

    def __int__(self) -> int:
        return self._address


def host_array(pointer: int, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
    """The array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer((ctypes.c_char * size).from_address(pointer), dtype).reshape(shape)


class Event:
    """Counts launches in place of time."""

    clock = 0.0

    def record(self, _stream: Any = None) -> None:
        self.at = Event.clock

    def synchronize(self) -> None:
        pass

    def time_till(self, later: Event) -> float:
        return later.at - self.at


class Stream:
    """Work is over when it is put there."""

    def wait_for_event(self, _event: Event) -> None:
        pass


class Driver:
    """What the bench uses of pycuda.driver."""

    Event = Event
    Stream = Stream
    MemoryError = MemoryError
    device_attribute = SimpleNamespace(MULTIPROCESSOR_COUNT="sms", L2_CACHE_SIZE="l2")
    free = 1 << 26

    class Context:
        @staticmethod
        def get_device() -> Any:
            return SimpleNamespace(get_attribute={"sms": 4, "l2": 1 << 12}.__getitem__)

        @staticmethod
        def synchronize() -> None:
            pass

    def mem_alloc(self, size: int) -> Memory:
        return Memory(size)

    def mem_get_info(self) -> tuple[int, int]:
        return self.free, self.free

    def get_driver_version(self) -> int:
        return 13_000

    def get_version(self) -> tuple[int, int, int]:
        return 13, 0, 0

    def memset_d8(self, memory: Any, byte: int, size: int) -> None:
        ctypes.memset(int(memory), byte, size)

    def memset_d32(self, memory: Any, _word: int, count: int) -> None:
        Event.clock += LAUNCH_MS
        ctypes.memset(int(memory), 0x5A, 4 * count)

    def memcpy_htod(self, target: Any, source: np.ndarray[Any, Any]) -> None:
        ctypes.memmove(int(target), source.ctypes.data, source.nbytes)

    def memcpy_dtoh(self, target: np.ndarray[Any, Any], source: Any) -> None:
        ctypes.memmove(target.ctypes.data, int(source), target.nbytes)

    def memcpy_dtod(self, target: Any, source: Any, size: int) -> None:
        Event.clock += LAUNCH_MS / 5
        ctypes.memmove(int(target), int(source), size)

    def memcpy_dtod_async(self, target: Any, source: Any, size: int, _stream: Any = None) -> None:
        Event.clock += LAUNCH_MS / 5
        ctypes.memmove(int(target), int(source), size)


class ReferencePlan:
    """A launch that runs the reference on the arrays at the given addresses."""

    def __init__(self, gpu: HostGpu, kernel: KernelDef, axes: Mapping[str, int], has: Mapping[str, bool]) -> None:
        self.gpu, self.kernel, self.axes, self.has = gpu, kernel, axes, has

    def launch(self, arguments: Sequence[Any], _stream: Any = None) -> None:
        Event.clock += LAUNCH_MS
        kernel = self.kernel
        self.gpu.launched.append(kernel.name)
        pointers = dict(zip([arg.name for arg in kernel.args], arguments, strict=False))
        values = arguments[len(kernel.args) + len(kernel.axes) : -1]
        scalars = dict(zip([scalar.name for scalar in kernel.scalars], values, strict=True))
        arrays = {
            arg.name: host_array(
                pointers[arg.name], [int(axis) if axis.isdigit() else self.axes[axis] for axis in arg.axes], arg.dtype
            )
            for arg in kernel.args
            if self.has[f"has_{arg.name}"] and arg.role != "scratch"
        }
        found = NumpyBackend().run(kernel, arrays, scalars)
        self.gpu.after(kernel.name, arrays)
        host_array(arguments[-1], (1,), np.int32)[0] |= found["status"][0]


class HostGpu:
    """Stands for `Gpu`. `after(kernel, arrays)` may spoil what a launch wrote; `launched` names every launch."""

    name, arch = "host memory", "sm_00"

    def __init__(self) -> None:
        self.driver = Driver()
        self.launched: list[str] = []
        self.after: Callable[[str, Mapping[str, Any]], None] = lambda _name, _arrays: None

    @contextmanager
    def current(self) -> Iterator[Driver]:
        yield self.driver

    def plan(self, kernel: KernelDef, axes: Mapping[str, int], has: Mapping[str, bool]) -> ReferencePlan:
        return ReferencePlan(self, kernel, axes, has)


class HostGraph:
    """Stands for `TimedGraph`: what was launched is launched again on replay."""

    def __init__(self, _driver: Any, launch: Callable[[Any], None]) -> None:
        self._launch = launch

    def replay_us(self) -> float:
        before = Event.clock
        self._launch(None)
        return (Event.clock - before) * 1000

    def close(self) -> None:
        pass
