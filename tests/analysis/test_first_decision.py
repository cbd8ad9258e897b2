"""What counts as a decision when two replays are compared, and where they part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinyserve_viz.analysis.first_decision import DecisionKeys, compare_recordings, first_difference
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.recording.timeline import Timeline
from tinyserve_viz.trace import read_trace


def evicted(rule: str, blocks: list[int], keys: list[int]) -> ev.BlocksEvicted:
    ids = np.array(blocks, dtype=np.int32)
    return ev.BlocksEvicted(rule, ids, ids, np.array(keys, dtype=np.int64), 9, 9, ev.EMPTY, 0)


def compaction(src: list[int], dst: list[int], verdict: str) -> ev.CompactionPlanned:
    arrays = np.array(src, dtype=np.int32), np.array(dst, dtype=np.int32)
    return ev.CompactionPlanned(verdict, *arrays, 4, 2, 2, len(src), 9, 5, 2500, 1500)


def test_the_policys_name_and_keys_are_reasons_and_not_decisions() -> None:
    lru = DecisionKeys.of([(3, evicted("lru", [4, 5], [0, 1]))])
    fifo = DecisionKeys.of([(3, evicted("fifo", [4, 5], [7, 8]))])
    assert first_difference(lru, fifo) is None


def test_the_same_blocks_in_another_order_or_step_are_another_decision() -> None:
    one = DecisionKeys.of([(3, evicted("lru", [4, 5], [0, 1]))])
    assert first_difference(one, DecisionKeys.of([(3, evicted("lru", [5, 4], [0, 1]))])) == 0
    assert first_difference(one, DecisionKeys.of([(4, evicted("lru", [4, 5], [0, 1]))])) == 0


def test_a_replay_that_goes_on_longer_differs_where_the_other_ends() -> None:
    events = [(0, evicted("lru", [1], [0])), (1, evicted("lru", [2], [0]))]
    short, long = DecisionKeys.of(events[:1]), DecisionKeys.of(events)
    assert first_difference(short, long) == 1
    assert (short.event_of(1), long.event_of(1)) == (1, 1)


def test_a_compaction_that_was_dropped_equals_none_at_all() -> None:
    step = (1, evicted("lru", [1], [0]))
    dropped = DecisionKeys.of([(0, compaction([], [], "too few moves")), step])
    assert first_difference(dropped, DecisionKeys.of([step])) is None
    assert first_difference(DecisionKeys.of([(0, compaction([9], [1], "moved"))]), DecisionKeys.of([step])) == 0


def recorded(folder: Path, name: str, **engine: Any) -> Path:
    settings = Settings(engine={"num_blocks": 24, **engine}, kernels="none")
    run_replay(prepare(read_trace(data_folder("traces") / "quickstart.json"), settings), folder / name)
    return folder / name


def test_two_recordings_part_where_lru_and_fifo_evict_different_blocks(tmp_path: Path) -> None:
    with (
        Timeline(recorded(tmp_path, "lru.rec", eviction="lru")) as lru,
        Timeline(recorded(tmp_path, "fifo.rec", eviction="fifo")) as fifo,
    ):
        found = compare_recordings(lru, fifo)
        assert compare_recordings(lru, lru) is None
        assert found is not None
        assert found.ours is not None
        assert found.theirs is not None
        assert (found.ours.step, found.ours.kind, found.theirs.kind) == (42, "BlocksEvicted", "BlocksEvicted")
        assert "least recently used first (block 9, last used at step 33)" in found.ours.text
        assert "longest in the prefix index first (block 0, entered the index as number 1)" in found.theirs.text
        before = zip(lru.events(0, found.ours.index), fifo.events(0, found.theirs.index), strict=True)
        assert all(type(a) is type(b) and s == t for (s, a), (t, b) in before)


def test_the_end_of_one_side_is_none(tmp_path: Path) -> None:
    path = recorded(tmp_path, "lru.rec")
    trace = read_trace(data_folder("traces") / "quickstart.json")
    shorter = replace(trace, requests=trace.requests[:1])
    run_replay(prepare(shorter, Settings(engine={"num_blocks": 24}, kernels="none")), tmp_path / "one.rec")
    with Timeline(path) as long, Timeline(tmp_path / "one.rec") as short:
        found = compare_recordings(long, short)
        assert found is not None
        assert found.ours is not None
