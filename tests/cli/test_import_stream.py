"""`import` of a KV-event stream: block lives by hash, copies, gaps, and occupancy that agrees with the server's own."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_vllm_profile import pressure, under_pressure
from tests.recording.test_timeline import same
from tests.trace.streams import cleared, frames, lines, removed, stored
from tinyserve_viz.analysis.sentences import sentence
from tinyserve_viz.cli.import_stream import import_stream, summarize_stream_recording
from tinyserve_viz.cli.main import main
from tinyserve_viz.cli.session import prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.stream import StreamState, check_stream
from tinyserve_viz.recording.timeline import Timeline


def imported(folder: Path, data: bytes, **options: Any) -> tuple[Path, dict[str, Any]]:
    """The recording of a stream, and its summary."""
    source, output = folder / "stream", folder / "stream.rec"
    source.write_bytes(data)
    return output, import_stream(str(source), output, force=True, **options)


def occupancy(recording: Path) -> list[tuple[int, int]]:
    """(sequence, blocks cached after the batch) of every batch."""
    with Timeline(recording) as timeline:
        return [
            (event.sequence, event.cached) for _, event in timeline.events() if isinstance(event, ev.StreamBatchEnded)
        ]


def words(recording: Path) -> list[str]:
    """Every event in words."""
    with Timeline(recording) as timeline:
        state, found = timeline.header.empty_state(), []
        for _, event in timeline.events():
            found.append(sentence(event, state))
            apply(state, event)
        return found


# ── small streams by hand ───────────────────────────────────────────────────────────────────────────────────────────


def test_of_two_copies_of_one_hash_the_removal_of_one_leaves_the_other(tmp_path: Path) -> None:
    recording, summary = imported(tmp_path, frames([stored(5, 6)], [stored(6, after=5)], [removed(6)], [removed(6)]))
    assert occupancy(recording) == [(0, 2), (1, 3), (2, 2), (3, 1)]
    assert summary["blocks"]["most_copies"] == 2
    with Timeline(recording) as timeline:
        states = [timeline.seek(timeline.first_event_of_step(batch)) for batch in (2, 3, 4)]
    assert all(isinstance(state, StreamState) for state in states)
    assert [state.content[state.place >= 0].tolist() for state in states] == [[5, 6, 6], [5, 6], [5]]  # type: ignore[attr-defined]
    assert [state.depth[state.place >= 0].tolist() for state in states] == [[0, 1, 1], [0, 1], [0]]  # type: ignore[attr-defined]
    said = words(recording)
    assert said[2] == (
        "stored 1 block as our block 2 (hash 0000000000000006) behind 0000000000000005, logical block 1 of a prefix; "
        "1 content of them now in one copy more; for which request is not told"
    )
    assert said[4] == "evicted 1 cached block, our block 1 (hash 0000000000000006, stored 2 batches ago, 1 copy left)"


def test_the_same_hash_in_two_places_is_two_contents(tmp_path: Path) -> None:
    batches = ([stored(5), stored(5, medium="CPU"), stored(5, group_idx=1)], [removed(5, medium="CPU")])
    recording, summary = imported(tmp_path, frames(*batches))
    assert occupancy(recording) == [(0, 3), (1, 2)]
    assert summary["blocks"]["most_copies"] == 1
    assert summary["blocks"]["places"] == [
        {"medium": "GPU", "group": 0, "cached": 1},
        {"medium": "CPU", "group": 0, "cached": 0},
        {"medium": "GPU", "group": 1, "cached": 1},
    ]


def test_gaps_are_shown_as_gaps_and_what_they_hid_is_not_invented(tmp_path: Path) -> None:
    batches = ([stored(1)], [removed(9), stored(3, after=2)], [stored(4)])
    recording, summary = imported(tmp_path, frames(*batches, sequences=[2, 3, 7]))
    assert summary["stream"]["gaps"] == {
        "number": 2,
        "missing_batches": 5,
        "first": [{"sequence": 0, "missing": 2}, {"sequence": 4, "missing": 3}],
    }
    assert summary["blocks"]["removed_but_never_stored"] == 1
    assert occupancy(recording) == [(2, 1), (3, 2), (7, 3)]
    said = words(recording)
    assert said[0] == (
        "gap: 2 batches missing (sequence 0 to 1); what they stored and removed is unknown, "
        "so counts from here on are of what is seen"
    )
    assert said[3] == "removed 1 block that this stream never showed being stored"
    assert said[4] == (
        "stored 1 block as our block 1 (hash 0000000000000003) behind 0000000000000002, "
        "which the stream has not shown; for which request is not told"
    )
    assert said[5] == "batch 3 ended, 0.500 s after the first: 1 stored, 0 evicted, 1 removed unseen; 2 blocks cached"


def test_a_cleared_cache_is_empty_and_fills_again(tmp_path: Path) -> None:
    recording, summary = imported(tmp_path, frames([stored(1, 2)], [cleared()], [stored(1)], [removed(2)]))
    assert occupancy(recording) == [(0, 2), (1, 0), (2, 1), (3, 1)]
    assert summary["stream"]["events"]["AllBlocksCleared"] == {"events": 1, "blocks": 2}
    assert (summary["blocks"]["evictions"], summary["blocks"]["removed_but_never_stored"]) == (0, 1)
    assert "the server cleared its whole prefix cache: 2 blocks gone" in words(recording)


def test_an_event_of_unknown_type_is_named_and_not_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "s.frames", tmp_path / "s.rec"
    source.write_bytes(frames([stored(1), {"type": "BlockMoved", "to": 3}, ["BlockMoved", 4]]))
    assert main(["import", str(source), "-o", str(output)]) == 0
    assert "NOT APPLIED  events of unknown types: BlockMoved 2" in capsys.readouterr().out
    assert words(output)[1] == "an event of unknown type 'BlockMoved': not applied, what it did is unknown"


def test_what_the_stream_does_not_tell_is_null_and_named(tmp_path: Path) -> None:
    _, summary = imported(tmp_path, frames([stored(1)]))
    assert (summary["requests"], summary["prefix"], summary["trace"]["num_requests"]) == (None, None, None)
    assert summary["blocks"]["num_blocks"] is None
    assert summary["stream"]["untold"][:4] == ["requests", "block ids", "references", "hits"]
    _, summary = imported(tmp_path, frames([stored(1)]), num_blocks=50)
    assert summary["blocks"]["num_blocks"] == 50


# ── any stream ──────────────────────────────────────────────────────────────────────────────────────────────────────

hashes = st.integers(0, 6)
batches = st.lists(
    st.lists(
        st.one_of(
            st.builds(lambda h, p: stored(*h, after=p), st.lists(hashes, min_size=1, max_size=3), st.none() | hashes),
            st.builds(
                lambda h, m: removed(*h, medium=m), st.lists(hashes, max_size=3), st.sampled_from(["GPU", "CPU"])
            ),
            st.builds(cleared),
            st.just({"type": "Other"}),
        ),
        max_size=4,
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60)
@given(batches, st.lists(st.integers(1, 3), min_size=8, max_size=8))
def test_any_stream_counts_like_a_multiset_and_can_be_sought(stream: list[list[Any]], steps: list[int]) -> None:
    sequences = np.cumsum(steps[: len(stream)]).tolist()
    with tempfile.TemporaryDirectory() as folder:
        recording, summary = imported(Path(folder), frames(*stream, sequences=sequences))
        held: Counter[Any] = Counter()
        expected = []
        for events in stream:
            for event in events:
                if event["type"] == "AllBlocksCleared":
                    held.clear()
                for content in event.get("block_hashes", ()):
                    key = (event["medium"], content)
                    held[key] = max(0, held[key] + (1 if event["type"] == "BlockStored" else -1))
            expected.append(held.total())
        assert [cached for _, cached in occupancy(recording)] == expected
        assert summary["blocks"]["distinct_hashes"] == len(+held)
        assert summary["invariants"]["violations"] == 0
        with Timeline(recording) as timeline:
            state = timeline.header.empty_state()
            assert isinstance(state, StreamState)
            for place, (_, event) in enumerate(timeline.events()):
                assert timeline.seek(place).equals(state)
                apply(state, event)
                assert check_stream(state) == []
            assert timeline.seek(timeline.num_events).equals(state)
            again = summarize_stream_recording(timeline)
        assert again["digest_matches"]
        assert {**again, "complete": None, "digest_matches": None} == {
            **summary,
            "complete": None,
            "digest_matches": None,
        }


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = frames([stored(1, 2)], [removed(2)], [stored(3)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            frames([stored(1)], [stored(2)], sequences=[4, 4]),
            ": byte 123, frame 1: sequence number 4 after 4, expected 5 or more "
            "(a server that was restarted begins again: split the file there)",
        ),
        (
            frames([stored(1)], rank=0) + frames([stored(2)], first=1, rank=1),
            ": byte 123, frame 1: data_parallel_rank is 1, expected 0: "
            "each rank has a cache of its own; split the file by rank",
        ),
        (GOOD[:-3], ": byte 197, frame 2: cut after 108 of 111 bytes of its payload"),
    ],
    ids=["repeated sequence number", "another rank", "cut"],
)
def test_a_bad_stream_is_one_line_and_leaves_an_existing_recording_alone(
    data: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "s", tmp_path / "s.rec"
    source.write_bytes(GOOD)
    assert main(["import", str(source), "-o", str(output), "--quiet"]) == 0
    before = output.read_bytes()
    capsys.readouterr()
    source.write_bytes(data)
    command = ["import", str(source), "-o", str(output), "--force", "--format", "kv-events"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"tinyserve-viz: {source}{message}\n")
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.rec"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-blocks", "1"], "tinyserve-viz: {s}: 2 blocks are in the cache at once, expected at most 1\n"),
        (["--limit", "2"], "tinyserve-viz import: --limit counts requests, KV events name none; see --help\n"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "s"
    source.write_bytes(GOOD)
    assert main(["import", str(source), "-o", str(tmp_path / "s.rec"), *options]) == 2
    assert capsys.readouterr().err == message.format(s=source)
    assert main(["import", str(source), "-o", "-"]) == 2
    assert "-o needs a file name" in capsys.readouterr().err


def test_a_recorded_stream_is_summarized_like_its_import_and_compares_with_no_decisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "s.jsonl.gz", tmp_path / "s.rec"
    source.write_bytes(gzip.compress(lines([stored(1, 2)], [removed(2)], first=0)))
    assert main(["import", str(source), "-o", str(output), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["replay", str(output), "--headless", "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second.pop("complete"), second.pop("digest_matches")) == (True, True)
    assert first.pop("output") == str(output)
    assert first == second
    assert first["trace"] == {"name": "s", "format": "kv-events", "num_requests": None}
    assert main(["replay", str(output), "--headless"]) == 0
    assert "requests unknown" in capsys.readouterr().out
    decisions = tmp_path / "d.jsonl"
    decisions.write_text('{"step":0,"run":[],"preempted":[],"finished":[],"free":1}\n')
    for command in (["--decisions", str(decisions)], [str(output)]):
        assert main(["compare", str(output), *command]) == 2
        assert capsys.readouterr().err == (
            f"tinyserve-viz: {output}: records a KV-event stream, which names no requests; "
            "expected the recording of a replay\n"
        )
    for refused in (["plot", "--kind", "latency"], ["export", "--format", "csv"], ["export", "--format", "chrome"]):
        assert main([refused[0], str(output), *refused[1:]]) == 2
        assert "KV-event stream" in capsys.readouterr().err
    assert main(["plot", str(output), "--json"]) == 0
    cached, changes = json.loads(capsys.readouterr().out)["chart"]["panels"]
    assert [(row["name"], row["y"]) for row in cached["series"]] == [("cached", [2, 1])]
    told = [(row["name"], row["y"]) for row in changes["series"]]
    assert told == [("stored", [2, 0]), ("evicted or cleared", [0, 1])]
    assert main(["export", str(output), "--format", "jsonl", "-o", str(tmp_path / "x.jsonl")]) == 0
    kinds = [json.loads(line).get("kind") for line in (tmp_path / "x.jsonl").read_text().splitlines()[1:]]
    assert kinds == ["StreamStored", "StreamBatchEnded", "StreamRemoved", "StreamBatchEnded"]


# ── against a server's own account ──────────────────────────────────────────────────────────────────────────────────


def test_the_stream_of_a_replay_under_vllms_rules_has_its_occupancy_at_every_step(tmp_path: Path) -> None:
    """The engine under vLLM's rules, told as vLLM tells it: a batch a step, one removal a block."""
    header = prepare(pressure(), under_pressure())
    recording = tmp_path / "run.rec"
    run_replay(header, recording)
    stream: list[list[Any]] = [[]]
    cached = []
    with Timeline(recording) as timeline:
        state = timeline.header.empty_state()
        for _, event in timeline.events():
            apply(state, event)
            if isinstance(event, ev.BlocksEvicted):
                stream[-1] += [removed(content) for content in event.hashes.tolist()]
            elif isinstance(event, ev.BlocksCached):
                stream[-1].append(stored(*event.hashes.tolist(), size=16))
            elif isinstance(event, ev.StepEnded):
                cached.append(int((state.hash >= 0).sum()))
                stream.append([])
        copies = np.bincount(state.hash[state.hash >= 0]).max()
    recording, summary = imported(tmp_path, frames(*stream[:-1]))
    assert [number for _, number in occupancy(recording)] == cached
    assert summary["blocks"]["removed_but_never_stored"] == 0
    assert summary["blocks"]["most_copies"] >= max(2, copies)  # prompts of whole blocks make second copies
    assert summary["blocks"]["evictions"] > 100


