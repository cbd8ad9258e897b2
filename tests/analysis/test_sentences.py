"""What the debugger says about an event, literally, for every type of event."""

from __future__ import annotations

import numpy as np
import pytest

from tinyserve_viz.analysis.sentences import block_list, duration, sentence
from tinyserve_viz.core import events as ev
from tinyserve_viz.core import state as st
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.stream import StreamState
from tinyserve_viz.core.workload import Workload, sequences_of


def i32(*values: int) -> ev.I32:
    return np.array(values, dtype=np.int32)


def f32(*values: float) -> ev.F32:
    return np.array(values, dtype=np.float32)


def i8(*values: int) -> ev.I8:
    return np.array(values, dtype=np.int8)


def state() -> CacheState:
    """16 blocks of 16 tokens. r0 holds blocks 0–3 (block 3 with r1, a fork), r2 waits; 8 and 9 are cached and free."""
    samples = i32(1, 1, 1, 2)
    first_seq, request_of_seq = sequences_of(samples)
    none = np.full(4, -1, dtype=np.int64)
    lengths = {"prompt_len": i32(56, 56, 410, 20), "output_len": i32(10, 10, 40, 5)}
    workload = Workload(
        request_ids=("r0", "r1", "r2", "r3"),
        arrival_us=none,
        num_samples=samples,
        parent=i32(-1, 0, -1, -1),
        fork_at=i32(-1, 56, -1, -1),
        cancel_at_us=none,
        priority=i32(0, 0, 0, 0),
        num_hashes=40,
        hash_flat=i32(),
        hash_offsets=np.zeros(5, dtype=np.int64),
        first_seq=first_seq,
        request_of_seq=request_of_seq,
        **lengths,
    )
    made = CacheState(workload, 16, 16)
    made.ref[:4] = (1, 1, 1, 2)
    made.num_held[:2] = 4, 1
    made.hash[[0, 8, 9]] = 5, 6, 7
    made.last_use[[8, 9]] = 31, 33
    made.uses[[8, 9]] = 1, 4
    made.inserted[[8, 9]] = 10, 11
    made.clock_bit[9] = 1
    made.step = 57
    made.hot_size, made.hot_requests, made.hot_misses = 4, 9, 6
    made.window_hits[:3], made.window_lookups[:3], made.freq[:3] = (3, 19, 0), (20, 20, 0), (11, 2, 30)
    made.level[:3] = 1, 2, 0
    return made


NO_CAUSES = np.zeros(0, dtype=np.uint8)


def evicted(rule: str, runner_up: int = 9, hand: int = 0) -> ev.BlocksEvicted:
    cleared = i32(3) if rule == "clock" else i32()
    return ev.BlocksEvicted(rule, i32(8), i32(6), np.array([31]), runner_up, 33, cleared, hand)


def step_ended() -> ev.StepEnded:
    return ev.StepEnded(1_184_000, 120, 1, 60, 64, 23, 9, 8, 300, 368, 3, 1, 24, i32())


