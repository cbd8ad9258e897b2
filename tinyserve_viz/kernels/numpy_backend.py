"""The NumPy backend: the definitions' references, run on the caller's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels.binding import bind
from tinyserve_viz.kernels.definition import KernelDef


class NumpyBackend:
    """Every kernel by its reference. Works without a GPU; its wall times say nothing about one."""

    name = "numpy"

    def supports(self, kernel: KernelDef) -> bool:
        """Every definition has a reference."""
        return kernel in KERNELS

    def run(self, kernel: KernelDef, arrays: Mapping[str, Any], scalars: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Run the reference. Infinities and NaN in the data are the kernel's business: no warnings."""
        call = bind(kernel, arrays, scalars)
        given = {arg.name: call.arrays[arg.name] for arg in kernel.args if arg.role != "scratch"}
        with np.errstate(all="ignore"):
            status = kernel.reference(**given, **call.scalars)
        return {**call.outputs(), "status": np.array([int(status)], np.int32)}
