import json
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.core import toolkit
from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels import KERNELS, build
from tinyserve_viz.kernels.backend import kernel_named

FORK = kernel_named("block_fork")


def source_of(kernel: Any, parameters: list[str] | None = None) -> str:
    """A file with an empty kernel and its stages, all with these parameters; each waits for another where it may."""
    listed = ",\n    ".join(kernel.c_parameters() if parameters is None else parameters)
    stages = {stage.suffix: None for stage in (*kernel.launch.before, *kernel.launch.after)}
    entries = [kernel.name, *(f"{kernel.name}_{suffix}" for suffix in stages)]
    body = " follow_launch(); " if kernel.launch.overlap or kernel.launch.early else ""
    bodies = [f'extern "C" __global__ void {entry}(\n    {listed}) {{{body}}}\n' for entry in entries]
    return "#include <cuda_fp16.h>\n#include <stdint.h>\n" + "".join(bodies)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_source_made_of_the_definition_has_its_parameters(kernel: Any) -> None:
    assert build.compare_parameters(kernel, source_of(kernel)) == []


def test_every_cuda_file_here_has_the_parameters_of_its_definition() -> None:
    assert build.check_sources() == []
    assert {path.stem for path in build.sources()} == {kernel.name for kernel in KERNELS}


def test_a_stage_must_have_the_parameters_of_its_kernel_too() -> None:
    copy = kernel_named("fused_block_copy")
    right = source_of(copy)
    stage = f"{copy.name}_{copy.launch.before[0].suffix}"
    head, tail = right.split(f"void {stage}(")
    wrong = head + f"void {stage}(" + tail.replace("const int* ops", "const int64_t* ops", 1)
    assert build.compare_parameters(copy, wrong) == [
        f"fused_block_copy.cu: {stage}: parameter 1 is `const int64_t* ops`, expected `const int* ops`"
    ]
    assert build.compare_parameters(copy, right.replace(stage, "elsewhere")) == [
        f'fused_block_copy.cu: no `extern "C" __global__ void {stage}(`'
    ]


def test_a_launch_that_may_start_early_must_wait_for_the_one_before_it() -> None:
    copy = kernel_named("fused_block_copy")
    assert copy.launch.overlap
    marking, copying = source_of(copy).split('extern "C"')[2], source_of(copy).split('extern "C"')[1]
    both = [f'extern "C"{part}' for part in (marking.replace("follow_launch();", ""), copying)]
    assert build.compare_parameters(copy, "".join(both)) == []  # nothing is before the first
    both[1] = both[1].replace("follow_launch();", "// follow_launch();\n")
    assert build.compare_parameters(copy, "".join(both)) == [
        "fused_block_copy.cu: fused_block_copy does not wait for the launch before it: no `follow_launch();`"
    ]


def test_comments_restrict_and_launch_bounds_do_not_count() -> None:
    parameters = [p.replace("* ", "* __restrict__ ") + f"  // no. {i}" for i, p in enumerate(FORK.c_parameters())]
    text = (
        ",\n".join(parameters[:-1]).replace("  // no.", " /* no., */ // no.").replace(",\n", "\n,")
        + "\n,"
        + parameters[-1]
    )
    text = text.replace("const int* __restrict__", "const  int *__restrict__")
    code = f'extern "C" __global__ __launch_bounds__(max(128, 256), 2)\nvoid block_fork(\n{text}\n) {{ }}'
    assert build.compare_parameters(FORK, code) == []


def test_a_macro_may_stand_for_the_parameters() -> None:
    listed = ", \\\n    ".join(FORK.c_parameters())
    code = f'#define PARAMETERS \\\n    {listed}\nextern "C" __global__ void block_fork(PARAMETERS) {{ }}'
    assert build.compare_parameters(FORK, code) == []
    assert build.compare_parameters(FORK, code.replace("int64_t num_forks", "int num_forks")) == [
        "block_fork.cu: parameter 5 is `int num_forks`, expected `int64_t num_forks`"
    ]


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (
            lambda p: [p[1], p[0], *p[2:]],
            [
                "block_fork.cu: parameter 1 is `int* block_table`, expected `const int* forks`",
                "block_fork.cu: parameter 2 is `const int* forks`, expected `int* block_table`",
            ],
        ),
        (
            lambda p: [x.replace("int64_t num_forks", "int num_forks") for x in p],
            ["block_fork.cu: parameter 5 is `int num_forks`, expected `int64_t num_forks`"],
        ),
        (lambda p: p[:-1], ["block_fork.cu: 8 parameters, expected 9"]),
        (
            lambda p: [x.replace("const int* forks", "int* forks") for x in p],
            ["block_fork.cu: parameter 1 is `int* forks`, expected `const int* forks`"],
        ),
    ],
)
def test_every_departure_from_the_definition_is_named(change: Any, problems: list[str]) -> None:
    assert build.compare_parameters(FORK, source_of(FORK, change(FORK.c_parameters()))) == problems


