"""What a backend is, and by which name one is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels.definition import KernelDef


class UnsupportedError(KernelError):
    """The backend has the kernel, but not for these sizes or modes."""


class Backend(Protocol):
    """Runs kernels on host arrays. `inout` arrays change in place; `out` arrays are written where given, else made."""

    name: str

    def supports(self, kernel: KernelDef) -> bool:
        """Whether the backend has this kernel; `run` on another raises KernelError."""
        ...

    def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run one kernel. Returns every array that it wrote, by name, and `status` int32 [1]."""
        ...


def kernel_named(name: str) -> KernelDef:
    """The definition of that name.

    Raises:
        KernelError: there is none.
    """
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise KernelError(f"unknown kernel {name!r}; known: {', '.join(sorted(kernel.name for kernel in KERNELS))}")
