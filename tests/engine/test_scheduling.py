"""Admission, shortage, rejection and cancellation, each in a replay small enough to follow on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engine.scenario import Scenario, req
from tinyserve_viz.core import events as ev


def admissions(played: Scenario) -> list[tuple[int, int]]:
    """(sequence, step) of every admission."""
    return [(event.seq, step) for step, event in played.events if isinstance(event, ev.SequenceAdmitted)]


def test_a_shortage_preempts_the_latest_arrived_and_names_who_would_have_been_next() -> None:
    # Three sequences of 7 tokens fill 6 blocks. In step 2 each wants its third block; one must go.
    played = Scenario(req("a", 7, 3), req("b", 7, 3), req("c", 7, 3), num_blocks=7)
    (first, *_) = played.of(ev.SequencePreempted)
    assert (first.seq, first.rule, first.key, first.runner_up, first.runner_up_key) == (2, "latest_arrived", 2, 1, 1)
    assert (first.for_seq, first.needed, first.available, first.lost_tokens, first.prefill_target) == (1, 1, 0, 8, 8)
    assert played.steps_of(ev.SequencePreempted) == [2]
    assert admissions(played) == [(0, 0), (1, 0), (2, 0), (2, 4)]
    assert set(played.fates().values()) == {"finished"}


def test_a_sequence_that_is_the_latest_itself_makes_way() -> None:
    played = Scenario(req("a", 4, 8), req("b", 8, 8), num_blocks=4)
    assert {(p.seq, p.for_seq) for p in played.of(ev.SequencePreempted)[:-1]} == {(1, 1)}  # b itself needs the block


def test_a_preempted_sequence_frees_tail_first_and_hits_its_own_blocks_later() -> None:
    played = Scenario(req("a", 7, 3), req("b", 9, 3, [1, 2]), num_blocks=5)
    assert next((f.seqs.tolist(), f.blocks.tolist()) for f in played.of(ev.BlocksFreed)) == ([1], [4, 3, 2])
    assert [(a.seq, a.hits.tolist(), a.class_tokens.tolist()) for a in played.of(ev.SequenceAdmitted)] == [
        (0, [], [0, 1, 6, 0, 0, 0, 0]),
        (1, [], [0, 1, 0, 8, 0, 0, 0]),
        (1, [2, 3], [0, 0, 0, 0, 0, 0, 0]),
    ]
    assert played.metrics["tokens"] == {"prefilled": 7 + 9 + 2, "decoded": 6, "lost_to_preemption": 10}


def test_what_a_sequence_lost_by_its_own_preemption_is_called_preempted() -> None:
    # b's cached blocks are evicted for a while b waits; a's 20 tokens take the whole pool of 5.
    played = Scenario(req("a", 7, 13), req("b", 9, 3, [1, 2]), num_blocks=5)
    assert [a.hits.tolist() for a in played.of(ev.SequenceAdmitted)] == [[], [], []]
    assert played.misses() == {"capped": 2, "tail": 6, "preempted": 8}


@pytest.mark.parametrize(
    ("engine", "request_of", "expected"),
    [
        ({"num_blocks": 3}, {"prompt": 12, "output": 1}, ("num_blocks", 4, 3)),
        ({"max_num_seqs": 2}, {"prompt": 4, "output": 1, "n": 3}, ("max_num_seqs", 3, 2)),
        ({"allocator": "contiguous", "max_model_len": 10}, {"prompt": 9, "output": 2}, ("max_model_len", 11, 10)),
        ({"allocator": "contiguous", "max_model_len": 60}, {"prompt": 9, "output": 2}, ("token_slots", 60, 48)),
        ({"allocator": "pow2"}, {"prompt": 40, "output": 9}, ("token_slots", 56, 48)),
        ({"allocator": "exact"}, {"prompt": 20, "output": 5, "n": 2}, ("token_slots", 50, 48)),
    ],
)
def test_what_can_never_run_is_rejected_with_what_it_needs(
    engine: dict[str, Any], request_of: dict[str, Any], expected: tuple[str, int, int]
) -> None:
    played = Scenario(req("a", **request_of), req("b", 4, 1), **engine)
    refused = played.of(ev.RequestRejected)[0]
    assert (refused.request, refused.rule, refused.needed, refused.available) == (0, *expected)
    assert played.fates()["b"] == ("rejected" if expected == ("token_slots", 60, 48) else "finished")


def test_what_fits_exactly_is_not_rejected() -> None:
    assert Scenario(req("a", 11, 1), num_blocks=3).fates() == {"a": "finished"}
    assert Scenario(req("a", 40, 8), allocator="exact").fates() == {"a": "finished"}
    assert Scenario(req("a", 9, 1), allocator="contiguous", max_model_len=10).fates() == {"a": "finished"}


def test_a_waiting_request_is_cancelled_without_a_free() -> None:
    played = Scenario(req("a", 8, 20), req("b", 8, 1, cancel=50_000), max_num_seqs=1)
    assert [(c.request, c.rule, c.seqs.tolist()) for c in played.of(ev.RequestCancelled)] == [(1, "deadline", [1])]
    assert [f.seqs.tolist() for f in played.of(ev.BlocksFreed)] == [[0]]


def test_a_running_request_is_cancelled_at_the_first_step_after_its_deadline() -> None:
    played = Scenario(req("a", 8, 20, cancel=40_211), req("b", 4, 9))
    # Step 0 takes 20,000 + 12 · 20 µs, every other one 20,100: the deadline has passed when step 2 has ended.
    assert played.steps_of(ev.RequestCancelled) == [2]
    assert next(f.blocks.tolist() for f in played.of(ev.BlocksFreed)) == [3, 1, 0]
    assert played.fates() == {"a": "cancelled", "b": "finished"}


def test_a_deadline_after_the_end_changes_nothing() -> None:
    assert Scenario(req("a", 8, 1, cancel=900_000), req("b", 4, 1, at=990_000)).of(ev.RequestCancelled) == []


def test_a_lower_priority_number_goes_before() -> None:
    played = Scenario(
        req("running", 4, 3), req("late", 4, 1, priority=5), req("soon", 4, 1, priority=-1), req("also", 4, 1),
        max_num_seqs=1,
    )  # fmt: skip
    assert [seq for seq, _ in admissions(played)] == [2, 0, 3, 1]


def test_a_preempted_sequence_goes_before_newcomers_of_a_better_priority() -> None:
    played = Scenario(
        req("old", 7, 6), req("bad", 7, 6, priority=1), req("good", 4, 1, at=65_000, priority=-1), num_blocks=4
    )
    assert played.steps_of(ev.SequencePreempted)[0] == 2
    assert played.of(ev.SequencePreempted)[0].seq == 1
    assert [seq for seq, _ in admissions(played)][:4] == [0, 1, 1, 2]


def test_the_watermark_holds_at_admission_and_not_for_running_sequences() -> None:
    # 20 % of 10 blocks stay free: b needs 4 where 4 + 2 are wanted of 5. a itself may grow into the reserve.
    played = Scenario(req("a", 20, 20), req("b", 16, 1), num_blocks=10, watermark_permille=200)
    assert admissions(played)[0] == (0, 0)
    assert admissions(played)[1][0] == 1
    assert admissions(played)[1][1] == 21
    first, second = played.of(ev.SequenceAdmitted)
    assert (first.needed, first.available, first.reserve) == (5, 10, 0)  # nothing ran: no reserve
    assert (second.needed, second.available, second.reserve) == (4, 10, 0)
    assert max(e.used_blocks for e in played.of(ev.StepEnded)) == 10


def test_a_long_prompt_is_prefilled_in_chunks_behind_the_decoding_sequences() -> None:
    played = Scenario(req("a", 4, 4), req("b", 20, 1), max_batch_tokens=8)
    assert [
        (w.decode_seqs.tolist(), w.prefill_seqs.tolist(), w.prefill_counts.tolist())
        for w in played.of(ev.TokensWritten)
    ] == [([], [0, 1], [4, 4]), ([0], [1], [7]), ([0], [1], [7]), ([0], [1], [2]), ([0, 1], [], [])]


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    played = Scenario(req("a", 20, 4), req("big", 30, 1), req("small", 4, 1), num_blocks=10)
    assert [seq for seq, _ in admissions(played)] == [0, 1, 2]
    assert admissions(played)[1][1] == 5


def test_a_request_without_output_ends_with_its_prefill() -> None:
    played = Scenario(req("a", 8, 0))
    assert [type(event).__name__ for _, event in played.events] == [
        "RequestsArrived", "SequenceAdmitted", "BlocksAllocated", "TokensWritten", "BlocksFreed", "SequencesFinished",
        "StepEnded",
    ]  # fmt: skip


def test_a_prompt_of_whole_blocks_takes_its_next_block_with_the_first_generated_token() -> None:
    assert Scenario(req("a", 8, 5)).allocated() == [("a", [0, 1]), ("a", [2]), ("a", [3])]


def test_blocks_of_one_token_are_taken_one_a_step() -> None:
    played = Scenario(req("a", 3, 2, [7, 8, 9]), req("b", 3, 0, [7, 8, 9], at=300_000), block_size=1, num_blocks=5)
    assert played.allocated() == [("a", [0, 1, 2]), ("a", [3]), ("a", [4]), ("b", [4])]
    assert [a.hits.tolist() for a in played.of(ev.SequenceAdmitted)] == [[], [0, 1]]


def test_a_pool_of_one_block_serves_one_after_the_other() -> None:
    played = Scenario(req("a", 2, 2), req("b", 4, 0, [1]), req("c", 4, 0, [2]), req("d", 5, 0), num_blocks=1)
    assert played.fates() == {"a": "finished", "b": "finished", "c": "finished", "d": "rejected"}
    assert [(e.blocks.tolist(), e.runner_up) for e in played.of(ev.BlocksEvicted)] == [([0], -1)]


def test_time_jumps_over_idle_spans_without_a_step() -> None:
    played = Scenario(req("a", 4, 0), req("b", 4, 0, at=5_000_000))
    assert [jump.time_us for jump in played.of(ev.ClockJumped)] == [5_000_000]
    assert [step.time_us for step in played.of(ev.StepEnded)] == [20_080, 5_020_080]


def test_ids_come_never_used_first_then_freed_then_cached() -> None:
    # a leaves [1, 0]: 1 uncached, 0 cached under content 1. b takes 2 and 3 (never used), then 1, then evicts 0.
    played = Scenario(req("a", 6, 0, [1]), req("b", 16, 0, at=300_000), num_blocks=4)
    (_, taken) = played.of(ev.BlocksAllocated)
    assert taken.blocks.tolist() == [2, 3, 1, 0]
    assert (taken.num_unused, taken.num_freed, taken.num_evicted, taken.runner_up) == (2, 1, 1, -1)
    (evicted,) = played.of(ev.BlocksEvicted)
    assert (evicted.rule, evicted.blocks.tolist(), evicted.hashes.tolist()) == ("lru", [0], [0])


def test_freed_blocks_are_taken_again_in_the_order_of_their_freeing() -> None:
    played = Scenario(req("a", 12, 0), req("b", 16, 0, at=300_000), num_blocks=4)
    assert played.allocated() == [("a", [0, 1, 2]), ("b", [3, 2, 1, 0])]


# ── why a prompt token was computed ────────────────────────────────────────────────────────────────────────────────


def test_the_first_request_is_cold_but_for_its_tail_and_last_token() -> None:
    assert Scenario(req("a", 10, 1, [1, 2])).misses() == {"cold": 8, "tail": 1, "capped": 1}


def test_without_known_content_all_is_tail() -> None:
    assert Scenario(req("a", 10, 1)).misses() == {"tail": 9, "capped": 1}


def test_the_second_request_hits_all_full_blocks_before_its_last_token() -> None:
    played = Scenario(req("a", 10, 0, [1, 2]), req("b", 10, 0, [1, 2], at=300_000))
    assert played.misses() == {"hit": 8, "cold": 8, "tail": 2, "capped": 2}


def test_a_cached_last_block_is_capped_as_a_whole() -> None:
    played = Scenario(req("a", 8, 0, [1, 2]), req("b", 8, 0, [1, 2], at=300_000))
    assert played.misses() == {"cold": 7, "hit": 4, "capped": 1 + 4}


def test_a_block_that_made_way_is_evicted() -> None:
    # b takes all 3 blocks, so both of a's cached ones go.
    played = Scenario(
        req("a", 9, 0, [1, 2]), req("b", 12, 0, at=300_000), req("c", 9, 0, [1, 2], at=600_000), num_blocks=3
    )
    assert played.misses() == {"cold": 8, "capped": 3, "tail": 11, "evicted": 8}


def test_a_cached_block_behind_an_evicted_one_is_orphaned() -> None:
    # fifo evicts content 1 first; content 2 is still there when c asks, and of no use without its ancestor.
    played = Scenario(
        req("a", 9, 0, [1, 2]), req("b", 8, 0, at=300_000), req("c", 9, 0, [1, 2], at=600_000),
        num_blocks=3, eviction="fifo",
    )  # fmt: skip
    assert played.misses() == {"cold": 8, "capped": 3, "tail": 7, "evicted": 4, "orphaned": 4}
    assert [a.orphans.tolist() for a in played.of(ev.SequenceAdmitted)] == [[], [], [1]]


def test_without_prefix_caching_nothing_is_found_and_nothing_entered() -> None:
    played = Scenario(req("a", 10, 0, [1, 2]), req("b", 10, 0, [1, 2], at=300_000), prefix_caching=False)
    assert played.of(ev.BlocksCached) == []
    assert played.metrics["prefix"]["hit_tokens"] == 0
    assert played.misses() == {"cold": 16, "tail": 2, "capped": 2}


def test_equal_prompts_in_one_step_are_computed_twice_and_indexed_once() -> None:
    played = Scenario(req("a", 9, 0, [1, 2]), req("b", 9, 0, [1, 2]))
    assert [(c.blocks.tolist(), c.hashes.tolist()) for c in played.of(ev.BlocksCached)] == [([0, 1], [0, 1])]
    assert played.misses() == {"cold": 16, "capped": 2}


def test_the_hits_of_a_running_sequence_are_shared_and_not_revived() -> None:
    played = Scenario(req("a", 9, 9, [1, 2]), req("b", 9, 1, [1, 2], at=25_000))
    admitted = played.of(ev.SequenceAdmitted)[1]
    assert (admitted.hits.tolist(), admitted.needed) == ([0, 1], 1)
    assert np.array_equal(played.of(ev.BlocksFreed)[0].blocks, [3, 1, 0])
