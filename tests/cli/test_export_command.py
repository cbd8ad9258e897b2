"""`export` from the command line: data on stdout and nothing else, notes on stderr, one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyserve_viz.analysis.tables import TABLES
from tinyserve_viz.cli.main import main


def test_without_a_file_the_table_is_all_that_stdout_gets(
    quickstart_recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(quickstart_recording), "--table", "copies"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == ["step,seq,logical_block,src_block,dst_block,tokens", "11,2,4,13,14,8"]
    assert printed.err == ""


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("x.csv", b"step,time_us,"),
        ("x.json", b'{"schema":1,"table":"steps"'),
        ("x.jsonl", b'{"schema":"tinyserve-viz/events/1"'),
        ("x.svg", b"<svg"),
        ("x", b"step,time_us,"),
    ],
)
def test_the_suffix_chooses_the_format_where_none_is_named(
    name: str, start: bytes, quickstart_recording: Path, tmp_path: Path
) -> None:
    assert main(["export", str(quickstart_recording), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("x.dat", [], "has suffix .dat, an export ends in one of .csv, .json, .jsonl, .svg"),
        ("x.json", ["--format", "csv"], "has suffix .json, an export as csv ends in .csv"),
        ("no/x.csv", [], "there is no folder {folder}/no; make it first, or choose another place"),
    ],
)
def test_a_name_that_cannot_be_an_export_is_refused_before_the_recording_is_read(
    name: str, options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / name)
    assert main(["export", "missing.rec", "-o", place, *options]) == 2
    assert capsys.readouterr().err == f"tinyserve-viz: {place}: {told.format(folder=tmp_path)}\n"


def test_a_screen_at_a_step_is_that_of_the_screenshot_option(quickstart_recording: Path, tmp_path: Path) -> None:
    exported, shot = tmp_path / "a.svg", tmp_path / "b.svg"
    assert main(["export", str(quickstart_recording), "--at", "79", "--size", "100x30", "-o", str(exported)]) == 0
    command = ["replay", str(quickstart_recording), "--screenshot", str(shot), "--at", "79", "--size", "100x30"]
    assert main(command) == 0
    assert exported.read_text() == shot.read_text()


def test_what_mooncake_cannot_say_goes_to_stderr_and_quiet_silences_it(
    quickstart_recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(quickstart_recording), "--format", "mooncake"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert all(json.loads(line) for line in printed.out.splitlines())
    assert printed.err.startswith("tinyserve-viz export: not in the Mooncake format and left out: samples of 1")
    assert main([*command, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_json_says_what_was_written(
    quickstart_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.csv"
    assert main(["export", str(quickstart_recording), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"schema": 1, "output": str(out), "format": "csv", "bytes": out.stat().st_size, "notes": []}
    assert main(["export", "--table", "list", "--json"]) == 0
    tables = json.loads(capsys.readouterr().out)["tables"]
    assert [table["table"] for table in tables] == [table.name for table in TABLES]


def test_a_bench_file_exports_its_rows_with_those_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = tmp_path / "bench.json"
    rows = [{"op": "a", "impl": "x", "shape": "s", "us": 2.5}, {"op": "a", "impl": "y", "shape": "s", "error": "no"}]
    bench.write_text(json.dumps({"device": "d", "rows": rows}))
    assert main(["export", str(bench)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "operation,implementation,shape,us,useful_gb_per_s,useful_bytes,spread_ratio,timed_by,note,provenance,baseline,error",
        "a,x,s,2.5,,,,,,measured,,",
        "a,y,s,,,,,,,measured,,no",
    ]
    assert main(["export", str(bench), "--format", "chrome"]) == 2
    assert "is a bench file, which exports as csv or json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--table", "stepz"], "tinyserve-viz: unknown table 'stepz'; known: steps, requests, "),
        (["--table", "steps", "--format", "svg"], "tinyserve-viz export: --table is for csv and json, not svg; see"),
        (["--json"], "tinyserve-viz export: --json says what was written, expected -o OUT; see --help"),
        (["--format", "xlsx"], "tinyserve-viz export: argument --format: invalid choice: 'xlsx' (choose from "),
        (["--sentences"], "tinyserve-viz export: --sentences is for jsonl, not csv; see --help"),
        (["--size", "80x24"], "tinyserve-viz export: --size is for svg, not csv; see --help"),
        (["--format", "jsonl", "--at", "3"], "--at is for csv, json, svg, not jsonl; see --help"),
        (["--format", "svg", "--at", "9999"], ": has steps 0 to 145, --at is 9999"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    arguments: list[str], line: str, quickstart_recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(quickstart_recording), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert line in printed.err
