"""The totals of a replay against sums made by hand, and the fragmentation of literal pools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.scenario import Scenario, req
from tests.memory.test_eviction import NUM, empty_state
from tinyserve_viz.analysis.fragmentation import fragmentation
from tinyserve_viz.analysis.metrics import Metrics, leaked_blocks
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.config import EngineConfig, ModelConfig
from tinyserve_viz.core.state import CacheState


def metrics() -> Metrics:
    return Metrics(empty_state().workload, EngineConfig(block_size=4, num_blocks=NUM))


def ids(*blocks: int) -> ev.I32:
    return np.array(blocks, dtype=np.int32)


def pool(used: list[int], fill: list[int]) -> CacheState:
    """Twelve blocks of 16 tokens, of which `used` hold `fill` tokens."""
    state = empty_state()
    state.ref[used] = 1
    state.fill[used] = fill
    return state


def test_a_replay_by_hand() -> None:
    # a runs in steps 0 … 2; b arrives before they end, runs in steps 3 … 5 and hits the first block of a.
    played = Scenario(req("a", 6, 2, [1, 2]), req("b", 7, 2, [1, 3], at=50_000))
    assert played.metrics == {
        "requests": {"completed": 2, "preemptions": 0, "rejected": 0, "cancelled": 0},
        "tokens": {"prefilled": 9, "decoded": 4, "lost_to_preemption": 0},
        "blocks": {
            "num_blocks": 12,
            "block_size": 4,
            "peak_used": 3,
            "allocations": 4,
            "frees": 5,
            "copies_on_write": 0,
            "evictions": 0,
            "compaction_moves": 0,
            "leaked": 0,
        },
        "prefix": {
            "prompt_tokens": 13,
            "hit_tokens": 4,
            "token_hit_rate": 4 / 13,
            "misses": {"capped": 2, "tail": 3, "cold": 4, "orphaned": 0, "preempted": 0, "evicted": 0},
        },
        # Decoding: a with 7 and 8 tokens in 8 and 8 slots, b with 8 and 9 in 8 and 12.
        # In the pool at the end of the steps: 6, 7, 0 tokens of a, then 7, 8, 0 of b, in 8, 8, 0, 8, 8, 0 slots.
        "utilization": {
            "decode": 32 / 36,
            "physical": 28 / 32,
            "mean": 32 / (6 * 48),
            "waste": 1 - 28 / 32,
        },
        # At the end one free block is left of the first three, then two cached ones, then nine never used.
        "fragmentation": fragmentation(played.state),
    }


@pytest.mark.parametrize(("allocator", "peak"), [("paged", 2), ("exact", 2), ("pow2", 2), ("contiguous", 8)])
def test_the_peak_counts_what_a_step_frees_again(allocator: str, peak: int) -> None:
    played = Scenario(req("a", 7, 0), allocator=allocator, max_model_len=30)
    assert played.metrics["blocks"]["peak_used"] == peak


def test_nothing_measured_is_none_and_not_zero() -> None:
    found = metrics().as_dict(empty_state())
    assert found["prefix"]["token_hit_rate"] is None
    assert found["utilization"] == {"decode": None, "physical": None, "mean": None, "waste": None}
    assert metrics().selection() is None
    assert metrics().kernels() == []


def test_copies_count_as_allocation_and_as_free() -> None:
    summed = metrics()
    summed.add(0, ev.BlocksCopied(ids(0, 1), ids(2, 2), ids(5, 5), ids(6, 7), ids(1, 1)))
    assert (summed.copies, summed.allocations, summed.frees) == (2, 2, 2)


def test_selection_sums_over_rows_and_keeps_the_extremes() -> None:
    summed = metrics()
    none = np.zeros(0, dtype=np.float32)
    for mass, error, read in (([0.5, 1.0], [0.25, 0.0], 30), ([0.75, 0.75], [0.5, 0.25], 10)):
        summed.add(
            0,
            ev.BlocksSelected(
                0, "paper", ids(0), 1, ids(1), ids(0), ids(2), np.zeros(1, dtype=np.int8), none, none,
                np.array(mass, dtype=np.float32), np.array(error, dtype=np.float32), read, 50,
            ),
        )  # fmt: skip
    section = summed.selection()
    assert section is not None
    told = {name: value for name, value in section.items() if value is not None}
    assert told == {
        "policy": "paper",
        "ratio": 0.3,
        "rows": 2,
        "retained_mass": {"mean": 0.75, "min": 0.5, "oracle_mean": None},
        "output_error": {"mean": 0.25, "max": 0.5},
        "hit_rates": dict.fromkeys(
            ("prefix_hit", "selection_recall", "temporal_reuse", "next_step_recall", "hot_region_hit")
        ),
        "bytes": {"read": 0, "to_choose": 0, "dense": 0, "resident_mean": None, "resident_peak": None},
        "read_share": 0.4,
        "resident_share": 1.0,
        "levels": {"raised": 0, "lowered": 0, "windows": 0},
        "compactions": 0,
    }


@pytest.mark.parametrize(("provenance", "gb_per_s"), [("measured", [0.4, 0.05]), ("reference", [None, None])])
def test_kernel_times_are_summed_and_bandwidth_is_said_of_measured_ones_alone(
    provenance: str, gb_per_s: list[Any]
) -> None:
    summed = metrics()
    for total in (4.0, 8.0, 3.0):
        summed.add(
            0,
            ev.KernelsTimed("block_fork other", ids(2, 1), np.array([total, 20.0]), np.array([2000, 1000]), provenance),
        )
    assert summed.kernels(copy_gb_per_s=0.8) == [
        {"name": name, "calls": calls, "total_us": total, "median_us": median, "bytes": moved, "gb_per_s": speed,
         "percent_of_copy": None if speed is None else 100 * speed / 0.8,
         "coarse": provenance == "measured" and median < 20, "provenance": provenance}
        for (name, calls, total, median, moved), speed in zip(
            [("block_fork", 6, 15.0, 2.0, 6000), ("other", 3, 60.0, 20.0, 3000)], gb_per_s, strict=True
        )
    ]  # fmt: skip


def test_host_time_stands_beside_the_kernels_with_what_was_spent_on_watching() -> None:
    summed = metrics()
    assert summed.host() is None
    for host in (100.0, 300.0, 200.0):
        summed.add(0, ev.KernelsTimed("", ids(), np.zeros(0), np.zeros(0, np.int64), "measured", host, 7.0, 5.0, 3.0))
    found = summed.host()
    assert found is not None
    assert found.pop("step_us") == {"median": 200.0, "p95": pytest.approx(290.0)}
    assert found == {"verify_us": 7.0, "record_us": 5.0, "check_us": 3.0}


def test_compactions_without_moves_are_not_counted() -> None:
    summed = metrics()
    for src, dst in (((), ()), ((7, 9), (1, 2))):
        summed.add(0, ev.CompactionPlanned("moved", ids(*src), ids(*dst), 3, 2, 0, 2, 9, 3, 3000, 1000))
    assert (summed.compactions, summed.compaction_moves) == (1, 2)


def test_moved_bytes_are_read_and_written_in_k_and_v_of_every_layer() -> None:
    summed = metrics()
    for verdict, src, dst in (("nothing to move", (), ()), ("moved", (7, 9), (1, 2))):
        summed.add(0, ev.CompactionPlanned(verdict, ids(*src), ids(*dst), 3, 2, 0, 2, 9, 3, 3000, 1000))
    copy = {"gb_per_s": 8.0, "of": "host memory copy"}
    model = ModelConfig(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8)
    num_bytes = 2 * (2 * 4 * (3 * 2 * 2 * 8) * 2)  # read, written · blocks · tokens · values · fp16
    assert summed.compaction(model, copy) == {
        "rule": "off",
        "weighed": 2,
        "verdicts": {"nothing to move": 1, "moved": 1},
        "moves": 2,
        "bytes": num_bytes,
        "copy_bandwidth": copy,
        "predicted_us": num_bytes / 8e3,
    }
    assert summed.compaction(model, None)["predicted_us"] is None


def test_a_referenced_block_that_no_live_sequence_names_is_leaked() -> None:
    state = pool([3, 4], [1, 1])
    state.num_used = 2
    state.slot[0], state.slot_used[0] = 0, True
    state.tables = np.full((1, 2), -1, dtype=np.int32)
    state.tables[0, 0], state.num_held[0] = 3, 1
    assert leaked_blocks(state) == 1
