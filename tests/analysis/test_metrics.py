"""The totals of a replay, worked out by hand from a few requests."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.scenario import Scenario, req
from tests.memory.test_eviction import NUM, empty_state
from tinyserve_viz.analysis.metrics import fragmentation, leaked_blocks


def test_the_totals_of_two_samples_are_those_counted_by_hand() -> None:
    # 10 prompt tokens in blocks 0 … 2; a.0 copies block 2 to 3; tokens 11 and 12 fill both.
    played = Scenario(req("a", 10, 2, [1, 2], n=2))
    assert played.metrics == {
        "requests": {"completed": 1, "preemptions": 0, "rejected": 0, "cancelled": 0},
        "tokens": {"prefilled": 10, "decoded": 4, "lost_to_preemption": 0},
        "blocks": {
            "num_blocks": 12,
            "block_size": 4,
            "peak_used": 4,
            "allocations": 4,
            "frees": 7,  # references given up: 3 each at the end, 1 by the copy
            "copies_on_write": 1,
            "evictions": 0,
            "compaction_moves": 0,
            "leaked": 0,
        },
        "prefix": {
            "prompt_tokens": 10,
            "hit_tokens": 0,
            "token_hit_rate": 0.0,
            "misses": {"capped": 1, "tail": 1, "cold": 8, "orphaned": 0, "preempted": 0, "evicted": 0},
        },
        "utilization": {
            "decode": (11 + 11 + 12 + 12) / (4 * 12),
            "physical": (10 + 14) / (12 + 16),  # the last step ends with nothing in use
            "mean": (12 + 16) / (3 * 48),
            "waste": pytest.approx(4 / 28),
        },
        "fragmentation": {
            "internal": None,
            "external": 0.0,
            "frag_ratio": None,
            "num_free_runs": 1,
            "longest_free_run": 12,
        },
    }


def test_a_shared_block_counts_for_each_sequence_in_decode_and_once_in_physical() -> None:
    played = Scenario(req("a", 8, 1, n=2), req("b", 20, 2))
    # One decode step of a.0 and a.1 (9 tokens in 3 blocks each) and two of b (21 and 22 in 6 blocks).
    assert played.metrics["utilization"]["decode"] == (9 + 9 + 21 + 22) / (12 + 12 + 24 + 24)


def test_what_a_baseline_reserves_is_what_it_uses() -> None:
    played = Scenario(req("a", 6, 2), allocator="contiguous", max_model_len=20, prefix_caching=False)
    assert played.metrics["utilization"]["decode"] == (7 + 8) / (20 + 20)
    assert played.metrics["blocks"]["peak_used"] == 5


def test_nothing_measured_is_none_and_not_zero() -> None:
    played = Scenario(req("a", 60, 1))
    assert played.metrics["requests"]["rejected"] == 1
    assert played.metrics["utilization"] == {"decode": None, "physical": None, "mean": None, "waste": None}
    assert played.metrics["prefix"]["token_hit_rate"] is None


def test_fragmentation_of_a_pool_with_holes() -> None:
    state = empty_state()  # 12 blocks of 16
    state.ref[[0, 1, 4, 9]] = 1
    state.fill[[0, 1, 4, 9]] = [16, 16, 8, 4]
    assert fragmentation(state) == {
        "internal": 1 - 44 / 64,
        "external": 1 - 4 / 8,
        "frag_ratio": 10 / 4,
        "num_free_runs": 3,
        "longest_free_run": 4,
    }


def test_fragmentation_of_reserved_ranges() -> None:
    state = empty_state()  # 192 slots
    state.reserved_start, state.reserved_len = np.array([20, 60], dtype=np.int64), np.array([10, 50], dtype=np.int64)
    state.ctx = np.array([10, 20], dtype=np.int32)
    assert fragmentation(state) == {
        "internal": 1 - 30 / 60,
        "external": 1 - 82 / 132,
        "frag_ratio": 110 / 60,
        "num_free_runs": 3,
        "longest_free_run": 5,
    }


def test_a_reference_that_no_table_explains_is_a_leak() -> None:
    state = empty_state()
    assert leaked_blocks(state) == 0
    state.ref[3], state.num_used = 1, 1
    assert leaked_blocks(state) == 1
    assert state.num_blocks == NUM
