"""CUDA graphs, which PyCUDA does not wrap: what is put on a stream is captured and replayed, by the driver itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: other threads may go on
GRAPH_CALLS: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (ctypes.c_void_p, ctypes.c_int),
    "cuStreamEndCapture": (ctypes.c_void_p, ctypes.c_void_p),
    "cuGraphInstantiateWithFlags": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulonglong),
    "cuGraphDestroy": (ctypes.c_void_p,),
    "cuGraphExecDestroy": (ctypes.c_void_p,),
    "cuGraphLaunch": (ctypes.c_void_p, ctypes.c_void_p),
}
Do = Callable[..., None]
"""Calls a function of the driver by name, and raises what its error means."""


class Graph:
    """What `put` puts on the stream, ready to replay. Needs the context current, now and when it is used."""

    def __init__(self, do: Do, stream: int, put: Callable[[], None]) -> None:
        """Capture; nothing runs. What must not be captured (an allocation, a synchronisation) fails through `do`."""
        self._do, self._stream = do, stream
        graph, self._ready = ctypes.c_void_p(), ctypes.c_void_p()
        do("cuStreamBeginCapture_v2", stream, _RELAXED)
        try:
            put()
        finally:
            do("cuStreamEndCapture", stream, ctypes.byref(graph))
        do("cuGraphInstantiateWithFlags", ctypes.byref(self._ready), graph, 0)
        do("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Put it all on the stream again."""
        self._do("cuGraphLaunch", self._ready, self._stream)

    def close(self) -> None:
        """Give the graph back."""
        self._do("cuGraphExecDestroy", self._ready)
