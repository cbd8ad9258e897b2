"""What `memcheck` and `profile` need before they start: NVIDIA's program, and every kernel compiled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyserve_viz.core.errors import GpuUnavailable, KernelError

if TYPE_CHECKING:
    from tinyserve_viz.kernels.cuda_backend import Gpu

# command -> (program, what installs it)
PROGRAMS = {
    "memcheck": ("compute-sanitizer", "pip install 'nvidia-cuda-sanitizer-api==13.0.*'"),
    "profile": ("ncu", "apt-get install cuda-nsight-compute-13-0, from NVIDIA's repository"),
}


def program_for(command: str) -> Path:
    """NVIDIA's program for the command.

    Raises:
        KernelError: it is not installed.
    """
    from tinyserve_viz.core.toolkit import find_program

    name, install = PROGRAMS[command]
    if (found := find_program(name)) is None:
        raise KernelError(f"{command} needs {name}, which is not beside nvcc, in PATH or in NVIDIA's wheels: {install}")
    return found


def compiled(gpu: Gpu, names: Sequence[str], nvcc: str | None) -> None:
    """Compile the named kernels, or all, for the GPU.

    Raises:
        KernelError: one does not compile.
        GpuUnavailable: there is no compiler.
    """
    from tinyserve_viz.core.toolkit import find_nvcc
    from tinyserve_viz.kernels.build import build_all

    try:
        compiler = find_nvcc(nvcc)
    except KernelError as error:
        raise error if nvcc else GpuUnavailable(str(error)) from error
    for built in build_all([gpu.arch], names, compiler):
        if isinstance(built, KernelError):
            raise built
