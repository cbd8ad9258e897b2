"""Samples and children: who shares what, who copies before writing, and what becomes of a child without its parent."""

from __future__ import annotations

import pytest

from tests.engine.scenario import Scenario, req
from tinyserve_viz.core import events as ev
from tinyserve_viz.engine.replay import Engine


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_of_n_writers_of_a_shared_block_all_but_the_last_copy_it(n: int) -> None:
    tables: list[list[int]] = []

    def look(engine: Engine, event: ev.Event) -> None:
        if isinstance(event, ev.StepEnded) and engine.state.step == 2:
            tables.extend(engine.state.table(seq).tolist() for seq in range(n))

    played = Scenario(req("a", 10, 2, n=n), each=look)
    copies = played.of(ev.BlocksCopied)
    assert [(c.seqs.tolist(), c.src.tolist(), c.dst.tolist(), c.tokens.tolist()) for c in copies] == (
        [(list(range(n - 1)), [2] * (n - 1), list(range(3, n + 2)), [2] * (n - 1))] if n > 1 else []
    )
    assert tables == [*([0, 1, 3 + i] for i in range(n - 1)), [0, 1, 2]]


def test_samples_of_a_prompt_of_whole_blocks_copy_nothing() -> None:
    played = Scenario(req("a", 8, 1, n=3))
    assert played.of(ev.BlocksCopied) == []
    assert played.allocated() == [("a.0", [0, 1]), ("a.0", [2]), ("a.1", [3]), ("a.2", [4])]


def test_a_writer_copies_although_the_other_holders_do_not_write_in_this_step() -> None:
    played = Scenario(req("a", 10, 2, n=3), max_batch_tokens=2)  # two of the three samples are served in a step
    assert [(c.seqs.tolist(), c.src.tolist()) for c in played.of(ev.BlocksCopied)] == [([0, 1], [2, 2])]
    assert [w.decode_seqs.tolist() for w in played.of(ev.TokensWritten)][5:] == [[0, 1], [0, 1], [2], [2]]


def test_a_writer_into_a_block_that_others_left_again_writes_in_place() -> None:
    played = Scenario(req("a", 10, 1, n=2), max_batch_tokens=1)
    assert [c.seqs.tolist() for c in played.of(ev.BlocksCopied)] == [[0]]  # then a.0 ends, and a.1 is alone
    assert played.fates() == {"a.0": "finished", "a.1": "finished"}


def test_a_child_shares_the_tokens_before_its_fork_point_and_copies_the_block_that_it_parts_in() -> None:
    played = Scenario(req("p", 10, 4), req("c", 8, 2, parent="p", fork_at=6))
    fork = played.of(ev.SequencesForked)
    assert [(f.parent, f.children.tolist(), f.num_tokens, f.running.tolist()) for f in fork] == [(0, [1], 6, [1])]
    copies = [(c.seqs.tolist(), c.logical.tolist(), c.tokens.tolist()) for c in played.of(ev.BlocksCopied)]
    assert copies == [([1], [1], [2])]
    prefills = [(w.prefill_seqs.tolist(), w.prefill_counts.tolist()) for w in played.of(ev.TokensWritten)]
    assert prefills[:2] == [([0], [10]), ([1], [2])]


def test_a_child_forks_when_its_parent_has_generated_up_to_the_fork_point() -> None:
    played = Scenario(req("p", 4, 6), req("c", 9, 1, parent="p", fork_at=7))
    assert played.steps_of(ev.SequencesForked) == [3]  # 4 tokens after step 0, 7 after step 3


def test_a_child_that_finds_no_seat_waits_with_its_blocks_and_goes_before_the_queue() -> None:
    played = Scenario(
        req("p", 6, 2), req("c", 6, 2, parent="p", fork_at=6), req("other", 4, 1), max_num_seqs=1, num_blocks=8
    )
    assert [f.running.tolist() for f in played.of(ev.SequencesForked)] == [[0]]
    assert [(e.seq, step) for step, e in played.events if isinstance(e, ev.SequenceSeated)] == [(1, 3)]
    assert [(e.seq, step) for step, e in played.events if isinstance(e, ev.SequenceAdmitted)] == [(0, 0), (2, 5)]
    assert played.fates() == {"p": "finished", "c": "finished", "other": "finished"}


def test_a_child_waits_while_its_parent_is_preempted() -> None:
    played = Scenario(req("old", 7, 8), req("p", 7, 4), req("c", 9, 1, parent="p", fork_at=9), num_blocks=4)
    assert [(p.seq, p.lost_tokens) for p in played.of(ev.SequencePreempted)] == [(1, 8)]
    assert played.steps_of(ev.SequencePreempted) == [2]
    assert played.steps_of(ev.SequencesForked) == [10]  # old ends in step 8; p computes 8 tokens again, then its 9th
    assert [(c.seqs.tolist(), c.tokens.tolist()) for c in played.of(ev.BlocksCopied)] == [([1], [1])]
    assert set(played.fates().values()) == {"finished"}


