"""Compile the CUDA kernels, each file alone, and hold each C parameter list to its definition. Needs no GPU.

Cubins are kept under the user's cache directory. Their key is the hash of everything that shapes them: source, the
headers it includes, options, architecture and the compiler's version. A kept cubin is used only while it has the bytes
that the compiler wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from platformdirs import user_cache_path

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.core.toolkit import compiler_version, find_nvcc, host_compiler
from tinyserve_viz.kernels import KERNELS
from tinyserve_viz.kernels.definition import KernelDef

OPTIONS = ("-std=c++17", "-O3", "-Xptxas=-v")
# Decisions must round every multiply and add by itself; nothing else may contract them.
DECISION_OPTIONS = ("-fmad=false",)
# Bytes of spill stores that a file may have, the most of all architectures; every other file: none. These hold plain
# forms for every head_dim and group beside the main path in one entry, and the compiler reports entries, not forms.
MAY_SPILL = {"block_scoring": 64, "query_aware_paged_attention": 96}


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


def spilled_too_much(build: Build) -> str:
    """What is wrong with a build that spills more registers than it may, in words; empty when it does not."""
    may = MAY_SPILL.get(build.name, 0)
    if build.spill_bytes <= may:
        return ""
    return f"{build.name}.cu for {build.arch}: {build.spill_bytes} B of registers spilled, at most {may} allowed"


# --- parameter lists --------------------------------------------------------------------------------------------------


def c_parameters(source: str, name: str) -> list[str] | None:
    """The parameters of `extern "C" __global__ void name(…)` as `const half* query`, or None when it is not there.

    A macro of the file may stand for the list, as it does where several launches share one.
    """
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    bounds = r"(?:__launch_bounds__\s*\([^()]*(?:\([^()]*\)[^()]*)*\)\s*)?"
    head = rf'extern\s+"C"\s+__global__\s+{bounds}void\s+(?:CLUSTER\s+)?{bounds}{re.escape(name)}\s*\(([^)]*)\)'
    found = re.search(head, code)
    if not found:
        return None
    macros = dict(re.findall(r"^\s*#\s*define\s+(\w+)[ \t]+((?:[^\n]*\\\n)*[^\n]*)", code, re.MULTILINE))
    listed = str(macros.get(found[1].strip(), found[1])).replace("\\\n", " ")
    return [_normal(parameter) for parameter in listed.split(",") if parameter.strip()]


def _normal(parameter: str) -> str:
    """One spelling: no __restrict__, the star at the type, single blanks."""
    words = re.sub(r"\b__restrict__\b|\b__grid_constant__\b", " ", parameter).replace("*", "* ")
    return re.sub(r"\s+\*", "*", " ".join(words.split()))


def compare_parameters(kernel: KernelDef, source: str) -> list[str]:
    """What is wrong with a file's parameter lists, those of its stages too; nothing when all are the definition's."""
    launch = kernel.launch
    before, after = ([f"{kernel.name}_{stage.suffix}" for stage in side] for side in (launch.before, launch.after))
    entries = dict.fromkeys([*before, kernel.name, *after])
    problems = [problem for entry in entries for problem in _compare_entry(kernel, entry, source)]
    if (launch.overlap or launch.early) and not problems:
        problems = [
            f"{kernel.name}.cu: {entry} does not wait for the launch before it: no `follow_launch();`"
            for entry in list(entries)[0 if launch.early else 1 :]
            if not _follows(source, entry)
        ]
    return problems


def _follows(source: str, entry: str) -> bool:
    """Whether an entry point waits for the launch before it."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source, flags=re.DOTALL)
    return any(
        re.search(rf"\b{re.escape(entry)}\s*\(", part) and "follow_launch();" in part
        for part in re.split(r'extern\s+"C"\s+__global__', code)[1:]
    )


def _compare_entry(kernel: KernelDef, entry: str, source: str) -> list[str]:
    found, expected = c_parameters(source, entry), kernel.c_parameters()
    where = f"{kernel.name}.cu: " + ("" if entry == kernel.name else f"{entry}: ")
    if found is None:
        return [f'{kernel.name}.cu: no `extern "C" __global__ void {entry}(`']
    problems = [
        f"{where}parameter {i + 1} is `{have}`, expected `{want}`"
        for i, (have, want) in enumerate(zip(found, expected, strict=False))
        if have != want
    ]
    if len(found) != len(expected):
        problems.append(f"{where}{len(found)} parameters, expected {len(expected)}")
    return problems


def check_sources(folder: Path | None = None) -> list[str]:
    """Compare every CUDA file with its definition; all that is wrong, in words, a file that has none included."""
    defined = {kernel.name: kernel for kernel in KERNELS}
    problems = []
    for path in sources(folder):
        if path.stem in defined:
            problems += compare_parameters(defined[path.stem], path.read_text(encoding="utf-8"))
        else:
            problems.append(f"{path.name}: no kernel of that name is defined")
    return problems


