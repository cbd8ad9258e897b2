"""`check`: verdicts, kept digests that name the first changed decision, JUnit XML, exit codes."""

from __future__ import annotations

import json
import shutil
import sqlite3
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.core.events import BlocksEvicted
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.memory.policies.eviction import EVICTION
from tinyserve_viz.memory.policies.eviction.victims import by_smallest_key
from tinyserve_viz.report.junit import Case, as_junit

TRACES = data_folder("traces")
DIGESTS = Path(__file__).resolve().parents[1] / "digests.json"
QUICKSTART = ["check", str(TRACES / "quickstart.json"), "--kernels", "none"]
PREFIX = ["check", str(TRACES / "prefix.json"), "--kernels", "none"]
KEPT = ("quickstart", "prefix", "forks")


@pytest.mark.parametrize("name", KEPT)
def test_the_shipped_traces_decide_what_their_kept_digests_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    kernels = [] if name == "quickstart" else ["--kernels", "none"]
    assert main(["check", str(TRACES / f"{name}.json"), "--digest", str(DIGESTS), *kernels]) == 0
    assert capsys.readouterr().out == f"ok    invariants hold\nok    digest is that in {DIGESTS}\n"


def test_the_ci_checks_every_kept_digest() -> None:
    script = (Path(__file__).resolve().parents[2] / ".ci" / "run").read_text()
    checked = [line.split()[1] for line in script.splitlines() if line.startswith("check ")]
    assert sorted(checked) == sorted(json.loads(DIGESTS.read_text())["replays"]) == sorted(KEPT)


def lower_id_first(state: CacheState, count: int) -> BlocksEvicted:
    """LRU with the other tie-break: of blocks last used in one step the lowest id, not the tail of the prompt."""
    blocks = np.sort(state.cached.order())
    keys = (state.last_use[blocks].astype(np.int64) << 32) + blocks
    return by_smallest_key(state, "lru", blocks, keys, count)


