"""What `doctor` looks at for a GPU: compiler, host compiler, PyCUDA, driver, GPU, and the programs around them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from ctypes import CDLL
from pathlib import Path

from tinyserve_viz.cli.doctor import COMPILING, Check
from tinyserve_viz.cli.on_gpu import PROGRAMS
from tinyserve_viz.core import toolkit
from tinyserve_viz.core.errors import KernelError

GPU = "running kernels on a GPU"
BUILDING = "building PyCUDA"
_PATIENCE_S = 20
_SETUP = "~/.aksetup-defaults.py"  # the one place where a build of PyCUDA by pip looks for settings
_PACKAGES = "'pycuda>=2025.1.2' nvidia-ml-py"
_DRIVER = "apt-get install nvidia-driver-580-server (in a container: docker run --gpus all …)"
_KERNEL = "#include <cuda_fp16.h>\n__global__ void probe(half* x) { x[0] = __hadd(x[0], x[0]); }\n"
_PROBE = "import pycuda.driver as d; d.init(); print(d.Device.count(), d.Device(0).name() if d.Device.count() else '')"


def looks() -> tuple[Callable[[], Iterator[Check]], ...]:
    """Every look, in the order in which one thing needs another."""
    return (_compiler, _driver, _pycuda, _programs)


def _compiler() -> Iterator[Check]:
    host = toolkit.host_compiler()
    try:
        nvcc = toolkit.find_nvcc()
    except KernelError:
        yield Check("nvcc", False, f"not found in {toolkit.SEARCHED}", COMPILING, toolkit.INSTALL)
        yield _host_compiler(host)
        return
    try:
        version = toolkit.release(toolkit.compiler_version(nvcc))
    except KernelError:
        version = None
    ok = version is not None and version >= toolkit.OLDEST
    shown = "unknown version" if version is None else ".".join(map(str, version))
    yield Check("nvcc", ok, f"{nvcc} {shown}", COMPILING, "" if ok else toolkit.INSTALL)
    yield _host_compiler(host)
    if version is not None:
        problem = _compile(nvcc)
        mend = "" if not problem else toolkit.INSTALL if host else "apt-get install g++"
        yield Check("a kernel compiles", not problem, problem or "cuda_fp16.h, sm_75", COMPILING, mend)
    if importlib.util.find_spec("pycuda") is None:
        yield from _what_pycuda_needs(nvcc)


def _host_compiler(path: str | None) -> Check:
    if path is None:
        return Check("host compiler", False, "no g++ in PATH", COMPILING, "apt-get install g++")
    answer = _ask([path, "-dumpfullversion"])
    return Check("host compiler", True, f"{path} {answer.stdout.strip() if answer else ''}".strip(), COMPILING)


def _compile(nvcc: Path) -> str:
    """What is wrong when the compiler compiles one line; nothing when it does."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(_KERNEL, encoding="utf-8")
        answer = _ask([str(nvcc), "-cubin", "-arch=sm_75", "-o", str(Path(folder, "probe.cubin")), str(source)])
    if answer is None:
        return f"no answer in {_PATIENCE_S} s"
    lines = (answer.stderr + answer.stdout).strip().splitlines()
    return next(iter(lines), "failed").replace(f"{folder}/", "") if answer.returncode else ""


def _what_pycuda_needs(nvcc: Path) -> Iterator[Check]:
    """PyCUDA has no wheels: pip builds it, from the folder above the first nvcc in PATH unless _SETUP names one."""
    root = toolkit.toolkit_root(nvcc)
    settings = Path(_SETUP).expanduser()
    told = settings.read_text(encoding="utf-8", errors="replace") if settings.exists() else ""
    first = shutil.which("nvcc")
    seen = first is not None and not toolkit.is_wrapper(Path(first)) and Path(first).parent == root / "bin"
    named = re.search(r"^CUDA_ROOT\s*=", told, re.MULTILINE) is not None
    where = f"{root}, named in {_SETUP}" if named else str(root)
    if not (named or seen):
        where += f"; {first} is a link or wrapper" if first else "; its nvcc is not in PATH"
    mend = "" if named or seen else f"""echo "CUDA_ROOT='{root}'" >> {_SETUP}"""
    yield Check("toolkit folder", named or seen, where, BUILDING, mend)
    for name in ("cuda.h", "cudaProfiler.h"):
        here = toolkit.has_header(root, name)
        yield Check(name, here, "found" if here else f"not below {root}", BUILDING, "" if here else toolkit.INSTALL)
    off = re.search(r"^CUDA_ENABLE_CURAND\s*=\s*False", told, re.MULTILINE) is not None
    here = toolkit.has_header(root, "curand.h")
    found = "found" if here else f"absent, and switched off in {_SETUP}" if off else f"not below {root}"
    mend = "" if here or off else f"echo CUDA_ENABLE_CURAND=False >> {_SETUP}"
    yield Check("curand.h", here or off, found, BUILDING, mend)
    library = next((folder for folder in _library_folders(root, told) if Path(folder, "libcuda.so").exists()), None)
    loaded = next((folder for folder in _library_folders(root, told) if Path(folder, "libcuda.so.1").exists()), None)
    mend = f"ln -s libcuda.so.1 {loaded}/libcuda.so" if loaded else _DRIVER
    yield Check("libcuda.so", library is not None, library or "not found", BUILDING, "" if library else mend)


