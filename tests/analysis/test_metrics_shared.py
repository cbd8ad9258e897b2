"""The totals where blocks are shared: samples part, and a shared block counts once or for each."""

from __future__ import annotations

import pytest

from tests.engine.scenario import Scenario, req
from tinyserve_viz.analysis.fragmentation import fragmentation


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
        "fragmentation": fragmentation(played.state),
    }


def test_a_shared_block_counts_for_each_sequence_in_decode_and_once_in_physical() -> None:
    played = Scenario(req("a", 8, 1, n=2), req("b", 20, 2))
    # One decode step of a.0 and a.1 (9 tokens in 3 blocks each) and two of b (21 and 22 in 6 blocks).
    assert played.metrics["utilization"]["decode"] == (9 + 9 + 21 + 22) / (12 + 12 + 24 + 24)