def test_a_child_whose_parent_is_over_looks_for_its_prefix_in_the_cache() -> None:
    played = Scenario(req("p", 9, 1, [1, 2]), req("c", 10, 1, [1, 2], at=500_000, parent="p", fork_at=9))
    assert played.of(ev.SequencesForked) == []
    assert [(a.seq, a.hits.tolist()) for a in played.of(ev.SequenceAdmitted)] == [(0, []), (1, [0, 1])]


def test_a_child_that_waits_for_a_fork_point_beyond_its_parents_end_becomes_an_ordinary_request() -> None:
    played = Scenario(
        req("p", 8, 4, cancel=None), req("c", 12, 1, parent="p", fork_at=12), profile="vllm"
    )  # the last token of p is never stored there: it ends with 11
    assert played.of(ev.SequencesForked) == []
    assert played.fates() == {"p": "finished", "c": "finished"}


@pytest.mark.parametrize("at", [0, 500_000])
def test_a_child_is_rejected_with_its_parent(at: int) -> None:
    played = Scenario(req("p", 60, 1), req("c", 8, 1, at=at, parent="p", fork_at=4))
    assert [(r.request, r.rule) for r in played.of(ev.RequestRejected)] == [(0, "num_blocks"), (1, "parent_rejected")]


@pytest.mark.parametrize(
    ("arrival", "fork_at", "state"), [(0, 4, "running"), (0, 20, "waiting"), (300_000, 4, "not yet arrived")]
)
def test_a_child_is_cancelled_with_its_parent(arrival: int, fork_at: int, state: str) -> None:
    played = Scenario(
        req("p", 8, 20, cancel=100_000), req("c", 24, 20, at=arrival, parent="p", fork_at=fork_at), num_blocks=20
    )
    cancelled = [(c.request, c.rule, c.seqs.tolist()) for c in played.of(ev.RequestCancelled)]
    assert cancelled == [(0, "deadline", [0]), (1, "parent", [1])], state
    assert played.fates() == {"p": "cancelled", "c": "cancelled"}


def test_a_child_that_waits_for_a_seat_is_cancelled_and_lets_its_blocks_go() -> None:
    played = Scenario(req("p", 6, 9), req("c", 6, 2, cancel=50_000, parent="p", fork_at=6), max_num_seqs=1)
    assert next((f.seqs.tolist(), f.blocks.tolist()) for f in played.of(ev.BlocksFreed)) == ([1], [1, 0])
    assert played.fates() == {"p": "finished", "c": "cancelled"}


def test_a_late_child_of_a_request_of_which_one_sample_ended_before_the_cancellation_is_cancelled_too() -> None:
    # With a batch of one token a.0 ends first; a.1 is then cancelled.
    played = Scenario(
        req("a", 4, 2, n=2, cancel=130_000), req("c", 8, 2, at=900_000, parent="a", fork_at=4), max_batch_tokens=1
    )
    assert played.fates() == {"a.0": "finished", "a.1": "cancelled", "c": "cancelled"}


def test_all_samples_of_a_cancelled_request_let_their_blocks_go() -> None:
    played = Scenario(req("a", 6, 30, n=3, cancel=60_000))
    assert played.fates() == {"a.0": "cancelled", "a.1": "cancelled", "a.2": "cancelled"}
    assert [f.counts.tolist() for f in played.of(ev.BlocksFreed)] == [[2, 2, 2]]


def test_who_starts_in_the_middle_of_a_cached_block_copies_it_although_nobody_else_holds_it() -> None:
    # c shares 6 of p's 8 cached tokens. When c writes its 7th, p is over: only the index still names block 1.
    played = Scenario(
        req("p", 8, 1, [1, 2]), req("c", 6, 2, parent="p", fork_at=6), req("q", 9, 1, [1, 2], at=400_000),
        max_num_seqs=1,
    )  # fmt: skip
    assert [(c.seqs.tolist(), c.src.tolist(), c.tokens.tolist()) for c in played.of(ev.BlocksCopied)] == [
        ([1], [1], [2])
    ]
    assert [a.hits.tolist() for a in played.of(ev.SequenceAdmitted)] == [[], [0, 1]]


def test_samples_without_output_end_with_the_prefill() -> None:
    played = Scenario(req("a", 5, 0, n=3))
    assert len(played.of(ev.StepEnded)) == 1
    assert [(f.seqs.tolist(), f.requests.tolist()) for f in played.of(ev.SequencesFinished)] == [([0, 1, 2], [0])]


def test_the_seats_of_all_samples_are_taken_at_admission() -> None:
    played = Scenario(req("a", 40, 1, n=3), req("b", 4, 1), max_num_seqs=3, max_batch_tokens=20, num_blocks=14)
    assert [(a.seq, step) for step, a in played.events if isinstance(a, ev.SequenceAdmitted)] == [(0, 0), (3, 3)]


