"""`replay` from the command line: one object or one text on stdout, messages on stderr, no wait for a terminal."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyserve_viz.cli.main import main
from tinyserve_viz.core.events import StepEnded
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.codec import encode_event
from tinyserve_viz.recording.timeline import Timeline

TRACES = data_folder("traces")
QUICKSTART = str(TRACES / "quickstart.json")
HEADLESS = ["replay", QUICKSTART, "--kernels", "none", "--headless"]

NAMES: dict[str, Any] = {  # what the summary promises to programs that read it; None: no further names
    "schema": None,
    "trace": {"name", "format", "num_requests"},
    "backend": None,
    "device": None,
    "kernels_run": None,
    "content": None,
    "config": {"engine", "model", "rules"},
    "steps": None,
    "wall_s": None,
    "virtual_time_s": None,
    "requests": {"completed", "preemptions", "rejected", "cancelled"},
    "blocks": {
        "num_blocks", "block_size", "peak_used", "allocations", "frees", "copies_on_write", "evictions",
        "compaction_moves", "leaked",
    },
    "prefix": {"prompt_tokens", "hit_tokens", "token_hit_rate", "misses"},
    "utilization": {"decode", "physical", "mean", "waste"},
    "fragmentation": {"internal", "external", "frag_ratio"},
    "selection": None,
    "kernels": None,
    "invariants": {"checked", "violations"},
    "digest": None,
}  # fmt: skip


def summary_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    """The one JSON object that a call prints."""
    assert main([*arguments, "--json"]) == code
    printed = capsys.readouterr()
    assert re.fullmatch(r"(tinyserve-viz: backend (numpy: .+|cuda on .+)\n)?", printed.err)
    assert printed.out.count("\n") == 1
    found: dict[str, Any] = json.loads(printed.out)
    return found


@pytest.mark.parametrize("kernels", ["none", "decisions", "all"])
def test_the_json_summary_has_every_promised_name(kernels: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(["replay", QUICKSTART, "--headless", "--kernels", kernels], capsys)
    for name, inner in NAMES.items():
        assert name in summary
        assert inner is None or inner <= set(summary[name]), name
    assert summary["schema"] == 1
    assert summary["trace"] == {"name": "quickstart", "format": "json", "num_requests": 10}
    assert set(summary["prefix"]["misses"]) == {"capped", "tail", "cold", "orphaned", "preempted", "evicted"}
    names = {"name", "calls", "total_us", "median_us", "bytes", "gb_per_s", "provenance"}
    assert all(names <= set(kernel) for kernel in summary["kernels"])
    assert bool(summary["kernels"]) == (kernels != "none")
    assert (summary["selection"] is None) == (kernels == "none")


def test_a_recording_gives_the_summary_of_its_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "run.rec")
    live = summary_of([*HEADLESS, "--record", path], capsys)
    read = summary_of(["replay", path, "--headless"], capsys)
    assert {name: value for name, value in read.items() if name not in live} == {
        "complete": True,
        "digest_matches": True,
    }
    assert {name: read[name] for name in live} == live


@pytest.mark.parametrize("option", [["--record", "again.rec"], ["--decisions", "d.jsonl"]])
def test_a_recording_is_not_recorded_again(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "run.rec")
    assert main([*HEADLESS, "--record", path]) == 0
    capsys.readouterr()
    assert main(["replay", path, "--headless", *option]) == 2
    assert capsys.readouterr() == (
        "",
        f"tinyserve-viz: {path}: is a recording already; --record and --decisions take a trace\n",
    )


def test_a_changed_event_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.rec"
    assert main([*HEADLESS, "--record", str(path)]) == 0
    capsys.readouterr()
    with Timeline(path) as timeline:
        number, _, event = next(timeline.events_of_kind(StepEnded))
    assert isinstance(event, StepEnded)
    _, _, payload, _ = encode_event(replace(event, num_waiting=event.num_waiting + 1))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE events SET payload = ? WHERE idx = ?", (payload, number))
    db.close()
    assert main(["replay", str(path), "--headless", "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["digest_matches"] is False
    assert printed.err == f"tinyserve-viz: {path}: the digest of the events is not the recorded one\n"


def test_same_trace_and_seed_same_digest_and_another_policy_another(capsys: pytest.CaptureFixture[str]) -> None:
    digests = [
        summary_of([*HEADLESS, *more], capsys)["digest"]
        for more in ([], [], ["--check", "every"], ["--eviction", "fifo"], ["--prefix-caching", "off"])
    ]
    assert len(set(digests[:3])) == 1
    assert len(set(digests[2:])) == 3


@pytest.mark.parametrize(
    ("options", "section", "expected"),
    [
        (["--block-size", "32"], "block_size", 32),
        (["--num-blocks", "90"], "num_blocks", 90),
        (["--max-batch-tokens", "77"], "max_batch_tokens", 77),
        (["--max-num-seqs", "3"], "max_num_seqs", 3),
        (["--allocator", "contiguous", "--max-model-len", "400"], "max_model_len", 400),
        (["--eviction", "clock"], "eviction", "clock"),
        (["--prefix-caching", "off"], "prefix_caching", False),
        (["--selection", "seed"], "selection", "seed"),
        (["--ratio", "0.25"], "ratio_permille", 250),
    ],
)
def test_options_win_over_the_file(
    options: list[str], section: str, expected: object, capsys: pytest.CaptureFixture[str]
) -> None:
    fragmentation = str(TRACES / "fragmentation.json")  # without prefix ids: it takes every block size
    kernels = "decisions" if section in ("selection", "ratio_permille") else "none"
    command = ["replay", fragmentation, "--limit", "3", "--kernels", kernels, "--headless"]
    summary = summary_of([*command, *options], capsys)
    assert summary["config"]["engine"][section] == expected


def test_limit_and_seed(capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(["replay", QUICKSTART, "--headless", "--limit", "2", "--seed", "9"], capsys)
    assert summary["trace"]["num_requests"] == 2
    assert summary["content"]["seed"] == 9


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--num-blocks", "0"], "argument --num-blocks: '0' given, expected a whole number, 1 or more; see --help"),
        (["--num-blocks", "1e3"], "argument --num-blocks: '1e3' given, expected a whole number, 1 or more; see --help"),
        (["--num-blocks", "9" * 12], "num_blocks is 999999999999, expected a whole number from 1 to 67108864"),
        (["--block-size", "-4"], "argument --block-size: '-4' given, expected a whole number, 1 or more; see --help"),
        (["--block-size", "4096"], "block_size is 4096, expected a whole number from 1 to 1024"),
        (["--block-size", "24"], "block_size is 24, expected a divisor of quickstart's hash_block 16"),
        (["--eviction", "lruu"], "unknown eviction 'lruu'; known: clock, fifo, lfu, lru, seed"),
        (["--eviction", "belady"], "eviction 'belady' knows the rest of the trace, which no server does"),
        (["--allocator", "slab"], "argument --allocator: invalid choice: 'slab'"),
        (["--profile", "sglang"], "unknown profile 'sglang'; known: tinyserve, vllm"),
        (["--arrivals", "never"], "unknown arrivals 'never'; known: "),
        (["--rule", "watermark"], "--rule 'watermark', expected NAME=VALUE; see --help"),
        (["--rule", "watermark=maybe"], "--rule watermark=maybe, expected true or false; see --help"),
        (["--rule", "victim=oldest"], "unknown victim 'oldest'; known: latest_arrived, last_running"),
        (["--rule", "colour=red"], "unknown rule 'colour'; known: "),
        (["--ratio", "nan"], "argument --ratio: 'nan' given, expected a share from 0.001 to 1; see --help"),
        (["--ratio", "30"], "argument --ratio: '30' given, expected a share from 0.001 to 1; see --help"),
        (["--ratio", "0"], "argument --ratio: '0' given, expected a share from 0.001 to 1; see --help"),
        (["--ratio", "1.5"], "argument --ratio: '1.5' given, expected a share from 0.001 to 1; see --help"),
        (["--ratio", "0.3", "--budget-blocks", "4"], "not allowed with argument --ratio; see --help"),
        (["--budget-blocks", "0"], "argument --budget-blocks: '0' given, expected a whole number, 1 or more; see"),
        (["--kernels", "decisions", "--budget-blocks", "99"], "budget_blocks is 99, but the longest sequence of the"),
        (["--content", "noise"], "argument --content: 'noise' given, expected topics, iid or npz:FILE; see --help"),
        (["--content", "npz"], "argument --content: 'npz' given, expected topics, iid or npz:FILE; see --help"),
        (["--content", "npz:no.npz"], "no.npz: No such file or directory, expected captured content (.npz)"),
        (["--limit", "0"], "argument --limit: '0' given, expected a whole number, 1 or more; see --help"),
        (["--kernels", "all", "--allocator", "exact"], "kernels 'all' need the paged allocator, not 'exact'"),
        (["--selection", "best"], "unknown selection 'best'; known: oracle, paper, random, recency, seed, "),
        (["--headles"], "unrecognized arguments: --headles; see --help"),
        (["--profile", "vllm", "--num-blocks", "1"], "num_blocks is 1, expected 2 or more: block 0 is the null block"),
    ],
)
def test_what_is_wrong_is_one_line(options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", QUICKSTART, "--headless", "--kernels", "none", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("tinyserve-viz")
    assert complaint in printed.err
    assert printed.err.count("\n") == 1


def test_rules_are_explained_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", QUICKSTART, "--explain", "--profile", "vllm", "--rule", "watermark=true", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = {rule["rule"]: rule["value"] for rule in found["rules"]}
    assert (found["schema"], found["profile"]) == (1, "vllm")
    assert (values["null_block"], values["watermark"], values["free_order"]) == (True, True, "queue")
    assert main(["replay", QUICKSTART, "--explain"]) == 0
    assert "\nwatermark               true            admission keeps a share of" in capsys.readouterr().out


def test_decisions_are_one_line_a_step_and_no_file_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.jsonl"
    summary = summary_of([*HEADLESS, "--decisions", str(path)], capsys)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(summary["steps"]))
    before = path.read_bytes()
    assert main([*HEADLESS, "--decisions", str(path)]) == 2
    assert "exists already, expected a new name (--force replaces it)" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert summary_of([*HEADLESS, "--decisions", str(path), "--force", "--limit", "1"], capsys)["steps"] < len(lines)
    assert len(path.read_bytes()) < len(before)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--record", "no/x.rec"], ": no/x.rec: there is no folder {here}/no; make it first, or choose another place"),
        (["--record", "x.png"], ": x.png: has suffix .png, a recording ends in .rec"),
        (["--decisions", "x.rec"], ": x.rec: has suffix .rec, a file of decisions ends in .jsonl"),
        (["--screenshot", "old.svg"], ": old.svg: exists already, expected a new name (--force replaces it)"),
        (["--force"], " replay: --force replaces what --record writes, which is not given; see --help"),
        (["--panel", "why", "--headless"], " replay: --panel without the TUI; see --help"),
        (["--explain", "--record", "x.rec"], " replay: --explain lists rules and stops, without --record; see --help"),
    ],
)
def test_what_cannot_be_written_or_seen_is_refused_before_the_trace_is_read(
    options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.svg").touch()
    assert main(["replay", "missing.json", *options]) == 2
    assert capsys.readouterr() == ("", f"tinyserve-viz{told.format(here=tmp_path)}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["old.svg"]


def test_a_summary_without_kernels_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(TRACES / "long.json"), "--headless", "--backend", "numpy"]) == 0
    told = "kernels none (526,416 tokens are more than 200,000; --kernels decisions runs those that decide)"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE])
def test_without_a_terminal_the_summary_is_printed_and_nothing_waits(stdin: int) -> None:
    command = [sys.executable, "-m", "tinyserve_viz", "replay", QUICKSTART, "--kernels", "none"]
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:  # the pipe stays open: whoever reads from it would wait for ever
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.wait(timeout=60) == 0
        assert process.stdout.read().startswith("trace          quickstart (json, 10 requests, arrivals trace)\n")
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--num-blocks", "9", "--eviction", "fifo"], "--num-blocks, --eviction"),
        (["--limit", "3"], "--limit"),
        (["--backend", "cuda"], "--backend"),
        (["--selection", "oracle", "--ratio", "0.5"], "--selection, --ratio"),
    ],
)
@pytest.mark.parametrize("command", ["replay", "check"])
def test_options_that_set_up_a_replay_are_refused_on_a_recording(
    command: str, given: list[str], names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "run.rec")
    assert main([*HEADLESS, "--record", path]) == 0
    capsys.readouterr()
    assert main([command, path, *given]) == 2
    message = f"tinyserve-viz {command}: {path} is a recording, {names} can change nothing in it; see --help\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize("given", [[], ["--check", "every"]])
def test_a_recording_alone_may_be_checked_at_every_step(given: list[str], tmp_path: Path) -> None:
    path = str(tmp_path / "run.rec")
    assert main([*HEADLESS, "--record", path]) == 0
    assert main(["replay", path, "--headless", *given]) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--screenshot", "x.png"], "--screenshot x.png, expected a name in .svg; see --help"),
        (["--screenshot", "x.svg", "--json"], "--screenshot writes the picture alone, without --json; see --help"),
        (
            ["--screenshot", "x.svg", "--record", "r", "--decisions", "d"],
            "--screenshot writes the picture alone, without --record, --decisions; see --help",
        ),
        (["--at", "3", "--size", "80x24"], "--at and --size without --screenshot FILE.svg; see --help"),
    ],
)
def test_what_a_screenshot_cannot_do_is_said(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", QUICKSTART, *given]) == 2
    assert capsys.readouterr() == ("", f"tinyserve-viz replay: {message}\n")


def test_a_screenshot_has_no_step_after_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "x.svg"
    assert main(["replay", QUICKSTART, "--kernels", "none", "--screenshot", str(picture), "--at", "146"]) == 2
    assert capsys.readouterr().err == f"tinyserve-viz: {QUICKSTART}: has steps 0 to 145, --at is 146\n"
    assert not picture.exists()


def test_a_screenshot_can_be_drawn_in_ascii(tmp_path: Path) -> None:
    plain, ascii_only = tmp_path / "plain.svg", tmp_path / "ascii.svg"
    drawn = ["replay", QUICKSTART, "--kernels", "none", "--at", "79"]
    assert main([*drawn, "--screenshot", str(plain)]) == 0
    assert main([*drawn, "--screenshot", str(ascii_only), "--ascii"]) == 0
    assert "░" in plain.read_text("utf-8")
    assert "░" not in ascii_only.read_text("utf-8")


@pytest.mark.parametrize("command", [["curve"], ["import", "-o", "-"]])
def test_a_recording_where_a_trace_is_expected_is_called_one(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "run.rec")
    assert main([*HEADLESS, "--record", path]) == 0
    capsys.readouterr()
    assert main([*command, path]) == 2
    assert capsys.readouterr().err == (
        f"tinyserve-viz: {path}: is a recording (or another SQLite file), expected a trace\n"
    )


@pytest.mark.parametrize(
    ("trace", "given", "told"),
    [
        ("quickstart", ["--allocator", "exact", "--ratio", "0.5", "--sinks", "1"],
         "--ratio, --sinks would do nothing, no kernel runs: allocator 'exact' has none"),
        ("long", ["--budget-blocks", "4"], "--budget-blocks would do nothing, no kernel runs: 526,416 tokens are more "
         "than 200,000; --kernels decisions runs those that decide"),
        ("quickstart", ["--kernels", "none", "--verify", "off", "--seed", "3", "--content", "iid"],
         "--content, --seed, --verify would do nothing, no kernel runs: kernels none was asked for"),
        ("quickstart", ["--kernels", "decisions", "--attention", "flash"],
         "--attention would do nothing: kernels 'decisions' leaves attention out"),
        ("quickstart", ["--hot-blocks", "3"], "--hot-blocks would do nothing: only eviction seed has a hot region"),
        ("quickstart", ["--clock-layers", "3"],
         "--clock-layers would do nothing: only --clock measured counts layers"),
        ("quickstart", ["--max-model-len", "9"], "--max-model-len would do nothing: only contiguous reserves by it"),
        ("quickstart", ["--allocator", "exact", "--prefix-caching", "on"],
         "prefix caching needs the paged allocator, not 'exact'"),
    ],
)  # fmt: skip
def test_what_would_do_nothing_is_refused_with_the_reason(
    trace: str, given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(TRACES / f"{trace}.json")
    assert main(["replay", path, "--headless", "--backend", "numpy", *given]) == 2
    assert capsys.readouterr() == ("", f"tinyserve-viz: {told}\n")
