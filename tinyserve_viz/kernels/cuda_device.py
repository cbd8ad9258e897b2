"""The CUDA driver by ctypes: memory, events and graphs on one stream, none of which PyCUDA wraps fit for capture.

PyCUDA loads the kernels and launches them (`cuda_backend.py`), all but those that start early (`cuda_launch.py`); its
primary context is the one that is current here.
A step of 16 launches costs 167 µs of host time one by one and 20 µs as a graph (measured on an H100).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.errors import DeviceLost, OutOfDeviceMemory, TinyserveError
from tinyserve_viz.kernels.cuda_backend import Gpu, Plan
from tinyserve_viz.kernels.cuda_graph import GRAPH_CALLS, Graph
from tinyserve_viz.kernels.cuda_launch import LaunchRefusedError

_OUT_OF_MEMORY = 2
_RECORD_EXTERNAL = 1  # CU_EVENT_RECORD_EXTERNAL: an event inside a graph that can be read outside
_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE


class _Copy2D(ctypes.Structure):
    _fields_ = (
        *((f"src{name}", kind) for name, kind in (("X", ctypes.c_size_t), ("Y", ctypes.c_size_t))),
        ("src_type", ctypes.c_int),
        ("src_host", ctypes.c_void_p),
        ("src_device", ctypes.c_uint64),
        ("src_array", ctypes.c_void_p),
        ("src_pitch", ctypes.c_size_t),
        *((f"dst{name}", kind) for name, kind in (("X", ctypes.c_size_t), ("Y", ctypes.c_size_t))),
        ("dst_type", ctypes.c_int),
        ("dst_host", ctypes.c_void_p),
        ("dst_device", ctypes.c_uint64),
        ("dst_array", ctypes.c_void_p),
        ("dst_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


_ADDRESS, _HOST, _SIZE, _HANDLE = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
# What the driver's functions take. Integers then go in as they are, which costs less than an object for each.
_CALLS: dict[str, tuple[Any, ...]] = {
    "cuMemGetInfo_v2": (ctypes.c_void_p, ctypes.c_void_p),
    "cuMemAlloc_v2": (ctypes.c_void_p, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemAllocHost_v2": (ctypes.c_void_p, _SIZE),
    "cuMemFreeHost": (_HOST,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _HOST, _SIZE, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HOST, _ADDRESS, _SIZE, _HANDLE),
    "cuMemcpyDtoDAsync_v2": (_ADDRESS, _ADDRESS, _SIZE, _HANDLE),
    "cuMemcpy2DAsync_v2": (ctypes.c_void_p, _HANDLE),
    "cuMemsetD8Async": (_ADDRESS, ctypes.c_ubyte, _SIZE, _HANDLE),
    "cuEventCreate": (ctypes.c_void_p, ctypes.c_uint),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventRecordWithFlags": (_HANDLE, _HANDLE, ctypes.c_uint),
    "cuEventSynchronize": (_HANDLE,),
    "cuEventElapsedTime": (ctypes.c_void_p, _HANDLE, _HANDLE),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamWaitValue32_v2": (_HANDLE, _ADDRESS, ctypes.c_uint32, ctypes.c_uint),
    **GRAPH_CALLS,
}


class CudaDevice:
    """One GPU, its primary context made current in the thread that makes this, and one stream.

    Addresses are integers. Everything is put on the stream and returns at once, but `alloc`, `free` and `synchronize`.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.name, self.arch = gpu.name, gpu.arch
        gpu.context.push()
        self.num_multiprocessors = int(
            gpu.driver.Device(0).get_attribute(gpu.driver.device_attribute.MULTIPROCESSOR_COUNT)
        )
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._driver: dict[str, Callable[..., int]] = {}
        for name, kinds in _CALLS.items():
            function = getattr(self._lib, name)
            function.argtypes = kinds
            self._driver[name] = function
        self._stream_object = gpu.driver.Stream(1)  # CU_STREAM_NON_BLOCKING: nobody else's work is waited for
        self._stream: int = self._stream_object.handle
        self.lost = False

    def close(self) -> None:
        """Let the context go. A lost one is left as it is."""
        if self.lost:
            self._gpu.abandon(self._stream_object)
        else:
            self._stream_object = None
        self._gpu.context.pop()

    def _do(self, name: str, *arguments: Any) -> None:
        error = self._driver[name](*arguments)
        if error:
            raise self._failed(name, error)

    def _failed(self, what: str, error: int) -> TinyserveError:
        text = ctypes.c_char_p()
        self._lib.cuGetErrorString(error, ctypes.byref(text))
        words = (text.value or b"unknown error").decode()
        if error == _OUT_OF_MEMORY:
            return OutOfDeviceMemory(words)
        self.lost = True
        return DeviceLost(f"{self.name} failed in {what}: {words}")

    # ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────

    def memory(self) -> tuple[int, int]:
        """Bytes free and bytes in all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._do("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def alloc(self, size: int) -> int:
        """Device memory of `size` bytes, aligned to 256.

        Raises:
            OutOfDeviceMemory: there is no room; says what was asked for and what is free.
        """
        address = ctypes.c_uint64()
        try:
            self._do("cuMemAlloc_v2", ctypes.byref(address), max(size, 256))
        except OutOfDeviceMemory:
            free, total = self.memory()
            raise OutOfDeviceMemory(
                f"out of GPU memory: {size >> 20} MiB asked for, {free >> 20} of {total >> 20} MiB are free "
                f"on {self.name}"
            ) from None
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        if not self.lost:
            self._do("cuMemFree_v2", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which copies in the background need; kept until `free_pinned`."""
        address = ctypes.c_void_p()
        self._do("cuMemAllocHost_v2", ctypes.byref(address), size)
        assert address.value
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        """Give page-locked memory back."""
        if not self.lost:
            self._do("cuMemFreeHost", memory.ctypes.data)

    def upload(self, target: int, source: int, size: int) -> None:
        """Copy from a page-locked host address."""
        self._do("cuMemcpyHtoDAsync_v2", target, source, size, self._stream)

    def download(self, target: int, source: int, size: int) -> None:
        """Copy to a page-locked host address."""
        self._do("cuMemcpyDtoHAsync_v2", target, source, size, self._stream)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy within the device."""
        self._do("cuMemcpyDtoDAsync_v2", target, source, size, self._stream)

    def copy_column(self, target: int, source: int, row_bytes: int, width: int, rows: int) -> None:
        """The first `width` bytes of each row, one behind the other."""
        copy = _Copy2D(
            src_type=_DEVICE_MEMORY,
            src_device=source,
            src_pitch=row_bytes,
            dst_type=_DEVICE_MEMORY,
            dst_device=target,
            dst_pitch=width,
            width=width,
            height=rows,
        )
        self._do("cuMemcpy2DAsync_v2", ctypes.byref(copy), self._stream)

    def fill(self, target: int, byte: int, size: int) -> None:
        """Set every byte."""
        self._do("cuMemsetD8Async", target, byte, size, self._stream)

    # ── kernels, events, graphs ─────────────────────────────────────────────────────────────────────────────────

    def plan(self, kernel: Any, axes: Any, has: Any) -> Plan:
        """The launches of a call (`Gpu.plan`)."""
        return self._gpu.plan(kernel, axes, has)

    def launch(self, plan: Plan, arguments: Sequence[Any]) -> None:
        """Put a call's launches on the stream."""
        try:
            plan.launch(arguments, self._stream_object)
        except (self._gpu.driver.Error, LaunchRefusedError) as error:
            self.lost = True
            raise DeviceLost(f"{self.name} failed to launch {plan.launches[0][0]}: {error}") from error

    def event(self) -> Any:
        """An event that is kept for good."""
        handle = ctypes.c_void_p()
        self._do("cuEventCreate", ctypes.byref(handle), 0)
        return handle

    def record(self, event: Any, in_graph: bool = False) -> None:
        """Record an event; inside a capture it must be an external one, else its time cannot be read."""
        if in_graph:
            self._do("cuEventRecordWithFlags", event, self._stream, _RECORD_EXTERNAL)
        else:
            self._do("cuEventRecord", event, self._stream)

    def wait_for(self, event: Any) -> None:
        """Wait until the last recording of an event has happened."""
        self._do("cuEventSynchronize", event)

    def elapsed_us(self, start: Any, end: Any) -> float:
        """Time between two events that have happened."""
        milliseconds = ctypes.c_float()
        self._do("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return milliseconds.value * 1000

    def capture(self, work: Callable[[], None]) -> Any:
        """What `work` puts on the stream, as a graph ready to launch; nothing of it runs."""
        return Graph(self._do, self._stream, work)

    def replay(self, graph: Any) -> None:
        """Launch a captured graph."""
        graph.launch()

    def drop_graph(self, graph: Any) -> None:
        """Destroy a captured graph."""
        if not self.lost:
            graph.close()

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self._do("cuStreamSynchronize", self._stream)

    def hold_back(self, flag: NDArray[np.uint8], value: int) -> bool:
        """Let what follows on the stream wait until the page-locked `flag` (uint32) is `value`; False: cannot be had.

        Launches that are put on the stream behind it then run one right after the other, so that events between them
        time the kernels and not the host. The host must not wait for the stream before it sets the flag.
        """
        return not self._driver["cuStreamWaitValue32_v2"](self._stream, flag.ctypes.data, value, 0)