def cached_by_decisions(path: Path, block_size: int) -> dict[int, int]:
    """Blocks with a hash after every step, by the time in µs at which it ends, from vLLM's decision lines alone.

    A block that is handed out loses its hash, a block that the step fills gets one. A step takes 10,000 µs
    and 15 a scheduled token.
    """
    held: dict[int, list[int]] = {}
    hashed: set[int] = set()
    counts, time_us = {}, 0
    for text in path.read_bytes().splitlines():
        line = json.loads(text)
        for request, kind, before, count, blocks in line["run"]:
            if kind == "run":
                held[request] += blocks
                hashed -= set(blocks)
            else:
                held[request] = list(blocks)
                hashed -= set(blocks[before // block_size :])
            hashed |= set(held[request][before // block_size : (before + count) // block_size])
            time_us += 15 * count
        time_us += 10_000
        counts[time_us] = len(hashed)
    return counts


@pytest.fixture(scope="module")
def oracle() -> Path:
    folder = os.environ.get("TINYSERVE_ORACLE")
    if not folder:
        pytest.skip("TINYSERVE_ORACLE is unset: it names the folder with vLLM's decisions")
    return Path(folder)


@pytest.mark.parametrize("kind", ["frames", "jsonl"])
def test_vllms_own_stream_agrees_with_its_totals_and_decisions(kind: str, oracle: Path, tmp_path: Path) -> None:
    totals = json.loads((oracle / "small.json").read_text())
    recording, summary = imported(tmp_path, (oracle / f"small.{kind}").read_bytes())
    told = summary["stream"]["events"]
    for name in ("BlockStored", "BlockRemoved"):
        assert told[name] == totals["events"][name]
    assert told["AllBlocksCleared"] == {"events": 1, "blocks": totals["cached_blocks_at_end"]}
    assert summary["blocks"]["evictions"] == totals["evicted_blocks"]
    assert summary["stream"]["gaps"]["number"] == 0
    first_us = round(summary["stream"]["first_time_s"] * 1e6)
    by_decisions = cached_by_decisions(oracle / "small.decisions.jsonl", totals["block_size"])
    assert len(by_decisions) == totals["steps"]
    with Timeline(recording) as timeline:
        ended = [event for _, event in timeline.events() if isinstance(event, ev.StreamBatchEnded)]
        before_clear = timeline.seek(timeline.num_events - 2)
        assert isinstance(before_clear, StreamState)
        content = before_clear.content[before_clear.place >= 0]
        assert len(np.unique(content)) == totals["distinct_hashes_at_end"]
    by_stream = {first_us + event.time_us: event.cached for event in ended[:-1]}
    assert set(by_stream) <= set(by_decisions)
    now, seen = 0, {}
    for time_us in by_decisions:  # a step of which the stream has no batch stored and removed nothing
        now = seen[time_us] = by_stream.get(time_us, now)
    assert seen == by_decisions
    with Timeline(recording) as timeline:
        events = list(timeline.events())
        for place in (0, 1, 700, 2500, timeline.num_events):
            state = timeline.header.empty_state()
            for _, event in events[:place]:
                apply(state, event)
            assert timeline.seek(place).equals(state)
        assert all(same(event, timeline.event(place)[1]) for place, (_, event) in enumerate(events[:50]))