def admitted(*class_tokens: int, reserve: int = 0, waiting: int = 0) -> ev.SequenceAdmitted:
    classes = np.array(class_tokens, dtype=np.int64)
    hits = i32(*range(class_tokens[0] // 16))
    return ev.SequenceAdmitted(2, 2, 3, 410, hits, NO_CAUSES, classes, 17, 33, reserve, waiting, i32())


def selected(retained: ev.F32, policy: str = "paper", priority: int = 2, **watched: ev.F32) -> ev.BlocksSelected:
    zero = f32(0)
    return ev.BlocksSelected(0, policy, i32(0), 2, i32(2, 1), i32(0, 3, 0), i32(2), i8(priority), zero, zero, retained,
                             zero, 21, 100, **watched)  # fmt: skip


WATCHED = {"oracle_retained": f32(0.9, 0.9), "slack_least": f32(0.0, 1.0), "chances": f32(0.5, 0.25)}


def planned(verdict: str, src: ev.I32, dst: ev.I32) -> ev.CompactionPlanned:
    return ev.CompactionPlanned(verdict, src, dst, 13, 6, 5, len(src), 23, 17, 1846, 1385)


SAID = [
    (ev.ClockJumped(1_300_000), "nothing to run: simulated time jumps to the next arrival, 1.300 s"),
    (ev.RequestsArrived(i32(2)), "r2 arrived: 410 prompt tokens, 40 tokens to generate; it waits"),
    (ev.RequestsArrived(i32(3)), "r3 arrived: 20 prompt tokens, 5 tokens to generate, 2 samples; it waits"),
    (ev.RequestsArrived(i32(0, 1)), "2 requests arrived and wait: r0, r1"),
    (ev.RequestRejected(2, "num_blocks", 29, 16),
     "r2 rejected: it can never run, it needs 29 blocks and the pool has 16"),
    (ev.RequestRejected(1, "parent_rejected", 1, 0), "r1 rejected: it forks from a request that was rejected"),
    (ev.RequestCancelled(2, "deadline", i32(2)), "r2 cancelled: its cancel time was reached"),
    (ev.RequestCancelled(3, "parent", i32(3, 4)),
     "r3 cancelled: its parent ended before it could start; its sequences end: r3.0, r3.1"),
    (admitted(160, 1, 9, 240, 0, 0, 0, reserve=2, waiting=1),
     "r2 admitted: 160 of 410 prompt tokens hit (missed: 1 capped, 9 tail, 240 cold); "
     "needs 17 blocks of 33 available, 2 of them kept back by the watermark; 1 still waiting"),
    (ev.SequencePreempted(2, 2, "latest_arrived", 2, 1, 1, 210, 210, 0, 3, 1),
     "preempted r2 (latest arrived): r0 needed 3 blocks, 1 left; 210 computed tokens lost; next would be r1"),
    (ev.SequencePreempted(2, 2, "last_running", 2, -1, -1, 210, 210, 2, 1, 0),
     "preempted r2 (last in running order): it needed 1 block, 0 left; 210 computed tokens lost; no other could be"),
    (evicted("lru"), "evicted 1 cached block, least recently used first (block 8, last used at step 31); "
     "next would be block 9 (last used at step 33)"),
    (evicted("fifo", -1), "evicted 1 cached block, longest in the prefix index first "
     "(block 8, entered the index as number 11); no cached block is left"),
    (evicted("lfu"), "evicted 1 cached block, least often used first (block 8, used 1 time); "
     "next would be block 9 (used 4 times)"),
    (evicted("clock", hand=9), "evicted 1 cached block, first that the clock hand found without its bit "
     "(block 8, bit 0); next would be block 9 (bit 1); 1 bit cleared on the way, hand at block 9"),
    (evicted("seed"), "evicted 1 cached block, where seed placed the new blocks (block 8, last used at step 31); "
     "next would be block 9 (last used at step 33)"),
    (ev.BlocksAllocated(i32(2), i32(4), i32(3), i32(4, 5, 8), 2, 0, 1, 9),
     "r2 got blocks 4–5, 8 for its logical 4–6: they headed the free order (2 never used, 1 just evicted); "
     "block 9 is next"),
    (ev.BlocksAllocated(i32(0, 1), i32(4, 1), i32(1, 1), i32(4, 5), 0, 2, 0, -1),
     "r0, r1 got blocks 4–5: they headed the free order (2 freed before); none is left"),
    (ev.BlocksCopied(i32(1), i32(3), i32(3), i32(12), i32(7)),
     "copy-on-write: r1 writes token 55 into block 3, which others hold too (ref 2) → copied 7 tokens to block 12"),
    (ev.TokensWritten(i32(0), i32(2), i32(120)), "wrote K and V: 120 prefill tokens of r2 and 1 new token of r0"),
    (ev.TokensWritten(i32(0, 1), i32(), i32()), "wrote K and V: 1 new token each of r0, r1"),
    (ev.TokensWritten(i32(), i32(), i32()), "wrote nothing"),
    (ev.BlocksCached(i32(4, 5), i32(1, 2)),
     "blocks 4–5 are full and enter the prefix index: later prompts can share them"),
    (ev.SequencesForked(0, i32(1), i32(1), 56, np.array([0], dtype=np.uint8)),
     "r1 forked from r0: it shares its first 56 tokens in 4 blocks, ref +1 each; 1 waits for a seat"),
    (ev.SequenceSeated(1, 1), "r1 runs now: a seat among the running sequences came free"),
    (ev.BlocksFreed(i32(0), i32(4), i32(3, 2, 1, 0)),
     "r0 dropped 4 blocks, tail first: 1 stays cached, 2 free, 1 still held by others"),
    (ev.SequencesFinished(i32(3), i32()), "r3.0 finished: all tokens written; other samples of the request still run"),
    (ev.SequencesFinished(i32(3, 4), i32(3)), "r3.0, r3.1 finished: all tokens written; that completes r3"),
    (ev.RangeReserved(2, 2, 64, 450, 1),
     "r2 reserved 450 token slots, 64–513: the first hole that fits; 1 hole before it too short"),
    (ev.RangesFreed(i32(0)), "r0 gave back 0 token slots"),
    (step_ended(), "step 57 ended at 1.184 s: computed 120 prefill tokens and 1 decode token; "
     "23 blocks used, 9 cached, 8 free; 3 running, 1 waiting"),
    (selected(f32(0.5, 0.9)), "layer 0: r0 reads 3 of 8 blocks over 2 KV heads, chosen by paper; 21 % of the K/V read, "
     "attention mass kept 0.70 on average, 0.50 at worst"),
    (selected(f32()), "layer 0: r0 reads 3 of 8 blocks over 2 KV heads, chosen by paper; 21 % of the K/V read"),
    (selected(f32(0.5, 0.9), recalls=f32(1.0, 0.5), **WATCHED),
     "layer 0: r0 reads 3 of 8 blocks over 2 KV heads, chosen by paper; 21 % of the K/V read, "
     "attention mass kept 0.70 on average, 0.50 at worst; "
     "the oracle keeps 0.90 and 75 % of its blocks were chosen, a draw by lot finds 38 %"),
    (selected(f32(), recalls=f32(0.5, 0.25), **{**WATCHED, "slack_least": f32(0.0, -1.0)}),
     "layer 0: r0 reads 3 of 8 blocks over 2 KV heads, chosen by paper; 21 % of the K/V read, "
     "the oracle keeps 0.90 and 38 % of its blocks were chosen, a draw by lot finds 38 %: near chance; "
     "BOX BOUND BROKEN 1 times"),
    (selected(f32(), policy="seed-published", priority=0),
     "layer 0: r0 reads 3 of 8 blocks over 2 KV heads, chosen by seed-published; 21 % of the K/V read; "
     "1 sequence of low priority lost every block after the middle (S:442-445)"),
    (ev.LevelsAdapted(64, i32(0, 1, 2), i32(2, 1, 0), i8(1, -1, 0), 500, 600, 8),
     "window of 64 steps ended: protection levels: 1 raised, 1 lowered; "
     "block 0 level 1 → 2: 3 of 20 lookups hit (under 60 %) and 11 accesses (over 8); "
     "block 1 level 2 → 1: 19 of 20 lookups hit (over 90 %) and 2 accesses (under 4); "
     "access counts decay to 50 %"),
    (ev.LevelsAdapted(64, i32(0), i32(2), i8(1), 500),  # recorded before the thresholds were
     "window of 64 steps ended: protection levels: 1 raised, 0 lowered; "
     "block 0 level 1 → 2: 3 of 20 lookups hit, 11 accesses; access counts decay to 50 %"),
    (ev.LevelsAdapted(64, i32(), i32(), i8(), 500),
     "window of 64 steps ended: protection levels: no block changes its level; access counts decay to 50 %"),
    (planned("moved", i32(23, 22), i32(0, 1)), "compaction moves 2 blocks (block 23 → 0 first): 13 live blocks stand "
     "up to id 23 (span 1.85 × live) → up to 17 (1.39); 5 too heavy to move"),
    (planned("nothing to move", i32(), i32()), "no compaction (nothing to move): 13 live blocks stand up to id 23 "
     "(span 1.85 × live); 6 movable, 5 too heavy to move"),
    (ev.BlocksPlaced(i32(12), i8(1), i8(2), i32(13), 4, 3, 1),
     "seed places 1 block: block 12 cold, free in the other region, next would be block 13; "
     "1 hot but outside, the region was used up; the hot region is the first 4 blocks"),
    (ev.BlocksPlaced(i32(1, 9, 2), i8(0, 1, 0), i8(1, 1, 2), i32(2, 8, -1), 4, 3, 1, i8(0, 1, 0), 2, 1),
     "seed places 3 blocks: block 1 hot, evicted in its own region, next would be block 2; 1 hot in the hot region, "
     "1 cold kept out, 1 cold came in, nothing else was left, 2 took the place of cached ones, "
     "2 older ones spared by their region, 1 older ones spared by their level; the hot region is the first 4 blocks"),
    (ev.BlocksPlaced(i32(), i8(), i8(), i32(), 5, 0, 0),
     "the hot region grows, 6 of 9 hot requests missed it in this window: the hot region is the first 5 blocks"),
    (ev.KernelsTimed("block_scoring paged_attention", i32(1, 2), np.array([240.0, 4570.0]), np.array([1, 2]),
                     "reference"),
     "2 kernels ran in 3 calls, 4.81 ms in all; most in paged_attention, 4.57 ms (NumPy reference)"),
    (ev.KernelsTimed("", i32(), np.zeros(0), np.zeros(0, dtype=np.int64), "measured"), "no kernel ran in this step"),
]  # fmt: skip


def stream_state() -> StreamState:
    """Of 6 numbers, 0 and 1 hold two copies of hash 255 (batches 3 and 8), 2 holds hash 7; 12 batches are over."""
    made = StreamState(state().workload, 6, 16)
    for batch, place in ((3, 0), (8, 1)):
        made.step = batch
        apply(made, ev.StreamStored(0, i32(place), i64(255), 0, 0, 0, 16))
    apply(made, ev.StreamStored(0, i32(2), i64(7), 255, 1, 1, 16))
    made.step = 12
    return made


def i64(*values: int) -> ev.I64:
    return np.array(values, dtype=np.int64)


SAID_OF_STREAMS: list[tuple[ev.Event, str]] = [
    (ev.StreamStored(0, i32(3, 4), i64(-2, 7), 0, 0, 0, 16),
     "stored 2 blocks as our blocks 3–4 (hash fffffffffffffffe first), the start of a prefix; "
     "1 content of them now in one copy more; for which request is not told"),
    (ev.StreamRemoved(0, i32(0), i64(255), 1),
     "evicted 1 cached block, our block 0 (hash 00000000000000ff, stored 9 batches ago, 1 copy left)"),
    (ev.StreamCleared(i32(0, 1, 2)), "the server cleared its whole prefix cache: 3 blocks gone"),
    (ev.StreamGap(13, 1),
     "gap: 1 batch missing (sequence 13); what it stored and removed is unknown, "
     "so counts from here on are of what is seen"),
    (ev.StreamUnknown("BlockMoved"),
     "an event of unknown type 'BlockMoved': not applied, what it did is unknown"),
    (ev.StreamBatchEnded(12, 2_500_000, 1, 2, 0, 4, 9),
     "batch 12 ended, 2.500 s after the first: 1 stored, 2 evicted, 4 cleared; 9 blocks cached"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "expected"), SAID_OF_STREAMS, ids=lambda value: type(value).__name__)
def test_an_event_of_a_stream_is_said_in_words(event: ev.Event, expected: str) -> None:
    assert sentence(event, stream_state()) == expected


@pytest.mark.parametrize(("event", "expected"), SAID, ids=lambda value: type(value).__name__)
def test_an_event_is_said_in_words(event: ev.Event, expected: str) -> None:
    assert sentence(event, state()) == expected


def test_every_type_of_event_has_words() -> None:
    assert {type(event) for event, _ in [*SAID, *SAID_OF_STREAMS]} == set(ev.EVENT_TYPES)


def test_a_second_admission_names_the_tokens_to_recompute() -> None:
    before = state()
    before.num_preemptions[2] = 1
    before.status[2] = st.PREEMPTED
    said = sentence(admitted(0, 0, 0, -16, 0, 16, 0), before)
    expected = (
        "r2 re-admitted: 0 of 410 tokens to recompute hit (missed: 16 preempted); needs 17 blocks of 33 available"
    )
    assert said == expected


def test_saying_changes_nothing() -> None:
    before = state()
    for event, _ in SAID:
        sentence(event, before)
    assert before.equals(state())


def test_long_lists_say_how_many_they_leave_out() -> None:
    assert block_list([0, 1, 2, 9, 11, 13, 14]) == "blocks 0–2, 9, 11 and 2 more"
    assert [duration(t) for t in (3.0, 812, 4570, 1_200_000)] == ["3.00 µs", "812 µs", "4.57 ms", "1.20 s"]
