"""Eviction `seed` and protection levels inside a replay: what is counted adds up, what was spared was really older."""

from __future__ import annotations

import numpy as np
import pytest

from tinyserve_viz.analysis.quality import requests_by_region
from tinyserve_viz.cli.session import Settings, prepare, run_replay
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.resources import data_folder
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.seed_allocation import _spared
from tinyserve_viz.trace import read_trace

TRACES = data_folder("traces")


def cached_pool(last_use: list[int], levels: list[int]) -> CacheState:
    """Six blocks, all cached and without a reference; blocks 0 to 2 are the hot region."""
    header = prepare(read_trace(TRACES / "quickstart.json"), Settings(engine={"num_blocks": 6}, kernels="none"))
    state: CacheState = header.empty_state()
    state.hash[:], state.last_use[:], state.level[:] = np.arange(6), last_use, levels
    return state


@pytest.mark.parametrize(
    ("levels", "evicted", "expected"),
    [
        ([0, 0, 0, 0, 0, 0], [0, 1], (0, 0)),  # what LRU would have taken
        ([0, 0, 0, 0, 0, 0], [3, 4], (2, 0)),  # cold requests left the two oldest, hot ones alone
        ([2, 0, 0, 0, 0, 0], [1, 2], (0, 1)),  # the region lost a younger block in place of block 0, by its level
        ([2, 0, 0, 0, 0, 0], [3], (1, 0)),  # no hot block was lost at all: the region, whatever the level
        ([2, 0, 0, 0, 0, 0], [1, 3], (0, 1)),
        ([0, 0, 0, 0, 0, 0], [], (0, 0)),
    ],
)
def test_an_older_block_was_spared_by_its_level_or_by_its_region(
    levels: list[int], evicted: list[int], expected: tuple[int, int]
) -> None:
    state = cached_pool([1, 2, 3, 4, 5, 6], levels)
    assert _spared(state, np.array(evicted, dtype=np.int32), 3) == expected


def test_every_placed_block_is_counted_once_and_the_summary_tells_the_same() -> None:
    placed: list[ev.BlocksPlaced] = []
    header = prepare(read_trace(TRACES / "quickstart.json"), Settings(engine={"eviction": "seed"}, kernels="decisions"))
    summary = run_replay(
        header, extra_sinks=(lambda _, event: placed.append(event) if isinstance(event, ev.BlocksPlaced) else None,)
    )
    hot = summary["selection"]["hot_region"]
    counts = [hot[name] for name in ("hot_hits", "hot_misses", "cold_kept_out", "cold_intruded")]
    assert sum(counts) == summary["blocks"]["allocations"]
    assert counts == sum(requests_by_region(event) for event in placed).tolist()  # type: ignore[union-attr]
    assert hot["evicted_in_hot"] + hot["evicted_in_cold"] == summary["blocks"]["evictions"] > 0
    assert sum(hot["evicted_by_level"]) == summary["blocks"]["evictions"]
    assert summary["selection"]["hit_rates"]["hot_region_hit"] == counts[0] / (counts[0] + counts[1])
    assert hot["size"]["min"] < hot["size"]["first"] == 10
    assert all(len(event.levels) == len(event.blocks) for event in placed if len(event.blocks))


def test_a_change_of_levels_names_the_thresholds_that_it_compared() -> None:
    adapted: list[ev.LevelsAdapted] = []
    header = prepare(read_trace(TRACES / "quickstart.json"), Settings(kernels="decisions"))
    summary = run_replay(
        header, extra_sinks=(lambda _, event: adapted.append(event) if isinstance(event, ev.LevelsAdapted) else None,)
    )
    assert {(event.hit_threshold_permille, event.frequency_threshold) for event in adapted} == {(600, 8)}
    assert summary["selection"]["levels"]["windows"] == len(adapted) == summary["steps"] // 64
