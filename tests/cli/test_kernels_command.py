import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.core import toolkit
from tinyserve_viz.kernels import KERNELS, build, cases, conformance


def out(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_list_names_every_kernel_with_arguments_and_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list", "--json"]) == 0
    listed = out(capsys)
    assert listed["schema"] == 1
    assert [row["name"] for row in listed["kernels"]] == [kernel.name for kernel in KERNELS]
    fork = next(row for row in listed["kernels"] if row["name"] == "block_fork")
    assert fork["arguments"][0] == {
        "name": "forks", "dtype": "int32", "axes": ["num_forks", "3"], "role": "in",
        "doc": "(parent, child, blocks to share)", "optional": False,
    }  # fmt: skip
    assert fork["c_parameters"][-1] == "int* status"
    assert fork["cases"] >= 10
    assert main(["kernels", "list"]) == 0
    assert capsys.readouterr().out.count(" cases  ") == len(KERNELS)


def test_verify_runs_the_cases_of_the_named_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "verify", "--kernel", "block_fork", "--json"]) == 0
    found = out(capsys)
    assert found["counts"] == {"OK": len(found["results"]), "FAIL": 0, "NOT SUPPORTED": 0}
    assert {row["kernel"] for row in found["results"]} == {"block_fork"}
    assert all(row["why"] for row in found["results"])
    assert main(["kernels", "verify", "--kernel", "block_fork", "--kernel", "block_mass"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" cases OK")


def test_a_failing_case_makes_verify_return_1_and_says_what_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = next(case for case in cases.CASES if case.kernel == "block_fork")
    monkeypatch.setattr(cases, "CASES", (replace(one, judge=lambda *_: "the table is empty"),))
    assert main(["kernels", "verify"]) == 1
    assert "FAIL: the table is empty" in capsys.readouterr().out


def test_a_kernel_that_a_backend_lacks_is_shown_and_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = conformance.Result("numpy", "block_fork", "one", "NOT SUPPORTED", "no such kernel")
    monkeypatch.setattr(conformance, "verify", lambda *_: [lacking])
    assert main(["kernels", "verify"]) == 0
    assert "NOT SUPPORTED: no such kernel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--kernel", "block_frok"], "unknown kernel 'block_frok'; known: "),
        (["verify", "--backend", "abacus"], "unknown backend 'abacus'; known: numpy"),
        (["build", "--arch", "ninety"], "'ninety' given, expected architectures such as sm_80,sm_90"),
        (["dance"], "invalid choice"),
        ([], "required: ACTION"),
    ],
)
def test_a_wrong_name_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_build_without_cuda_files_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "data_folder", lambda _name: tmp_path)
    assert main(["kernels", "build", "--arch", "sm_80", "--json"]) == 0
    assert out(capsys) == {"schema": 1, "builds": [], "problems": []}


def test_build_reports_resources_and_a_parameter_list_that_departs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "block_fork.cu").write_text('extern "C" __global__ void block_fork(int* status) {}', encoding="utf-8")
    made = build.Build("block_fork", "sm_80", "x.cubin", 24, 4096, 0, False, 1.25)
    monkeypatch.setattr(build, "data_folder", lambda _name: tmp_path)
    monkeypatch.setattr(toolkit, "find_nvcc", lambda *_: Path("nvcc"))
    monkeypatch.setattr(build, "build_all", lambda *_args, **_options: iter([made]))
    assert main(["kernels", "build", "--arch", "sm_80"]) == 1
    said = capsys.readouterr()
    assert "sm_80    24 registers,   4096 B shared, 0 B spilled, 1.2 s" in said.out
    assert "block_fork.cu: 1 parameters, expected 9" in said.err


@pytest.mark.parametrize(
    ("name", "bytes_", "found"),
    [
        ("block_fork", 4, "block_fork.cu for sm_80: 4 B of registers spilled, at most 0 allowed"),
        ("block_fork", 0, ""),
        ("query_aware_paged_attention", build.MAY_SPILL["query_aware_paged_attention"], ""),
        ("flash_paged_attention", 1000, "flash_paged_attention.cu for sm_80: 1000 B of registers spilled, at most"),
    ],
)
def test_check_finds_spilled_registers(
    name: str, bytes_: int, found: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build.Build(name, "sm_80", "x.cubin", 24, 0, bytes_, True, 1.0)
    monkeypatch.setattr(toolkit, "find_nvcc", lambda *_: Path("nvcc"))
    monkeypatch.setattr(build, "build_all", lambda *_args, **_options: iter([made]))
    assert main(["kernels", "build", "--arch", "sm_80", "--kernel", name]) == 0
    capsys.readouterr()
    assert main(["kernels", "build", "--arch", "sm_80", "--kernel", name, "--check"]) == (1 if found else 0)
    assert capsys.readouterr().err.startswith(found)


def test_list_shows_registers_and_tile_constants_of_what_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        """#!/bin/sh
[ "$1" = --version ] && { echo "release 13.0"; exit; }
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
echo cubin > "$out"
echo "ptxas info : Compiling entry function 'paged_attention' for 'x'" >&2
echo "ptxas info : Used 40 registers, 8 bytes spill stores, 512 bytes smem" >&2
""",
        encoding="utf-8",
    )
    nvcc.chmod(0o755)
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path / "cache")

    def listed() -> dict[str, Any]:
        assert main(["kernels", "list", "--json", "--nvcc", str(nvcc)]) == 0
        return next(row for row in out(capsys)["kernels"] if row["name"] == "paged_attention")

    assert listed()["builds"] == []
    source = next(path for path in build.sources() if path.stem == "paged_attention")
    for arch in ("sm_100", "sm_90"):
        build.compile_file(source, arch, nvcc)
    kept = listed()
    facts = ("arch", "registers", "static_shared_bytes", "spill_bytes")
    assert [[row[fact] for fact in facts] for row in kept["builds"]] == [["sm_90", 40, 512, 8], ["sm_100", 40, 512, 8]]
    assert kept["tile_constants"]["WARP_SIZE"] == 32
    assert main(["kernels", "list", "--nvcc", str(nvcc)]) == 0
    text = capsys.readouterr().out
    assert "    sm_90    40 registers,    512 B shared, 8 B spilled, kept\n" in text
    assert "WARP_SIZE 32" in text
    for cubin in build.kept_files(source):
        cubin.write_bytes(b"damaged")
    assert listed()["builds"] == []


@pytest.mark.parametrize("action", [["list"], ["build", "--arch", "sm_80"]])
def test_a_compiler_that_is_not_there_is_named(action: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", *action, "--nvcc", "/no/such"]) == 2
    assert capsys.readouterr().err == "tinyserve-viz: nvcc not found at /no/such\n"