def test_another_tie_break_of_a_policy_fails_and_names_the_first_decision_that_it_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(EVICTION, "lru", lower_id_first)
    assert main([*PREFIX, "--digest", str(DIGESTS)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["ok    invariants hold", f"FAIL  digest is that in {DIGESTS}"]
    assert lines[2].startswith("      the digest is ")
    assert lines[3:] == [
        "      the first 527 decisions are the same; then",
        "        kept: step 373: BlocksEvicted, blocks [193, 192, 191, 190]",
        "        now:  step 373: BlocksEvicted, blocks [190, 191, 192, 193] – evicted 4 cached blocks, least recently "
        "used first (block 190, last used at step 195); next would be block 55 (last used at step 201)",
    ]


def test_other_settings_are_named_beside_the_first_decision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = str(tmp_path / "d.json")
    assert main([*QUICKSTART, "--digest", kept, "--update"]) == 0
    told = capsys.readouterr()
    assert told.out == f"ok    invariants hold\nok    digest kept in {kept}\n"
    assert told.err.startswith(f"tinyserve-viz check: {kept}: quickstart is ")
    assert main([*QUICKSTART, "--digest", kept, "--eviction", "fifo"]) == 1
    out = capsys.readouterr().out
    assert "      the settings are not those that were kept: eviction lru → fifo\n" in out
    assert "        kept: step 43: BlocksEvicted, blocks [9]\n" in out
    assert "now:  step 43: BlocksEvicted, blocks [0] – evicted 1 cached block, longest in the prefix index" in out


def test_a_digest_file_changes_only_where_a_replay_does(tmp_path: Path) -> None:
    kept = tmp_path / "d.json"
    shutil.copy(DIGESTS, kept)
    assert main([*PREFIX, "--digest", str(kept), "--update", "--quiet"]) == 0
    before = kept.read_bytes()
    assert main([*PREFIX, "--digest", str(kept), "--update", "--quiet"]) == 0
    assert kept.read_bytes() == before
    assert main([*QUICKSTART, "--name", "another", "--digest", str(kept), "--update", "--quiet"]) == 0
    old, new = (json.loads(data)["replays"] for data in (before, kept.read_bytes()))
    assert list(new) == ["another", "forks", "prefix", "quickstart"]
    assert {name: new[name] for name in old} == old


def test_a_replay_that_only_ends_early_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = str(tmp_path / "d.json")
    assert main([*QUICKSTART, "--digest", kept, "--update"]) == 0
    text = json.loads((TRACES / "quickstart.json").read_text())
    text["requests"].append({"id": "late", "arrival_ms": 900_000, "prompt_len": 5, "output_len": 1})
    longer = tmp_path / "longer.json"
    longer.write_text(json.dumps(text))
    assert main(["check", str(longer), "--kernels", "none", "--digest", kept]) == 1
    assert "kept: the replay was over" in capsys.readouterr().out


def test_more_decisions_than_a_file_should_hold_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tinyserve_viz.analysis.digest_file.MOST_DECISIONS", 100)
    kept = tmp_path / "d.json"
    assert main([*QUICKSTART, "--digest", str(kept), "--update"]) == 0
    assert kept.stat().st_size < 2000
    assert main([*QUICKSTART, "--digest", str(kept)]) == 0
    assert main([*QUICKSTART, "--digest", str(kept), "--check", "every"]) == 0  # which decides nothing
    assert main([*QUICKSTART, "--digest", str(kept), "--num-blocks", "41"]) == 1
    assert "decisions are not kept: record both and use `compare A B`" in capsys.readouterr().out


def test_assertions_are_judged_one_by_one_and_failures_show_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    tests = ["requests.rejected == 0", "prefix.token_hit_rate >= 0.5 or blocks.evictions < 3", "selection == null"]
    command = [*QUICKSTART, *(part for text in tests for part in ("--assert", text))]
    assert main(command) == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    invariants hold",
        "ok    requests.rejected == 0",
        "FAIL  prefix.token_hit_rate >= 0.5 or blocks.evictions < 3",
        "      prefix.token_hit_rate is 0.17597292724196278",
        "      blocks.evictions is 20",
        "ok    selection == null",
    ]
    assert main([*command, "--quiet"]) == 1
    assert capsys.readouterr().out.startswith("FAIL  prefix.token_hit_rate")
    assert main([*command, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["passed"]) == (1, False)
    assert [check["passed"] for check in found["checks"]] == [True, True, False, True]
    assert found["checks"][2]["values"] == {"prefix.token_hit_rate": 0.17597292724196278, "blocks.evictions": 20}


def test_a_recording_is_held_to_its_own_digest_too(
    quickstart_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["check", str(quickstart_recording), "--digest", str(DIGESTS), "--assert", "complete"]
    assert main(command) == 0
    assert "ok    events have the recorded digest\n" in capsys.readouterr().out
    changed = tmp_path / "changed.rec"
    shutil.copy(quickstart_recording, changed)
    with sqlite3.connect(changed) as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'digest'", (b"0" * 64,))
    assert main(["check", str(changed)]) == 1
    assert "FAIL  events have the recorded digest\n" in capsys.readouterr().out


def test_junit_has_a_case_for_every_verdict(tmp_path: Path) -> None:
    out = tmp_path / "junit.xml"
    assert main([*QUICKSTART, "--assert", "steps < 100", "--junit", str(out), "--quiet"]) == 1
    root = ET.parse(out).getroot()
    suite = root[0]
    assert (root.tag, suite.tag, suite.get("name")) == ("testsuites", "testsuite", "quickstart")
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite] == ["invariants hold", "steps < 100"]
    failure = suite[1][0]
    assert (failure.tag, failure.get("message"), failure.text) == ("failure", "steps is 146", "steps is 146")


def test_junit_stays_well_formed_whatever_the_names_hold() -> None:
    text = as_junit('<"a&b\x01', [Case("x < 'y'", False, "line <1>\n\x00line 2"), Case("ok", True)], 1.5)
    suite = ET.fromstring(text)[0]
    assert suite.get("name") == '<"a&b?'
    assert suite[0][0].text == "line <1>\n?line 2"


def test_a_replay_without_a_digest_is_not_compared_in_silence(
    quickstart_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = tmp_path / "measured.rec"
    shutil.copy(quickstart_recording, changed)
    with sqlite3.connect(changed) as db:
        settings = json.loads(db.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()[0])
        settings["engine"]["clock"] = "measured"
        db.execute("UPDATE meta SET value = ? WHERE key = 'settings'", (json.dumps(settings).encode(),))
    assert main(["check", str(changed), "--digest", str(DIGESTS)]) == 2
    assert "quickstart: has no digest to keep or to compare: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--assert", "stepz > 1"], "tinyserve-viz: 'stepz > 1': unknown name 'stepz'; near: steps\n"),
        (["--update"], "tinyserve-viz check: --update writes to --digest FILE, which is missing; see --help\n"),
        (["--digest", "none.json"], "tinyserve-viz: none.json: No such file or directory; --update writes it\n"),
        (["--digest", str(TRACES / "README.md")], "is no digest file ("),
        (["--digest", str(DIGESTS), "--name", "x"], "has forks, prefix, quickstart, no 'x'; --update adds it\n"),
        (["--rule", "x"], "tinyserve-viz check: --rule 'x', expected NAME=VALUE; see --help\n"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICKSTART, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert line in printed.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--junit", "no/x.xml"], ": no/x.xml: there is no folder {here}/no; make it first, or choose another place"),
        (["--junit", "x.html"], ": x.html: has suffix .html, JUnit XML ends in .xml"),
        (["--digest", "d.json"], ": d.json: No such file or directory; --update writes it"),
        (["--digest", "no/d.json", "--update"],
         ": no/d.json: there is no folder {here}/no; make it first, or choose another place"),
        (["--assert", "steps > open('x')"], ": \"steps > open('x')\": \"open('x')\" is not allowed; names, numbers, "
         "+ - * /, comparisons, and, or, not, abs, min and max are"),
        (["--name", "x"], " check: --name names an entry of --digest FILE, which is missing; see --help"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_or_written_is_said_before_the_trace_is_read(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "missing.json", *options]) == 2
    assert capsys.readouterr() == ("", f"tinyserve-viz{told.format(here=tmp_path)}\n")