def _library_folders(root: Path, told: str) -> list[str]:
    """Where the linker looks for libcuda.so, as far as it is known."""
    named = re.search(r"^CUDADRV_LIB_DIR\s*=\s*\[?\s*['\"]([^'\"]+)", told, re.MULTILINE)
    system = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib")
    paths = os.environ.get("LIBRARY_PATH", "").split(os.pathsep)
    own = [str(root / folder) for folder in ("lib64", "lib", "lib64/stubs", "lib/stubs")]
    return [*([named[1]] if named else []), *own, *system, *filter(None, paths)]


def _driver() -> Iterator[Check]:
    try:
        CDLL("libcuda.so.1")
        yield Check("libcuda", True, "libcuda.so.1", GPU)
    except OSError:
        yield Check("libcuda", False, "libcuda.so.1 not found: no NVIDIA driver", GPU, _DRIVER)
    runs = toolkit.driver_release()
    try:
        compiler = toolkit.release(toolkit.compiler_version(toolkit.find_nvcc()))
    except KernelError:
        compiler = None
    if runs and compiler:
        ok = runs[0] >= compiler[0]
        found = f"it runs CUDA {runs[0]}.{runs[1]}, nvcc is {compiler[0]}.{compiler[1]}"
        older = f"update the driver: {_DRIVER}; or export CUDA_HOME=… to a toolkit for CUDA {runs[0]}"
        yield Check("driver", ok, found, GPU, "" if ok else older)
    yield _gpu()


def _gpu() -> Check:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return Check("GPU", False, "nvidia-smi not found", GPU, "none is needed: --backend numpy runs everywhere")
    query = [smi, "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    answer = _ask(query)
    if answer is None:
        return Check("GPU", False, f"nvidia-smi gave no answer in {_PATIENCE_S} s", GPU, "reboot")
    first = (answer.stdout or answer.stderr).strip().splitlines()
    if answer.returncode or not first:
        return Check("GPU", False, first[0] if first else "no answer", GPU, "modprobe nvidia, or reboot")
    capability = re.search(r"(\d+)\.(\d+)\s*$", first[0])
    if capability and (int(capability[1]), int(capability[2])) < toolkit.OLDEST_GPU:
        return Check("GPU", False, f"{first[0]}: older than 7.5", GPU, "none can mend it: replay --backend numpy")
    return Check("GPU", True, first[0], GPU)


def _pycuda() -> Iterator[Check]:
    if importlib.util.find_spec("pycuda") is None:
        yield Check("PyCUDA", False, "not installed", GPU, f"pip install {_PACKAGES}")
        return
    version = importlib.metadata.version("pycuda")
    answer = _ask([sys.executable, "-c", _PROBE])
    if answer is None:
        yield Check("PyCUDA", False, f"{version}, but it gave no answer in {_PATIENCE_S} s", GPU, "reboot")
    elif answer.returncode:
        said = (answer.stderr.strip().splitlines() or [f"it ended with code {answer.returncode}"])[-1]
        mend = f"pip install --force-reinstall --no-cache-dir --no-binary pycuda {_PACKAGES}"
        absent = any(word in said for word in ("libcuda", "cuInit"))
        yield Check("PyCUDA", False, f"{version}, but: {said}", GPU, _DRIVER if absent else mend)
    else:
        count, _, name = answer.stdout.strip().partition(" ")
        ok = count != "0"
        mend = "" if ok else "unset CUDA_VISIBLE_DEVICES"
        yield Check("PyCUDA", ok, f"{version}, sees {name if ok else 'no GPU'}", GPU, mend)


def _programs() -> Iterator[Check]:
    for command, (name, mend) in PROGRAMS.items():
        found = toolkit.find_program(name)
        needed_for = f"tinyserve-viz {command}"
        yield Check(name, found is not None, str(found or "not found"), needed_for, "" if found else mend)


def _ask(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a program that only tells something; None when it cannot be run or takes too long, as with a hung driver."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
