"""`compare RECORDING --decisions FILE`: equal runs say so, and each broken rule is named where it first shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_vllm_profile import broken_rules, pressure, under_pressure
from tinyserve_viz.analysis.decision_diff import first_difference, read_lines
from tinyserve_viz.analysis.decisions import DecisionLines
from tinyserve_viz.cli.main import main
from tinyserve_viz.cli.session import prepare, run_replay
from tinyserve_viz.core.errors import TraceError


def recorded(folder: Path, name: str, **rules: Any) -> tuple[Path, Path]:
    header = prepare(pressure(), under_pressure(**rules))
    lines = folder / f"{name}.jsonl"
    with lines.open("wb") as file:
        sink = DecisionLines(header.workload, header.engine.block_size, file.write).add
        run_replay(header, folder / f"{name}.rec", extra_sinks=(sink,))
    return folder / f"{name}.rec", lines


def test_a_recording_agrees_with_the_lines_of_its_own_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording, lines = recorded(tmp_path, "good")
    assert main(["compare", str(recording), "--decisions", str(lines)]) == 0
    steps = len(lines.read_bytes().splitlines())
    assert capsys.readouterr().out == f"{steps:,} steps, every decision the same\n"


@pytest.mark.parametrize(("rule", "value"), list(broken_rules()))
def test_the_first_decision_that_a_broken_rule_changes_is_named(
    rule: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, good = recorded(tmp_path, "good")
    bad, bad_lines = recorded(tmp_path, "bad", **{rule: value})
    assert main(["compare", str(bad), "--decisions", str(good), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)["first_difference"]
    pairs = zip(good.read_bytes().splitlines(), bad_lines.read_bytes().splitlines(), strict=False)
    assert answer["step"] == next(step for step, (a, b) in enumerate(pairs) if a != b)
    assert answer["sentences"]
    assert all(
        " here" in sentence and ("good.jsonl" in sentence or "not here" in sentence) for sentence in answer["sentences"]
    )


def test_each_kind_of_difference_has_its_words() -> None:
    base = {"step": 0, "run": [[0, "new", 0, 20, [1, 2]]], "preempted": [], "finished": [], "free": 3}
    changes: dict[str, Any] = {
        "request 0 gets the same first 1 blocks, then [2] here (2 in all), [5] by vllm (2 in all)": {
            "run": [[0, "new", 0, 20, [1, 5]]]
        },
        "request 0 gets tokens: 20 here, 16 by vllm": {"run": [[0, "new", 0, 16, [1, 2]]]},
        "request 0 is scheduled as new here, resumed by vllm": {"run": [[0, "resumed", 0, 20, [1, 2]]]},
        "request 7 runs vllm (run, 1 tokens after 9, 0 blocks), not here": {
            "run": [[0, "new", 0, 20, [1, 2]], [7, "run", 9, 1, []]]
        },
        "preempted: nobody here, [4] by vllm": {"preempted": [4]},
        "free blocks after the step: 3 here, 2 by vllm": {"free": 2},
    }
    ours = read_lines(json.dumps(base).encode(), "ours")
    for sentence, change in changes.items():
        found = first_difference(ours, read_lines(json.dumps({**base, **change}).encode(), "theirs"), "vllm")
        assert found is not None
        assert found.sentences == (sentence,)
    assert first_difference(ours, ours, "vllm") is None
    longer = first_difference(ours, [*ours, *ours], "vllm")
    assert longer is not None
    assert longer.sentences == ("1 steps are the same, then only the run vllm goes on, to 2 steps",)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "f: is empty, expected one JSON decision line a step"), (b"{\n", "f:1: no decision line: ")],
)
def test_what_is_no_decision_file_is_one_line(data: bytes, message: str) -> None:
    with pytest.raises(TraceError, match=f"^{message}"):
        read_lines(data, "f")


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path / "a.rec"), "--decisions", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"tinyserve-viz: {tmp_path}/none: No such file or directory\n"
