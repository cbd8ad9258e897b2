"""`doctor`: what is here, what is not, and the command that mends it. Looks only; changes and installs nothing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from ctypes import CDLL
from dataclasses import asdict, dataclass
from pathlib import Path

FINDING = 1


@dataclass(frozen=True, slots=True)
class Check:
    """`needed_for` says who misses it when it is not `ok`; `mend` is a command or one sentence, empty when ok."""

    name: str
    ok: bool
    found: str
    needed_for: str
    mend: str = ""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.epilog = "exit code 1 when something that every replay needs is missing; a missing GPU is no such thing"
    parser.add_argument("--json", action="store_true", help="print the checks as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 when one that every replay needs failed."""
    checks = [check for look in LOOKS for check in look()]
    if args.json:
        print(json.dumps({"schema": 1, "checks": [asdict(check) for check in checks]}))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{'ok     ' if check.ok else 'MISSING'} {check.name:<{width}}  {check.found}")
            if check.mend:
                print(f"        {'':<{width}}  for {check.needed_for}: {check.mend}")
    return FINDING if any(not check.ok and check.needed_for == EVERYTHING for check in checks) else 0


EVERYTHING = "every replay"
GPU = "running kernels on a GPU"
COMPILING = "compiling the CUDA kernels"
_PATIENCE_S = 20
_NVCC_WHEELS = ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")


def _python() -> Iterator[Check]:
    ok = sys.version_info >= (3, 11)
    version = platform.python_version()
    yield Check("Python", ok, f"{version} on {platform.machine()}", EVERYTHING, "" if ok else "install Python 3.11+")
    for package in ("numpy", "msgspec", "textual", "plotext", "matplotlib", "platformdirs", "rich"):
        try:
            yield Check(package, True, importlib.metadata.version(package), EVERYTHING)
        except importlib.metadata.PackageNotFoundError:
            yield Check(package, False, "not installed", EVERYTHING, "pip install -e . in the checkout")


def _files() -> Iterator[Check]:
    from platformdirs import user_cache_path

    from tinyserve_viz.core.errors import TinyserveError
    from tinyserve_viz.core.resources import data_folder

    for name in ("traces", "cuda"):
        try:
            folder = data_folder(name)
            yield Check(f"{name}/", True, f"{folder} ({len(list(folder.iterdir()))} files)", EVERYTHING)
        except TinyserveError as error:
            yield Check(f"{name}/", False, str(error), EVERYTHING, "pip install --force-reinstall tinyserve-viz")
    cache = user_cache_path("tinyserve-viz")
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    ok = os.access(place, os.W_OK)
    yield Check("cache", ok, str(cache), COMPILING, "" if ok else f"make {place} writable, or set XDG_CACHE_HOME")


def _terminal() -> Iterator[Check]:
    tty = sys.stdin.isatty() and sys.stderr.isatty()
    size = shutil.get_terminal_size()
    found = f"{size.columns}×{size.lines}, TERM={os.environ.get('TERM', 'unset')}" if tty else "none"
    yield Check(
        "terminal", tty, found, "the TUI", "" if tty else "run it in a terminal; without one, replay prints a summary"
    )
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    ok = encoding == "utf8"
    yield Check(
        "UTF-8", ok, encoding or "unknown", "the TUI's glyphs", "" if ok else "export LC_ALL=C.UTF-8, or use --ascii"
    )


def _cuda() -> Iterator[Check]:
    nvcc = _find_nvcc()
    wheels = "pip install " + " ".join(f"'nvidia-{part}==13.0.*'" for part in _NVCC_WHEELS)
    if nvcc is None:
        yield Check("nvcc", False, "not found in $CUDA_HOME or PATH", COMPILING, wheels)
    else:
        version = _version_of(nvcc)
        wrapper = (
            "" if not nvcc.is_symlink() and _is_binary(nvcc) else " (a link or wrapper; set CUDA_HOME to build PyCUDA)"
        )
        ok = version is not None and version >= (12, 8)
        shown = "unknown version" if version is None else ".".join(map(str, version))
        yield Check("nvcc", ok, f"{nvcc} {shown}{wrapper}", COMPILING, "" if ok else wheels)
    compiler = shutil.which("g++") or shutil.which("gcc")
    yield Check(
        "host compiler",
        compiler is not None,
        compiler or "not found",
        COMPILING,
        "" if compiler else "apt-get install g++",
    )
    header = nvcc is not None and any(
        (nvcc.resolve().parents[1] / sub / "curand.h").exists() for sub in ("include", "targets/x86_64-linux/include")
    )
    pycuda = importlib.util.find_spec("pycuda") is not None
    if pycuda:
        yield Check("PyCUDA", True, importlib.metadata.version("pycuda"), GPU)
    else:
        mend = "pip install 'tinyserve-viz[gpu]'" + (
            "" if header else "; without curand.h put CUDA_ENABLE_CURAND=False into ~/.aksetup-defaults.py first"
        )
        yield Check("PyCUDA", False, "not installed", GPU, mend)
    try:
        CDLL("libcuda.so.1")
        yield Check("libcuda", True, "libcuda.so.1", GPU)
    except OSError:
        yield Check(
            "libcuda",
            False,
            "libcuda.so.1 not found",
            GPU,
            "install the NVIDIA driver (nvidia-smi shows whether it works)",
        )
    yield _gpu()


def _gpu() -> Check:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return Check("GPU", False, "nvidia-smi not found", GPU, "none needed: --backend numpy runs everywhere")
    query = [smi, "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    answer = _ask(query)
    if answer is None:
        return Check("GPU", False, f"nvidia-smi gave no answer in {_PATIENCE_S} s", GPU, "reload the driver, or reboot")
    first = (answer.stdout or answer.stderr).strip().splitlines()
    ok = answer.returncode == 0 and bool(first)
    return Check("GPU", ok, first[0] if first else "no answer", GPU, "" if ok else "reload the driver, or reboot")


def _ask(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    """Run a program that only tells something; None when it cannot be run or takes too long, as with a hung driver."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME")
    found = Path(home, "bin", "nvcc") if home else None
    if found is not None and found.exists():
        return found
    on_path = shutil.which("nvcc")
    if on_path:
        return Path(on_path)
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for candidate in sorted(Path(place).glob("cu*/bin/nvcc")):
            return candidate
    return None


def _version_of(nvcc: Path) -> tuple[int, int] | None:
    answer = _ask([str(nvcc), "--version"])
    if answer is None:
        return None
    match = re.search(r"release (\d+)\.(\d+)", answer.stdout)
    return None if match is None else (int(match[1]), int(match[2]))


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


LOOKS: tuple[Callable[[], Iterator[Check]], ...] = (_python, _files, _terminal, _cuda)
