"""Launches that may start before the one before them has ended (programmatic dependent launch), which PyCUDA lacks.

The launches of a call are tied so, and with `early` its first to whatever was launched before; any other call starts
when all before it has ended. Each tied launch waits for the one before it itself (`follow_launch` in cuda/common.cuh);
since that one has waited too, all before it have ended then. It works on a stream and in a capture of it, where it
becomes a programmatic edge.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

LEAST_DRIVER = 12_030  # from here on graphs keep such edges
LEAST_CAPABILITY = 9
STATIC_SHARED = 48 * 1024  # more dynamic shared memory than this must be asked for
_PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_…
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_…
_END, _BUFFER_POINTER, _BUFFER_SIZE = 0, 1, 2  # CU_LAUNCH_PARAM_…


class _Attribute(ctypes.Structure):  # CUlaunchAttribute
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


class _Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class LaunchRefusedError(Exception):
    """The driver refused; the message has its words."""


class Followers:
    """Functions of cubins, to be launched behind others. Needs the context current, now and whenever it is used."""

    def __init__(self, library: Any) -> None:
        """`library` is libcuda."""
        self._library = library
        self._modules: dict[str, ctypes.c_void_p] = {}

    def _do(self, name: str, *arguments: Any) -> None:
        if error := getattr(self._library, name)(*arguments):
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(error, ctypes.byref(text))
            raise LaunchRefusedError(f"{name} failed: {(text.value or b'unknown error').decode()}")

    def follower(
        self, cubin: str, entry: str, arguments: str, grid: Sequence[int], threads: int, shared: int
    ) -> Follower:
        """An entry point of a cubin with its launch shape; `arguments` are the formats of its parameters."""
        if cubin not in self._modules:
            module = ctypes.c_void_p()
            self._do("cuModuleLoad", ctypes.byref(module), cubin.encode())
            self._modules[cubin] = module
        function = ctypes.c_void_p()
        self._do("cuModuleGetFunction", ctypes.byref(function), self._modules[cubin], entry.encode())
        if shared > STATIC_SHARED:
            self._do("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        return Follower(self._do, function, arguments, grid, threads, shared)


class Follower:
    """One launch, ready to be put on a stream behind the one that it follows."""

    def __init__(
        self, do: Any, function: ctypes.c_void_p, arguments: str, grid: Sequence[int], threads: int, shared: int
    ) -> None:
        self._do, self._function, self._packing = do, function, struct.Struct(arguments)
        early = _Attribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        self._config = _Config((*grid,), (threads, 1, 1), shared, None, ctypes.pointer(early), 1)
        self._packed = ctypes.create_string_buffer(self._packing.size)
        self._size = ctypes.c_size_t(self._packing.size)
        packed, size = ctypes.addressof(self._packed), ctypes.addressof(self._size)
        self._extra = (ctypes.c_void_p * 5)(_BUFFER_POINTER, packed, _BUFFER_SIZE, size, _END)

    def launch(self, arguments: Sequence[Any], stream: int) -> None:
        """Put it on the stream.

        Raises:
            LaunchRefusedError: the driver's words.
        """
        self._packing.pack_into(self._packed, 0, *arguments)
        self._config.stream = stream
        self._do("cuLaunchKernelEx", ctypes.byref(self._config), self._function, None, self._extra)


def followers(capability: int, driver_version: int) -> Followers | None:
    """Where a GPU of this major capability and its driver have such launches; else None."""
    if capability < LEAST_CAPABILITY or driver_version < LEAST_DRIVER:
        return None
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return Followers(library) if hasattr(library, "cuLaunchKernelEx") else None
