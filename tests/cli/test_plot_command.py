"""`plot` from the command line: the form by the suffix, one line for what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyserve_viz.analysis.charts import BENCH_CHARTS, CHARTS, STREAM_CHARTS
from tinyserve_viz.cli.main import main

PLOT = "tinyserve-viz plot: "


def test_the_suffix_says_what_is_written(
    quickstart_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "html": b"<!DOC", "txt": b"Prefix"}
    for form, head in heads.items():
        out = tmp_path / f"x.{form.upper()}"
        assert main(["plot", str(quickstart_recording), "--kind", "hit-rate", "-o", str(out)]) == 0
        assert out.read_bytes().startswith(head)
    assert capsys.readouterr() == ("", "")


def test_without_a_file_name_the_timeline_is_text_on_stdout(
    quickstart_recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(quickstart_recording), "--size", "70x9"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Replay of quickstart\n\npool (peak use 40 blocks)\npool (blocks)\n")
    assert printed.err == ""


def test_kinds_are_listed_with_what_they_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "--kind", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [module.KIND for module in (*CHARTS, *BENCH_CHARTS, *STREAM_CHARTS)]
    assert main(["plot", "--kind", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"][0] == {"kind": "timeline", "of": "recording", "summary": CHARTS[0].SUMMARY}


def test_as_json_a_chart_is_its_numbers_and_a_file_what_was_written(
    quickstart_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(quickstart_recording), "--kind", "misses", "--json"]) == 0
    chart = json.loads(capsys.readouterr().out)["chart"]
    assert [s["x"] for s in chart["panels"][0]["series"]] == [[208], [9, 85, 736, 0, 0, 144]]
    out = tmp_path / "x.svg"
    assert main(["plot", str(quickstart_recording), "--kind", "misses", "--json", "-o", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"schema": 1, "output": str(out), "form": "svg", "bytes": out.stat().st_size}


def test_a_page_of_all_kinds_says_what_it_leaves_out(tmp_path: Path) -> None:
    record = tmp_path / "r.rec"
    trace = tmp_path / "t.json"
    trace.write_text('{"schema": "tinyserve-viz/trace/1", "requests": [{"prompt_len": 9, "output_len": 2}]}')
    assert main(["replay", str(trace), "--headless", "--kernels", "none", "--quiet", "--record", str(record)]) == 0
    out = tmp_path / "all.html"
    assert main(["plot", str(record), "--kind", "all", "-o", str(out)]) == 0
    page = out.read_text()
    assert page.count("<figure ") == 7
    assert "<li>kernel-time: r.rec: no kernels ran" in page


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-o", "x.jpg"], "tinyserve-viz: x.jpg: has suffix .jpg, a plot is one of .png, .svg, .pdf, .html, .txt"),
        (["-o", "x"], "tinyserve-viz: x: has no suffix, a plot is one of .png, .svg, .pdf, .html, .txt"),
        (["--kind", "all", "-o", "x.png"], PLOT + "--kind all makes a page, expected -o OUT.html; see --help"),
        (["--size", "8"], PLOT + "argument --size: '8' given, expected width x height such as 8.5x7; see --help"),
        (["--dpi", "0"], "tinyserve-viz plot: argument --dpi: '0' given, expected 20 to 1200; see --help"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_one_line(
    arguments: list[str], line: str, quickstart_recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(quickstart_recording), *arguments]) == 2
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_file_of_the_wrong_sort_is_told_apart(
    quickstart_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plot", str(quickstart_recording), "--kind", "roofline"]) == 2
    assert "is a recording, a plot of kind roofline is drawn from a bench file" in capsys.readouterr().err
    assert main(["plot", str(quickstart_recording), "--kind", "pie"]) == 2
    assert "unknown kind 'pie' of plot; known: timeline, " in capsys.readouterr().err
    other = tmp_path / "x.json"
    other.write_text('{"rows": []}')
    assert main(["plot", str(other)]) == 2
    assert "neither a recording nor a bench file" in capsys.readouterr().err
    assert main(["plot", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"tinyserve-viz: {tmp_path / 'none'}: No such file or directory\n"


def test_an_existing_file_is_replaced_only_when_told(
    quickstart_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.txt"
    out.write_text("mine")
    command = ["plot", str(quickstart_recording), "--kind", "misses", "-o", str(out)]
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert out.read_text().startswith("Prompt tokens")
