"""Compile the CUDA kernels, each file alone, and hold each C parameter list to its definition. Needs no GPU.

Cubins are kept under the user's cache directory. Their key is the hash of everything that shapes them: source, the
headers it includes, options, architecture and the compiler's version.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels.definition import KernelDef

OPTIONS = ("-std=c++17", "-O3", "-Xptxas=-v")
# Decisions must round every multiply and add by itself; nothing else may contract them.
DECISION_OPTIONS = ("-fmad=false",)


@dataclass(frozen=True, slots=True)
class Build:
    """One compiled file for one architecture. Registers are per thread; `spill_bytes` the stores of all its kernels.

    `static_shared_bytes` does not count the dynamic shared memory that a launch adds.
    """

    name: str
    arch: str
    cubin: str
    registers: int
    static_shared_bytes: int
    spill_bytes: int
    cached: bool
    seconds: float


def sources(folder: Path | None = None) -> list[Path]:
    """The CUDA files, by name."""
    return sorted((folder or data_folder("cuda")).glob("*.cu"))


def find_nvcc(option: str | None = None) -> Path:
    """The compiler: the option, $CUDA_HOME, PATH, then NVIDIA's wheels, in this order.

    Raises:
        KernelError: none of them has it.
    """
    if option:
        if shutil.which(option):
            return Path(str(shutil.which(option)))
        raise KernelError(f"nvcc not found at {option}")
    home = os.environ.get("CUDA_HOME")
    if home and (path := Path(home, "bin", "nvcc")).exists():
        return path
    if on_path := shutil.which("nvcc"):
        return Path(on_path)
    for wheel in sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/nvcc")):
        return wheel
    raise KernelError("nvcc not found in $CUDA_HOME, PATH or NVIDIA's wheels; tinyserve-viz doctor says how to get it")


def device_arch() -> str:
    """The architecture of the first GPU, e.g. sm_90.

    Raises:
        KernelError: the driver's nvidia-smi is missing or finds no GPU.
    """
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        answer = None
    capability = re.match(r"(\d+)\.(\d+)", answer.stdout) if answer else None
    if not capability:
        raise KernelError("no GPU here to take the architecture from; give it, for example --arch sm_80,sm_90")
    return f"sm_{capability[1]}{capability[2]}"


# --- parameter lists --------------------------------------------------------------------------------------------------


def c_parameters(source: str, name: str) -> list[str] | None:
    """The parameters of `extern "C" __global__ void name(…)` as `const half* query`, or None when it is not there."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    bounds = r"(?:__launch_bounds__\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*)?"
    head = rf'extern\s+"C"\s+__global__\s+{bounds}void\s+{bounds}{re.escape(name)}\s*\(([^)]*)\)'
    found = re.search(head, code)
    if not found:
        return None
    return [_normal(parameter) for parameter in found[1].split(",") if parameter.strip()]


def _normal(parameter: str) -> str:
    """One spelling: no __restrict__, the star at the type, single blanks."""
    words = re.sub(r"\b__restrict__\b|\b__grid_constant__\b", " ", parameter).replace("*", "* ")
    return re.sub(r"\s+\*", "*", " ".join(words.split()))


def compare_parameters(kernel: KernelDef, source: str) -> list[str]:
    """What is wrong with a file's parameter list, in words; nothing when it is the definition's."""
    found, expected = c_parameters(source, kernel.name), kernel.c_parameters()
    where = f"{kernel.name}.cu"
    if found is None:
        return [f'{where}: no `extern "C" __global__ void {kernel.name}(`']
    problems = [
        f"{where}: parameter {i + 1} is `{have}`, expected `{want}`"
        for i, (have, want) in enumerate(zip(found, expected, strict=False))
        if have != want
    ]
    if len(found) != len(expected):
        problems.append(f"{where}: {len(found)} parameters, expected {len(expected)}")
    return problems