def test_a_file_without_its_symbol_or_its_definition_is_named(tmp_path: Path) -> None:
    (tmp_path / "block_fork.cu").write_text(source_of(FORK).replace('extern "C" ', ""), encoding="utf-8")
    (tmp_path / "stray.cu").write_text("// has no definition", encoding="utf-8")
    assert build.check_sources(tmp_path) == [
        'block_fork.cu: no `extern "C" __global__ void block_fork(`',
        "stray.cu: no kernel of that name is defined",
    ]


def test_sizes_fixed_in_a_file_or_its_headers_are_the_tile_constants(tmp_path: Path) -> None:
    header = "constexpr int WARPS = 4;\nconstexpr int SCAN = 0, CAS = 1;\n"
    (tmp_path / "tiles.cuh").write_text(header, encoding="utf-8")
    (tmp_path / "one.cu").write_text(
        '#include "tiles.cuh"\n#ifndef TILE\n#define TILE 64  // tokens\n#endif\n'
        "  #ifndef STAGES\n  # define STAGES 3 \n#endif\n#define FIXED 3\n"
        "constexpr int PAPER = 0;\nvoid f() {\n    constexpr int INSIDE = 9;\n}\n",
        encoding="utf-8",
    )
    assert build.tile_constants(tmp_path / "one.cu") == {"WARPS": 4, "TILE": 64, "STAGES": 3}


def test_resources_are_read_from_what_ptxas_says() -> None:
    said = """
ptxas info    : Compiling entry function 'helper' for 'sm_80'
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 99 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'block_fork' for 'sm_80'
    0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers, 4096 bytes smem, 400 bytes cmem[0]
"""
    assert build.resources(said, "block_fork") == (24, 4096, 12)


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that copies its input, counts its runs, and refuses files that say #error."""
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        f"""#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi
echo "$@" >> {tmp_path}/runs
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
if grep -q '#error' "$1"; then echo "$1(1): error: not today" >&2; exit 2; fi
cp "$1" "$out"
echo "ptxas info : Compiling entry function 'block_fork' for 'sm_80'" >&2
echo "ptxas info : Used 7 registers, 0 bytes spill stores, 16 bytes smem" >&2
""",
        encoding="utf-8",
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    toolkit.compiler_version.cache_clear()
    return nvcc


def test_a_cubin_is_kept_until_source_header_options_or_architecture_change(fake_nvcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "block_fork.cu"
    (tmp_path / "inner.cuh").write_text("// 1", encoding="utf-8")
    (tmp_path / "common.cuh").write_text('#include "inner.cuh"', encoding="utf-8")
    (tmp_path / "unrelated.cuh").write_text("// 1", encoding="utf-8")
    source.write_text('#include "common.cuh"\n#include <cuda_fp16.h>\n', encoding="utf-8")

    def runs() -> int:
        return len((tmp_path / "runs").read_text().splitlines())

    first = build.compile_file(source, "sm_80", fake_nvcc)
    assert (first.registers, first.static_shared_bytes, first.spill_bytes, first.cached) == (7, 16, 0, False)
    again = build.compile_file(source, "sm_80", fake_nvcc)
    assert (again.cached, again.cubin, runs()) == (True, first.cubin, 1)
    (tmp_path / "unrelated.cuh").write_text("// 2", encoding="utf-8")
    assert build.compile_file(source, "sm_80", fake_nvcc).cached
    assert not build.compile_file(source, "sm_90", fake_nvcc).cached
    assert not build.compile_file(source, "sm_80", fake_nvcc, options=("-O1",)).cached
    (tmp_path / "inner.cuh").write_text("// 2", encoding="utf-8")
    assert not build.compile_file(source, "sm_80", fake_nvcc).cached
    assert not build.compile_file(source, "sm_80", fake_nvcc, fresh=True).cached
    assert runs() == 5
    assert Path(first.cubin).read_bytes() == source.read_bytes()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix not in (".cubin", ".json")]


