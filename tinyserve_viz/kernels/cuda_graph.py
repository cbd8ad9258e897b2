"""CUDA graphs, which PyCUDA does not wrap: launches captured on a stream and replayed, through the driver by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from tinyserve_viz.core.errors import KernelError

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may go on


class Graph:
    """What `launch(stream)` puts on the stream, ready to replay. Needs the context current, now and when it is used."""

    def __init__(self, driver: Any, launch: Callable[[Any], None]) -> None:
        """Capture.

        Raises:
            KernelError: the driver refuses what was launched (an allocation, a synchronisation).
        """
        self._driver = driver
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._stream = driver.Stream()
        self._start, self._end = driver.Event(), driver.Event()
        self._graph, self._ready = ctypes.c_void_p(), ctypes.c_void_p()
        handle = ctypes.c_void_p(self._stream.handle)
        self._do("cuStreamBeginCapture_v2", handle, _RELAXED)
        try:
            launch(self._stream)
        finally:
            self._do("cuStreamEndCapture", handle, ctypes.byref(self._graph))
        self._do("cuGraphInstantiateWithFlags", ctypes.byref(self._ready), self._graph, ctypes.c_ulonglong(0))

    def _do(self, name: str, *arguments: Any) -> None:
        if error := getattr(self._cuda, name)(*arguments):
            raise KernelError(f"{name} failed: CUresult {error}")

    def replay_us(self) -> float:
        """Replay once and wait; the time between two events around it."""
        self._start.record(self._stream)
        self._do("cuGraphLaunch", self._ready, ctypes.c_void_p(self._stream.handle))
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._start.time_till(self._end)) * 1000

    def close(self) -> None:
        """Give the graph back."""
        self._do("cuGraphExecDestroy", self._ready)
        self._do("cuGraphDestroy", self._graph)