def test_a_preempted_sample_computes_its_prompt_again_and_counts_it_once() -> None:
    played = Scenario(req("a", 6, 9, n=2), num_blocks=5)
    assert [p.seq for p in played.of(ev.SequencePreempted)] == [1]
    assert [(a.seq, a.prefill_target, int(a.class_tokens.sum())) for a in played.of(ev.SequenceAdmitted)] == [
        (0, 6, 6),
        (1, 12, 0),
    ]
    assert played.metrics["prefix"]["prompt_tokens"] == 6


def test_every_sample_reserves_a_range_of_its_own() -> None:
    played = Scenario(req("a", 6, 3, n=3), allocator="exact", prefix_caching=False)
    assert [(r.seq, r.start, r.length) for r in played.of(ev.RangeReserved)] == [(0, 0, 9), (1, 9, 9), (2, 18, 9)]
    assert [f.seqs.tolist() for f in played.of(ev.RangesFreed)] == [[0, 1, 2]]


def test_samples_that_do_not_fit_together_reserve_nothing_until_they_do() -> None:
    played = Scenario(
        req("first", 20, 4), req("a", 6, 3, n=3), allocator="exact", prefix_caching=False, num_blocks=12
    )  # 48 slots: 24 and 3 · 9
    assert [(r.seq, r.start, step) for step, r in played.events if isinstance(r, ev.RangeReserved)] == [
        (0, 0, 0), (1, 0, 5), (2, 9, 5), (3, 18, 5),
    ]  # fmt: skip
    assert [f.seqs.tolist() for f in played.of(ev.RangesFreed)] == [[0], [1, 2, 3]]


def test_a_child_under_a_reserving_allocator_computes_its_whole_prompt() -> None:
    played = Scenario(req("p", 6, 3), req("c", 7, 1, parent="p", fork_at=6), allocator="pow2", prefix_caching=False)
    assert [(r.seq, r.start, r.length) for r in played.of(ev.RangeReserved)] == [(0, 0, 10), (1, 10, 8)]
    assert played.of(ev.SequencesForked) == []


def test_who_shares_a_whole_prompt_has_its_first_token_time_from_the_step_that_forked_it() -> None:
    played = Scenario(req("a", 6, 3, n=2), req("c", 6, 2, parent="a", fork_at=6), req("d", 8, 2, parent="a", fork_at=6))
    assert [e.prefilled.tolist() for e in played.of(ev.StepEnded)] == [[0, 1, 2], [3], [], []]
    ends = [e.time_us for e in played.of(ev.StepEnded)]
    assert played.state.first_token_us.tolist() == [ends[0], ends[0], ends[0], ends[1]]


def test_a_child_that_looked_its_prompt_up_counts_what_a_preemption_took_from_it() -> None:
    # c hits both blocks of p, is preempted by a, and finds them evicted when it comes back.
    played = Scenario(
        req("p", 9, 0, [1, 2]),
        req("a", 7, 13, at=300_000),
        req("c", 9, 3, [1, 2], at=300_001, parent="p", fork_at=9),
        num_blocks=5,
    )
    assert [a.class_tokens.tolist() for a in played.of(ev.SequenceAdmitted) if a.seq == 2] == [
        [8, 1, 0, 0, 0, 0, 0],
        [-8, 0, 0, 0, 0, 8, 0],
    ]
    assert played.misses() == {"capped": 3, "tail": 6, "cold": 8, "preempted": 8}


def test_who_preempts_itself_leaves_the_only_seat_to_the_child_whose_blocks_it_lacks() -> None:
    rules = {"admit_after_preemption": True, "store_last_token": True}
    requests = [req("a", 14, 14, [0, 400, 401, 402]), req("b", 16, 0, parent="a")]
    played = Scenario(*requests, profile="vllm", rules=rules, num_blocks=8, max_num_seqs=1, max_batch_tokens=13)
    assert [(event.seq, event.for_seq) for event in played.of(ev.SequencePreempted)] == [(0, 0)]
    assert played.steps_of(ev.SequenceSeated) == [played.steps_of(ev.SequencePreempted)[0] + 1]
    assert played.fates() == {"a": "finished", "b": "finished"}
    assert played.state.step < 30


def test_a_child_that_lacks_what_an_earlier_one_holds_leaves_it_the_only_seat() -> None:
    later = req("c", 24, 2, [*range(6)], parent="a", fork_at=2)
    requests = [req("a", 1, 4, [0]), req("b", 8, 0, [0, 1], parent="a", fork_at=5), later]
    played = Scenario(*requests, num_blocks=8, max_num_seqs=1)
    assert [event.seq for event in played.of(ev.SequenceSeated)] == [2, 1]  # c came to its fork point first
    assert [(event.seq, event.for_seq) for event in played.of(ev.SequencePreempted)] == [(2, 2)]
    assert played.fates() == {"a": "finished", "b": "finished", "c": "finished"}
    assert played.state.step < 15