def test_a_kept_cubin_that_was_damaged_is_compiled_again(fake_nvcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "block_fork.cu"
    source.write_text("// a kernel\n", encoding="utf-8")
    first = build.compile_file(source, "sm_80", fake_nvcc)
    cubin, facts = Path(first.cubin), Path(first.cubin).with_suffix(".json")

    def cut() -> None:
        cubin.write_bytes(cubin.read_bytes()[:-3])

    def flip() -> None:
        cubin.write_bytes(b"X" + cubin.read_bytes()[1:])

    damages = (
        cut,
        flip,
        cubin.unlink,
        facts.unlink,
        lambda: facts.write_text('{"name": "block_f', encoding="utf-8"),
        lambda: facts.write_text("[]", encoding="utf-8"),
        lambda: facts.write_text(json.dumps(json.loads(facts.read_text()) | {"new_field": 1}), encoding="utf-8"),
    )
    for damage in damages:
        assert build.kept_build(source, "sm_80", fake_nvcc) is not None
        damage()
        assert build.kept_build(source, "sm_80", fake_nvcc) is None
        assert not build.compile_file(source, "sm_80", fake_nvcc).cached
        assert cubin.read_bytes() == source.read_bytes()
    assert len((tmp_path / "runs").read_text().splitlines()) == 1 + len(damages)


def test_builds_at_the_same_time_all_get_a_whole_cubin(fake_nvcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "block_fork.cu"
    source.write_text("// " + "x" * 100_000, encoding="utf-8")

    def one(_n: int) -> bytes:
        return Path(build.compile_file(source, "sm_80", fake_nvcc, fresh=True).cubin).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(24))) == {source.read_bytes()}
    kept = build.kept_build(source, "sm_80", fake_nvcc)
    assert kept is not None
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(
        [Path(kept.cubin).name, Path(kept.cubin).with_suffix(".json").name]
    )


def test_another_compiler_version_makes_another_cubin(fake_nvcc: Path, tmp_path: Path) -> None:
    source = tmp_path / "block_fork.cu"
    source.write_text("//", encoding="utf-8")
    first = build.compile_file(source, "sm_80", fake_nvcc)
    fake_nvcc.write_text(fake_nvcc.read_text().replace("fake 1.0", "fake 1.1"), encoding="utf-8")
    toolkit.compiler_version.cache_clear()
    second = build.compile_file(source, "sm_80", fake_nvcc)
    assert (second.cached, second.cubin != first.cubin) == (False, True)
    assert build.kept_files(source) == sorted([Path(first.cubin), Path(second.cubin)])


def test_a_missing_host_compiler_is_named_beside_what_the_compiler_says(
    fake_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.cu").write_text("#error", encoding="utf-8")
    monkeypatch.setattr(build, "host_compiler", lambda: None)
    with pytest.raises(KernelError, match="not today; nvcc needs a host compiler, none is in PATH: apt-get install g"):
        build.compile_file(tmp_path / "a.cu", "sm_80", fake_nvcc)


def test_what_decides_is_compiled_without_contraction(fake_nvcc: Path, tmp_path: Path) -> None:
    for name in ("block_scoring", "paged_attention"):
        (tmp_path / f"{name}.cu").write_text("//", encoding="utf-8")
        build.compile_file(tmp_path / f"{name}.cu", "sm_80", fake_nvcc)
    scoring, attention = (tmp_path / "runs").read_text().splitlines()
    assert "-fmad=false" in scoring
    assert "-fmad=false" not in attention


def test_a_file_that_does_not_compile_gives_its_error_and_the_others_are_built(fake_nvcc: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text("#error", encoding="utf-8")
    (tmp_path / "b.cu").write_text("//", encoding="utf-8")
    results = list(build.build_all(["sm_75", "sm_80"], nvcc=fake_nvcc, folder=tmp_path))
    assert [getattr(result, "arch", str(result)) for result in results] == [
        f"a.cu for sm_75: {tmp_path}/a.cu(1): error: not today",
        f"a.cu for sm_80: {tmp_path}/a.cu(1): error: not today",
        "sm_75",
        "sm_80",
    ]
    assert not list((tmp_path / "cache").glob("a-*"))


def test_without_a_gpu_the_architecture_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(KernelError, match="give it, for example --arch sm_80,sm_90"):
        build.device_arch()


@pytest.mark.skipif(not (shutil.which("nvcc") or os.environ.get("CUDA_HOME")), reason="nvcc is not here")
def test_the_compiler_takes_a_source_made_of_the_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    toolkit.compiler_version.cache_clear()
    path = tmp_path / "block_fork.cu"
    path.write_text(source_of(FORK), encoding="utf-8")
    made = build.compile_file(path, "sm_90")
    assert made.registers > 0
    assert Path(made.cubin).read_bytes()[:4] == b"\x7fELF"
    assert json.loads(Path(made.cubin).with_suffix(".json").read_text())["arch"] == "sm_90"