def check_sources(folder: Path | None = None) -> list[str]:
    """Compare every CUDA file that has a definition with it; all that is wrong, in words."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sources(folder)}
    return [
        problem
        for kernel in KERNELS
        if kernel.name in texts
        for problem in compare_parameters(kernel, texts[kernel.name])
    ]


def tile_constants(source: str) -> dict[str, str]:
    """Macros with a default, `#ifndef X` / `#define X 64`: the constants that a build may set by -D."""
    return dict(
        re.findall(r"^\s*#\s*ifndef\s+(\w+)\s*\n\s*#\s*define\s+\1\s+([^\n]+?)\s*$", source, flags=re.MULTILINE)
    )


# --- compiling --------------------------------------------------------------------------------------------------------


def options_for(name: str) -> tuple[str, ...]:
    """Compiler options of a file: those of all, and for what decides the ones that keep its rounding."""
    decides = any(kernel.name == name and kernel.decision for kernel in KERNELS)
    return OPTIONS + (DECISION_OPTIONS if decides else ())


@cache
def compiler_version(nvcc: Path) -> str:
    """What `nvcc --version` says.

    Raises:
        KernelError: it cannot be run.
    """
    try:
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"{nvcc} cannot be run: {error}") from error
    return answer.stdout.strip()


def cache_folder() -> Path:
    """Where cubins are kept."""
    return user_cache_path("tinyserve-viz") / "cubins"


def cubin_key(path: Path, arch: str, nvcc: Path, options: Sequence[str] | None = None) -> str:
    """Hash of all that shapes a cubin; another compiler, header or option gives another."""
    parts = [compiler_version(nvcc), arch, *(options_for(path.stem) if options is None else options)]
    digest = hashlib.sha256("\0".join(parts).encode())
    for file in [path, *_headers(path)]:
        digest.update(b"\0" + file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _headers(path: Path) -> list[Path]:
    """Headers of the same folder that a file includes, directly or through others, by name."""
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', waiting.pop().read_text(encoding="utf-8"), re.MULTILINE):
            header = path.parent / name
            if header.exists() and header not in found:
                found[header] = None
                waiting.append(header)
    return sorted(found)


def compile_file(
    path: Path, arch: str, nvcc: Path | None = None, options: Sequence[str] | None = None, fresh: bool = False
) -> Build:
    """Compile one CUDA file for one architecture, or take the kept cubin; `fresh` compiles in any case.

    The cubin appears under its final name only when it is whole, so a second process never reads half of one.

    Raises:
        KernelError: the compiler refuses the file; the message is what it said.
    """
    nvcc = nvcc or find_nvcc()
    options = options_for(path.stem) if options is None else tuple(options)
    key = cubin_key(path, arch, nvcc, options)
    cubin = cache_folder() / f"{path.stem}-{arch}-{key[:32]}.cubin"
    facts = cubin.with_suffix(".json")
    if not fresh and cubin.exists() and facts.exists():
        return Build(**(json.loads(facts.read_text(encoding="utf-8")) | {"cached": True, "cubin": str(cubin)}))
    started = time.perf_counter()
    cubin.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cubin.parent) as scratch:
        made = Path(scratch, "made.cubin")
        command = [str(nvcc), "-cubin", f"-arch={arch}", *options, "-I", str(path.parent), "-o", str(made), str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode or not made.exists():
            raise KernelError(f"{path.name} for {arch}: {_first_error(answer.stdout + answer.stderr)}")
        registers, shared, spilled = resources(answer.stdout + answer.stderr, path.stem)
        build = Build(
            path.stem, arch, str(cubin), registers, shared, spilled, False, round(time.perf_counter() - started, 3)
        )
        note = Path(scratch, "made.json")
        note.write_text(json.dumps(asdict(build)), encoding="utf-8")
        note.replace(facts)
        made.replace(cubin)
    return build


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next(
        (line for line in lines if "error" in line.lower() or "fatal" in line.lower()), (lines or ["failed"])[-1]
    )


def resources(ptxas: str, name: str) -> tuple[int, int, int]:
    """Registers and static shared bytes of kernel `name`, and the spill stores of the whole file, from `ptxas -v`."""
    registers = shared = 0
    entry = ""
    for line in ptxas.splitlines():
        if started := re.search(r"Compiling entry function '([^']+)'", line):
            entry = started[1]
        if used := re.search(r"Used (\d+) registers", line):
            static = re.search(r"(\d+) bytes smem", line)
            if entry == name or not registers:
                registers, shared = int(used[1]), int(static[1]) if static else 0
    return registers, shared, sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", ptxas))


def build_all(
    archs: Sequence[str],
    names: Sequence[str] = (),
    nvcc: Path | None = None,
    fresh: bool = False,
    folder: Path | None = None,
) -> Iterator[Build | KernelError]:
    """Compile every file, or those named, for every architecture, as many at once as there are processors.

    Yields builds in the order of files and architectures; a file that does not compile gives its error instead.
    """
    nvcc = nvcc or find_nvcc()
    compiler_version(nvcc)
    jobs = [(path, arch) for path in sources(folder) if not names or path.stem in names for arch in archs]

    def one(job: tuple[Path, str]) -> Build | KernelError:
        try:
            return compile_file(job[0], job[1], nvcc, fresh=fresh)
        except KernelError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(one, jobs)
