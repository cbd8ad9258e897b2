"""The CUDA compiler: where it is, which version, and the folder of the toolkit behind it. Standard library alone.

`doctor` asks before it knows whether NumPy is there, so nothing here may need it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from tinyserve_viz.core.errors import KernelError

# Older compilers do not know sm_100 and sm_120.
OLDEST = (12, 8)
OLDEST_GPU = (7, 5)  # compute capability: the oldest that CUDA 13 compiles for
SEARCHED = "--nvcc, $CUDA_HOME, PATH and the nvidia-cuda-nvcc wheels"
# The packages of the extra `nvcc`: NVIDIA's compiler, its device compiler, the headers that kernels include, and one
# (cudaProfiler.h) that PyCUDA does.
WHEELS = (
    "nvidia-cuda-nvcc",
    "nvidia-nvvm",
    "nvidia-cuda-crt",
    "nvidia-cuda-runtime",
    "nvidia-cuda-cccl",
    "nvidia-cuda-profiler-api",
)
WHEELS_VERSION = "13.0.*"
INSTALL = "pip install " + " ".join(f"'{wheel}=={WHEELS_VERSION}'" for wheel in WHEELS)
_PATIENCE_S = 60


def find_nvcc(option: str | None = None) -> Path:
    """The compiler: the option (a program or a toolkit's folder), $CUDA_HOME, PATH, NVIDIA's wheels, in this order.

    Raises:
        KernelError: none of them has it, or the option names none.
    """
    if option:
        for candidate in (option, os.path.join(option, "bin", "nvcc")):  # noqa: PTH118 - "nvcc" must stay without folder
            if found := shutil.which(candidate):
                return Path(found)
        raise KernelError(f"nvcc not found at {option}")
    home = os.environ.get("CUDA_HOME")
    if home and (path := Path(home, "bin", "nvcc")).exists():
        return path
    if on_path := shutil.which("nvcc"):
        return Path(on_path)
    for wheel in _in_wheels("nvcc"):
        return wheel
    raise KernelError(f"nvcc not found in {SEARCHED}; tinyserve-viz doctor says how to get it")


def _in_wheels(program: str) -> list[Path]:
    """A program of NVIDIA's wheels in this environment, newest CUDA first."""
    spec = importlib.util.find_spec("nvidia")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return sorted((path for place in places for path in Path(place).glob(f"cu*/bin/{program}")), reverse=True)


@cache
def compiler_version(nvcc: Path) -> str:
    """What `nvcc --version` says.

    Raises:
        KernelError: it cannot be run.
    """
    try:
        answer = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=_PATIENCE_S, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"{nvcc} cannot be run: {error}") from error
    return answer.stdout.strip()


def release(version: str) -> tuple[int, int] | None:
    """(13, 0) from what `nvcc --version` or a driver says; None where no release is named."""
    named = re.search(r"(?:release|CUDA Version:)\s*(\d+)\.(\d+)", version)
    return (int(named[1]), int(named[2])) if named else None


def is_wrapper(nvcc: Path) -> bool:
    """Whether it is a script or a link that starts another nvcc, so that the toolkit is not the folder around it."""
    if nvcc.is_symlink():
        return True
    with nvcc.open("rb") as file:
        return file.read(4) != b"\x7fELF"


def toolkit_root(nvcc: Path) -> Path:
    """The toolkit's folder (bin/, include/, …), asked of the compiler itself where it is a wrapper."""
    try:
        dry = [str(nvcc), "--dryrun", "-cubin", "-x", "cu", os.devnull]
        answer = subprocess.run(dry, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return nvcc.resolve().parents[1]
    here = re.search(r"^#\$ _HERE_=(.+)$", answer.stdout + answer.stderr, re.MULTILINE)
    return Path(here[1].strip()).parent if here else nvcc.resolve().parents[1]


def has_header(root: Path, name: str) -> bool:
    """Whether the toolkit has a header; the folder is include/, or targets/…/include/ in some packages."""
    return any(Path(root, "include", name).exists() for root in (root, *root.glob("targets/*")))


def host_compiler() -> str | None:
    """The C++ compiler that nvcc calls, from PATH."""
    return shutil.which("g++") or shutil.which("c++") or shutil.which("gcc")


def find_program(name: str) -> Path | None:
    """A program of the toolkit (compute-sanitizer, ncu): beside nvcc, in PATH, in NVIDIA's wheels; None: nowhere."""
    try:
        beside = toolkit_root(find_nvcc()) / "bin" / name
    except KernelError:
        beside = None
    if beside and beside.exists():
        return beside
    if on_path := shutil.which(name):
        return Path(on_path)
    return next(iter(_in_wheels(name)), None)


def driver_release() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver here runs, (13, 0); None without a driver. Needs no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        failed = driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed or not version.value else (version.value // 1000, version.value % 1000 // 10)
