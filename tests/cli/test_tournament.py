"""`compare TRACE --option a,b`: one trace under several configurations."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.core.resources import data_folder

QUICKSTART = str(data_folder("traces") / "quickstart.json")


def compared(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["compare", QUICKSTART, *options, "--quiet", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    return found


def test_every_configuration_gets_the_numbers_of_its_own_replay(capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, "--eviction", "lru,fifo", "--num-blocks", "24")
    assert [entry["label"] for entry in found["configurations"]] == ["lru", "fifo"]
    for entry in found["configurations"]:
        options = ["--eviction", entry["label"], "--num-blocks", "24", "--kernels", "none"]
        assert main(["replay", QUICKSTART, "--headless", "--json", "--quiet", *options]) == 0
        alone = json.loads(capsys.readouterr().out)
        assert entry["digest"] == alone["digest"]
        assert entry["metrics"]["evictions"] == alone["blocks"]["evictions"]
        assert entry["metrics"]["prefix hit"] == alone["prefix"]["token_hit_rate"]


def test_the_first_differing_eviction_is_told_from_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, "--eviction", "lru,fifo", "--num-blocks", "24")
    assert found["configurations"][0]["first_difference"] is None
    difference = found["configurations"][1]["first_difference"]
    assert difference["num_same_decisions"] == 74
    assert (difference["ours"]["step"], difference["theirs"]["step"]) == (42, 42)
    assert "least recently used first" in difference["ours"]["text"]
    assert "longest in the prefix index first" in difference["theirs"]["text"]


def test_equal_decisions_are_no_difference_and_fail_on_diff_passes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", QUICKSTART, "--eviction", "lru,fifo", "--num-blocks", "4096", "--quiet", "--fail-on-diff"]
    assert main(arguments) == 0
    assert "fifo: every decision is that of lru" in capsys.readouterr().out


def test_fail_on_diff_is_exit_code_1_when_a_decision_differs() -> None:
    arguments = ["compare", QUICKSTART, "--eviction", "lru,fifo", "--num-blocks", "24", "--quiet"]
    assert main(arguments) == 0
    assert main([*arguments, "--fail-on-diff"]) == 1


def test_allocators_differ_at_the_first_admission(capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, "--allocator", "paged,contiguous,pow2,exact", "--num-blocks", "4096")
    use = {entry["label"]: entry["metrics"]["decode use"] for entry in found["configurations"]}
    assert use["contiguous"] < use["pow2"] < use["exact"] < use["paged"]
    difference = found["configurations"][1]["first_difference"]
    assert "needs 8 blocks of 4,096 available" in difference["ours"]["text"]
    assert "reserved 16,384 token slots" in difference["theirs"]["text"]


def test_selections_stand_with_bytes_and_quality_and_seed_once_for_all_ratios(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = compared(capsys, "--selection", "paper,seed", "--ratio", "0.1,0.5", "--limit", "2")
    assert [entry["label"] for entry in found["configurations"]] == ["paper, 0.1", "paper, 0.5", "seed"]
    few, many = (entry["metrics"] for entry in found["configurations"][:2])
    assert few["K/V read"] < many["K/V read"]
    assert few["mass kept"] < many["mass kept"] <= 1


def test_belady_keeps_more_than_any_policy_of_a_server_and_says_what_it_knew(
    capsys: pytest.CaptureFixture[str],
) -> None:
    trace = str(data_folder("traces") / "prefix.json")
    options = ["--eviction", "belady,lru,fifo,lfu,clock,seed", "--num-blocks", "200", "--quiet", "--json"]
    assert main(["compare", trace, *options]) == 0
    found = json.loads(capsys.readouterr().out)["configurations"]
    rates = {entry["label"]: entry["metrics"]["prefix hit"] for entry in found}
    assert rates["belady"] > max(rate for label, rate in rates.items() if label != "belady")
    difference = found[1]["first_difference"]
    assert "(block 193, never asked for again); next would be block 137 (next asked for by r24)" in (
        difference["ours"]["text"]
    )


def test_belady_is_refused_by_replay_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", QUICKSTART, "--eviction", "belady", "--headless"]) == 2
    assert capsys.readouterr().err == (
        "tinyserve-viz: eviction 'belady' knows the rest of the trace, which no server does: "
        "it can be had in compare and curve only\n"
    )


def test_what_no_other_selection_beats_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    found = compared(capsys, "--selection", "paper,seed", "--ratio", "0.1,0.5,1", "--limit", "2")["pareto"]
    assert [point["label"] for point in found] == ["paper, 0.1", "paper, 0.5", "paper, 1", "seed"]
    whole = found[2]
    assert (whole["kept"], whole["read"]) == (pytest.approx(1, abs=1e-4), 1.0)
    for point in found:
        beaten = [p for p in found if p is not point and p["read"] <= point["read"] and p["kept"] >= point["kept"]]
        assert point["on_front"] == (not beaten)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([QUICKSTART], "nothing to compare; give a list, such as --eviction lru,fifo"),
        ([QUICKSTART, "--eviction", "lru"], "1 configuration, expected 2 to 64; give a list"),
        ([QUICKSTART, "--eviction", "lru,lruu"], "unknown eviction policy 'lruu'; known:"),
        ([QUICKSTART, "--num-blocks", "64,64"], "'64,64' names one value twice"),
        ([QUICKSTART, "--ratio", "0.1,0"], "'0' given, expected a share from 0.001 to 1"),
        ([QUICKSTART, "--ratio", "0.1,nan"], "'nan' given, expected a share from 0.001 to 1"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_two_recordings_are_compared_like_two_configurations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for policy in ("lru", "fifo"):
        paths.append(str(tmp_path / f"{policy}.rec"))
        options = ["--eviction", policy, "--num-blocks", "24", "--kernels", "none", "--record", paths[-1]]
        assert main(["replay", QUICKSTART, "--headless", "--quiet", *options]) == 0
    capsys.readouterr()
    assert main(["compare", *paths, "--json", "--fail-on-diff"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["first_difference"]["num_same_decisions"] == 74
    assert [entry["recording"] for entry in found["recordings"]] == paths
    evictions = [entry["metrics"]["evictions"] for entry in found["recordings"]]
    assert found["differences"]["evictions"] == evictions[1] - evictions[0] != 0
    assert main(["compare", *paths]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[3].startswith("difference")
    assert f"{evictions[1] - evictions[0]:+,}" in table[3]
    assert main(["compare", paths[0], paths[0], "--fail-on-diff"]) == 0


def test_lists_and_a_second_recording_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", QUICKSTART, "other.rec", "--eviction", "lru,fifo"]) == 2
    assert "--eviction: for one trace alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([QUICKSTART, QUICKSTART], f": {QUICKSTART}: is no recording, and two files are compared as recordings: make "
         f"one with `tinyserve-viz replay {QUICKSTART} --record FILE.rec`, or compare one trace under several values "
         "of an option (--eviction lru,fifo)"),
        (["a.rec", "b.rec", "--limit", "3", "--seed", "1", "--plot", "x.png"],
         " compare: --limit, --seed, --plot: for one trace alone; see --help"),
        ([QUICKSTART, "--eviction", "lru,fifo", "--plot", "x.png"],
         " compare: --plot draws what selections keep: compare --selection or --ratio; see --help"),
        ([QUICKSTART, "--selection", "paper,seed", "--plot", "no/x.png"], ": no/x.png: there is no folder "
         f"{Path('no').resolve()}; make it first, or choose another place"),
        ([QUICKSTART, "--eviction", "lru,fifo", "--seed", "3"],
         ": --seed would do nothing, no kernel runs: kernels none was asked for"),
    ],
)  # fmt: skip
def test_what_a_comparison_cannot_use_is_refused_at_once(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *arguments]) == 2
    assert capsys.readouterr() == ("", f"tinyserve-viz{told}\n")


def test_selections_are_drawn_as_text_and_into_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "pareto.svg"
    arguments = ["compare", QUICKSTART, "--selection", "paper,seed", "--limit", "2", "--quiet", "--plot", str(picture)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "What selections keep against what they read" in text
    assert "● paper   ○ seed" in text
    assert picture.read_bytes().startswith(b"<?xml")
    assert main(arguments) == 2
    assert f"{picture}: exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eviction", "lru,fifo", "--plot", "x.png"], "--plot draws what selections keep"),
        (["--selection", "paper,seed", "--limit", "1", "--plot", "x.doc"], "x.doc: has suffix .doc, a plot is one of"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", QUICKSTART, "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_replays_in_processes_give_what_replays_here_give(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--selection", "paper,random,oracle", "--ratio", "0.2,0.4", "--limit", "2"]
    here = compared(capsys, *options, "--jobs", "1")
    monkeypatch.setattr("tinyserve_viz.cli.play._WORTH_S", 0.0)
    assert compared(capsys, *options, "--jobs", "2") == here
    assert [entry["label"] for entry in here["configurations"]][:3] == ["paper, 0.2", "paper, 0.4", "random, 0.2"]


def test_an_error_in_a_process_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyserve_viz.cli.play._WORTH_S", 0.0)
    monkeypatch.setattr("tinyserve_viz.cli.play._play_here", os._exit)  # pickled by name: it ends the process
    options = ["--selection", "paper,random,oracle", "--limit", "1", "--quiet", "--jobs", "2"]
    assert main(["compare", QUICKSTART, *options]) == 2
    assert capsys.readouterr() == (
        "",
        "tinyserve-viz: a process that replayed was ended, perhaps for lack of memory; --jobs 1 needs least of it\n",
    )
