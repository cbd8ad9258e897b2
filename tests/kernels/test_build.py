import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.core.errors import KernelError
from tinyserve_viz.kernels import KERNELS, build
from tinyserve_viz.kernels.backend import kernel_named

FORK = kernel_named("block_fork")


def source_of(kernel: Any, parameters: list[str] | None = None) -> str:
    listed = ",\n    ".join(kernel.c_parameters() if parameters is None else parameters)
    return (
        f'#include <cuda_fp16.h>\n#include <stdint.h>\nextern "C" __global__ void {kernel.name}(\n    {listed}) {{}}\n'
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_source_made_of_the_definition_has_its_parameters(kernel: Any) -> None:
    assert build.compare_parameters(kernel, source_of(kernel)) == []


def test_every_cuda_file_here_has_the_parameters_of_its_definition() -> None:
    assert build.check_sources() == []


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


def test_a_file_without_its_symbol_is_named(tmp_path: Path) -> None:
    (tmp_path / "block_fork.cu").write_text(source_of(FORK).replace('extern "C" ', ""), encoding="utf-8")
    (tmp_path / "helpers_under_test.cu").write_text("// has no definition", encoding="utf-8")
    assert build.check_sources(tmp_path) == ['block_fork.cu: no `extern "C" __global__ void block_fork(`']


def test_macros_with_a_default_are_the_tile_constants() -> None:
    text = (
        "#ifndef TILE\n#define TILE 64\n#endif\n  #ifndef STAGES\n  # define STAGES (2 + 1) \n#endif\n#define FIXED 3\n"
    )
    assert build.tile_constants(text) == {"TILE": "64", "STAGES": "(2 + 1)"}


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
    build.compiler_version.cache_clear()
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


def test_nvcc_is_looked_for_in_the_option_cuda_home_and_path(
    fake_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(build.sysconfig, "get_path", lambda _name: str(tmp_path / "nowhere"))
    with pytest.raises(KernelError, match="nvcc not found in"):
        build.find_nvcc()
    with pytest.raises(KernelError, match="nvcc not found at /no/such"):
        build.find_nvcc("/no/such")
    wheel = tmp_path / "nowhere" / "nvidia" / "cu13" / "bin" / "nvcc"
    wheel.parent.mkdir(parents=True)
    shutil.copy(fake_nvcc, wheel)
    assert build.find_nvcc() == wheel
    monkeypatch.setenv("PATH", str(fake_nvcc.parent))
    assert build.find_nvcc() == fake_nvcc
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    shutil.copy(fake_nvcc, home / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert build.find_nvcc() == home / "bin" / "nvcc"
    assert build.find_nvcc(str(fake_nvcc)) == fake_nvcc


def test_without_a_gpu_the_architecture_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(KernelError, match="give it, for example --arch sm_80,sm_90"):
        build.device_arch()


@pytest.mark.skipif(not (shutil.which("nvcc") or os.environ.get("CUDA_HOME")), reason="nvcc is not here")
def test_the_compiler_takes_a_source_made_of_the_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")
    build.compiler_version.cache_clear()
    path = tmp_path / "block_fork.cu"
    path.write_text(source_of(FORK), encoding="utf-8")
    made = build.compile_file(path, "sm_90")
    assert made.registers > 0
    assert Path(made.cubin).read_bytes()[:4] == b"\x7fELF"
    assert json.loads(Path(made.cubin).with_suffix(".json").read_text())["arch"] == "sm_90"
