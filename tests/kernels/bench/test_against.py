"""Ratios between bench files, and what `kernels bench --from … --against …` prints of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.kernels.bench.against import ratios


def row(op: str, impl: str, shape: str, us: float = 10.0, **more: Any) -> dict[str, Any]:
    return {
        "op": op,
        "impl": impl,
        "shape": shape,
        "us": us,
        "gbs": 100.0,
        "pct_copy": 50.0,
        "spread": 0.01,
        "note": "",
    } | more


OURS = {
    "device": "H100",
    "peaks": {"copy": 3000.0},
    "rows": [
        row("decode", "flash_paged_attention", "llama3-8b B=1 L=8192", 15.0),
        row("kv-write", "fused_reshape_and_block_write", "llama3-8b B=64 new=1 ctx=1024", 2.0),
        row("top-k", "cache_selection", "rows=32 n=8192 k=128 fp32", 8.0),
        row("step", "exact, 5 kernels", "llama3-8b B=64 L=4096", 400.0),
    ],
}
PEERS = {
    "device": "H200",
    "torch": "2.11",
    "peaks": {"copy": 4300.0},
    "rows": [
        row("decode", "flashinfer-tc-NHD", "llama3-8b B=1 L=8192", 18.0),
        row("decode-contig", "sdpa-flash", "llama3-8b B=1 L=8192", 30.0),
        row("decode", "flashinfer-cuda-NHD", "llama3-8b B=1 L=131072", 18.0),
        {"op": "decode", "impl": "broken", "shape": "llama3-8b B=1 L=8192", "error": "RuntimeError: no"},
        row("kv-write", "flashinfer-NHD", "llama3-8b B=64 new=1 ctx=1024", 3.0),
        row("kv-write", "torch index_copy_ x2", "llama3-8b tokens=64", 9.0),
        row("kv-write", "torch index_copy_ x2", "llama2-7b tokens=64", 9.0),
    ],
}


def test_rows_of_the_same_operation_and_shape_are_laid_together() -> None:
    found = [(one.ours, one.theirs, one.ratio, one.source) for one in ratios(OURS["rows"], [("peers", PEERS)])]
    assert found == [
        ("flash_paged_attention", "flashinfer-tc-NHD", 1.2, "peers"),
        ("flash_paged_attention", "sdpa-flash", 2.0, "peers"),
        ("fused_reshape_and_block_write", "flashinfer-NHD", 1.5, "peers"),
        ("fused_reshape_and_block_write", "torch index_copy_ x2", 4.5, "peers"),
    ]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    paths = []
    for name, content in (("ours.json", OURS), ("peers.json", PEERS)):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
        paths.append(str(tmp_path / name))
    return paths[0], paths[1]


def test_a_kept_table_is_compared_without_a_gpu(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "bench", "--from", files[0], "--against", files[1]]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "H100, copy 3000 GB/s (read + written)"
    assert "peers.json: another device, so these ratios compare machines too" in lines
    assert sum("1.20×" in one and "flashinfer-tc-NHD" in one for one in lines) == 1
    assert lines[-1] == "without a row to lay beside: step, top-k"


def test_json_holds_the_rows_and_the_ratios(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "bench", "--from", files[0], "--against", files[1], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 4
    assert found["against"][0] == {
        "op": "decode", "shape": "llama3-8b B=1 L=8192", "ours": "flash_paged_attention", "us": 15.0,
        "theirs": "flashinfer-tc-NHD", "their_us": 18.0, "ratio": 1.2, "source": "peers.json",
    }  # fmt: skip


def test_a_row_that_failed_its_check_makes_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"op": "decode", "impl": "flash_paged_attention", "shape": "x", "error": "output: relative error 1"}
    (tmp_path / "a.json").write_text(
        json.dumps(OURS | {"rows": [wrong], "left_out": ["b: too large"]}), encoding="utf-8"
    )
    assert main(["kernels", "bench", "--from", str(tmp_path / "a.json")]) == 1
    said = capsys.readouterr()
    assert "NOT TIMED: output: relative error 1" in said.out
    assert said.err == "decode, flash_paged_attention, x: output: relative error 1\nleft out: b: too large\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "none.json: No such file or directory, expected a bench file"),
        ("{", "none.json: no JSON (Expecting property name"),
        ("[]", "none.json: no bench file, expected an object with `device` and `rows`"),
        ('{"device": "x", "rows": [{"op": "decode"}]}', "none.json: rows[0] has no op, impl and shape"),
        (
            '{"device": "x", "rows": [{"op": "a", "impl": "b", "shape": "c"}]}',
            "none.json: rows[0] (a, c) has neither us nor error",
        ),
    ],
)
def test_a_file_that_is_no_bench_file_is_one_line_and_exit_code_2(
    content: str | None, message: str, files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "none.json").write_text(content, encoding="utf-8")
    assert main(["kernels", "bench", "--from", files[0], "--against", str(tmp_path / "none.json")]) == 2
    said = capsys.readouterr()
    assert (said.out, message in said.err, said.err.count("\n")) == ("", True, 1)


def test_markdown_has_the_fastest_of_each_other_file_beside_each_row(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    against = ["--against", files[1], "--against", files[0]]
    assert main(["kernels", "bench", "--from", files[0], *against, "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "H100, copy 3000 GB/s (read + written)",
        "",
        "| operation | by | shape | µs | GB/s | % of copy | fastest of peers.json | µs | theirs / ours "
        "| fastest of ours.json | µs | theirs / ours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| decode | flash_paged_attention | llama3-8b B=1 L=8192 | 15.0 | 100 | 50 | flashinfer-tc-NHD | 18.0 | 1.20 "
        "| flash_paged_attention | 15.0 | 1.00 |",
        "| kv-write | fused_reshape_and_block_write | llama3-8b B=64 new=1 ctx=1024 | 2.0 | 100 | 50 | flashinfer-NHD "
        "| 3.0 | 1.50 | fused_reshape_and_block_write | 2.0 | 1.00 |",
        "| top-k | cache_selection | rows=32 n=8192 k=128 fp32 | 8.0 | 100 | 50 | | | | cache_selection | 8.0 | 1.00 |",
        "| step | exact, 5 kernels | llama3-8b B=64 L=4096 | 400.0 | 100 | 50 | | | "
        "| exact, 5 kernels | 400.0 | 1.00 |",
    ]
    assert main(["kernels", "bench", "--from", files[0], "--markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| step | exact, 5 kernels | llama3-8b B=64 L=4096 | 400.0 | 100 | 50 |"
    )
