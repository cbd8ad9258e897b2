"""Tests on a GPU skip, with the reason, where there is none."""

from __future__ import annotations

import pytest

from tinyserve_viz.core.errors import GpuUnavailable
from tinyserve_viz.kernels.cuda_backend import CudaBackend


@pytest.fixture(scope="session")
def cuda() -> CudaBackend:
    try:
        return CudaBackend()
    except GpuUnavailable as error:
        pytest.skip(str(error))