def tile_constants(path: Path) -> dict[str, int]:
    """The sizes that a compiled file has fixed, its headers' included, by name.

    Macros with a whole number as default (`#ifndef TILE`, `#define TILE 128`), which -D may set, and `constexpr int` of
    2 or more outside functions: 0 and 1 name modes.
    """
    texts = [file.read_text(encoding="utf-8") for file in (*_headers(path), path)]
    macro = r"^\s*#\s*ifndef\s+(\w+)\s*\n\s*#\s*define\s+\1\s+(\d+)\b"
    constant = r"^constexpr int (\w+) = (\d+);"
    found = [pair for text in texts for form in (macro, constant) for pair in re.findall(form, text, re.MULTILINE)]
    return {name: int(value) for name, value in found if int(value) > 1}


# --- compiling --------------------------------------------------------------------------------------------------------


def options_for(name: str) -> tuple[str, ...]:
    """Compiler options of a file: those of all, and for what decides the ones that keep its rounding."""
    decides = any(kernel.name == name and kernel.decision for kernel in KERNELS)
    return OPTIONS + (DECISION_OPTIONS if decides else ())


def cache_folder() -> Path:
    """Where cubins are kept."""
    return user_cache_path("tinyserve-viz") / "cubins"


def kept_files(path: Path) -> list[Path]:
    """Every kept cubin of files of that name, whether or not it is up to date."""
    return sorted(cache_folder().glob(f"{path.stem}-sm_*.cubin"))


def cubin_key(path: Path, arch: str, nvcc: Path, options: Sequence[str] | None = None) -> str:
    """Hash of all that shapes a cubin; another compiler, header or option gives another."""
    parts = [compiler_version(nvcc), arch, *(options_for(path.stem) if options is None else options)]
    digest = hashlib.sha256("\0".join(parts).encode())
    for file in [path, *_headers(path)]:
        digest.update(b"\0" + file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _include_folders(path: Path) -> tuple[Path, ...]:
    """Where a file's own headers are looked for: beside it, then in cuda/, so that test kernels include these too."""
    return tuple(dict.fromkeys((path.parent, data_folder("cuda"))))


def _headers(path: Path) -> list[Path]:
    """Our headers that a file includes, directly or through others."""
    found: dict[Path, None] = {}
    waiting = [path]
    while waiting:
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', waiting.pop().read_text(encoding="utf-8"), re.MULTILINE):
            header = next((place for folder in _include_folders(path) if (place := folder / name).exists()), None)
            if header is not None and header not in found:
                found[header] = None
                waiting.append(header)
    return sorted(found)


def kept_build(path: Path, arch: str, nvcc: Path, options: Sequence[str] | None = None) -> Build | None:
    """The build of this very file for this architecture that an earlier run left, None if there is none or it is bad.

    A cubin that is cut short, changed, or without its facts counts as none and is compiled again.
    """
    cubin = _cubin_path(path, arch, nvcc, options)
    try:
        facts = json.loads(cubin.with_suffix(".json").read_text(encoding="utf-8"))
        if facts.pop("sha256") != _sha256(cubin):
            return None
        return Build(**(facts | {"cached": True, "cubin": str(cubin)}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _cubin_path(path: Path, arch: str, nvcc: Path, options: Sequence[str] | None) -> Path:
    return cache_folder() / f"{path.stem}-{arch}-{cubin_key(path, arch, nvcc, options)[:32]}.cubin"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
    if not fresh and (kept := kept_build(path, arch, nvcc, options)):
        return kept
    cubin = _cubin_path(path, arch, nvcc, options)
    started = time.perf_counter()
    cubin.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cubin.parent) as scratch:
        made = Path(scratch, "made.cubin")
        folders = [word for folder in _include_folders(path) for word in ("-I", str(folder))]
        command = [str(nvcc), "-cubin", f"-arch={arch}", *options, *folders, "-o", str(made), str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        if answer.returncode or not made.exists():
            raise KernelError(f"{path.name} for {arch}: {_first_error(answer.stdout + answer.stderr)}{_no_host()}")
        registers, shared, spilled = resources(answer.stdout + answer.stderr, path.stem)
        build = Build(
            path.stem, arch, str(cubin), registers, shared, spilled, False, round(time.perf_counter() - started, 3)
        )
        note = Path(scratch, "made.json")
        note.write_text(json.dumps(asdict(build) | {"sha256": _sha256(made)}), encoding="utf-8")
        made.replace(cubin)
        note.replace(cubin.with_suffix(".json"))
    return build


def _no_host() -> str:
    return "" if host_compiler() else "; nvcc needs a host compiler, none is in PATH: apt-get install g++"


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
    """Compile every file, or those named, for every architecture, as many at once as this process has processors.

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

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(one, jobs)
