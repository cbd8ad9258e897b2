"""Whatever the trace: invariants hold, nothing leaks, everything that can complete completes, and it replays alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from tests.engine.histories import any_rules, run, settings_for, traces
from tinyserve_viz.analysis.metrics import Metrics, leaked_blocks
from tinyserve_viz.cli.session import Settings
from tinyserve_viz.core import events as ev
from tinyserve_viz.core import state as st
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.check import StepChecker, check
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.recording.codec import check_types
from tinyserve_viz.recording.recorder import Digest
from tinyserve_viz.trace.request import Trace


@settings(max_examples=250)
@given(traces(), settings_for())
def test_every_step_of_any_history_is_sound(trace: Trace, chosen: Settings) -> None:
    checkers: list[StepChecker] = []

    def each(engine: Engine, step: int, event: ev.Event) -> None:
        if not checkers:
            checkers.append(StepChecker(engine.state, 1, engine.rules.cache_at == "scheduled"))
        check_types(event)
        checkers[0].add(step, event)
        assert checkers[0].violations == []

    engine, header, events = run(trace, chosen, each)
    state, w = engine.state, header.workload
    assert check(state) == []
    assert leaked_blocks(state) == 0
    assert state.num_used == state.null_blocks
    over = {st.FINISHED, st.REJECTED, st.CANCELLED}
    first = state.status[w.first_seq]
    assert {int(status) for status in first} <= over
    rejected = {event.request for _, event in events if isinstance(event, ev.RequestRejected)}
    cancelled = {event.request for _, event in events if isinstance(event, ev.RequestCancelled)}
    completed = [r for _, event in events if isinstance(event, ev.SequencesFinished) for r in event.requests.tolist()]
    assert sorted([*completed, *rejected, *cancelled]) == list(range(w.num_requests))
    metrics = Metrics(w, header.engine)
    for step, event in events:
        metrics.add(step, event)
    found = metrics.as_dict(state)
    forked = {seq for _, event in events if isinstance(event, ev.SequencesForked) for seq in event.children.tolist()}
    hit_blocks: dict[int, int] = {}  # what was hit at first and never had to be computed again: hits are a prefix
    for _, event in events:
        if isinstance(event, ev.SequenceAdmitted) and event.seq not in forked:
            hit_blocks[event.seq] = min(hit_blocks.get(event.seq, len(event.hits)), len(event.hits))
    prompts = sum(int(w.prompt_len[w.request_of_seq[seq]]) for seq in hit_blocks)
    assert found["prefix"]["hit_tokens"] + sum(found["prefix"]["misses"].values()) == prompts
    assert found["prefix"]["hit_tokens"] == sum(hit_blocks.values()) * header.engine.block_size
    assert all(tokens >= 0 for tokens in found["prefix"]["misses"].values())
    if header.engine.allocator == "paged":
        assert found["utilization"]["decode"] is None or 0 < found["utilization"]["decode"] <= 1


@settings(max_examples=150)
@given(traces(), any_rules())
def test_every_step_is_sound_whichever_rules_are_changed(trace: Trace, chosen: Settings) -> None:
    def each(engine: Engine, step: int, event: ev.Event) -> None:
        if not checkers:
            checkers.append(StepChecker(engine.state, 1, engine.rules.cache_at == "scheduled"))
        checkers[0].add(step, event)
        assert checkers[0].violations == []

    checkers: list[StepChecker] = []
    engine, header, _ = run(trace, chosen, each)
    assert check(engine.state) == []
    assert engine.state.num_used == engine.state.null_blocks
    over = {st.FINISHED, st.REJECTED, st.CANCELLED}
    assert {int(status) for status in engine.state.status[header.workload.first_seq]} <= over


@settings(max_examples=60)
@given(traces(), settings_for())
def test_two_runs_have_one_digest_and_applying_the_events_rebuilds_the_state(trace: Trace, chosen: Settings) -> None:
    engine, header, events = run(trace, chosen)
    _, _, again = run(trace, chosen)
    first, second = Digest(), Digest()
    rebuilt = header.empty_state()
    for step, event in events:
        first.add(step, event)
        apply(rebuilt, event)
    for step, event in again:
        second.add(step, event)
    assert first.hexdigest() == second.hexdigest()
    assert rebuilt.equals(engine.state)


@settings(max_examples=120)
@given(traces(), settings_for())
def test_every_generated_token_is_written_once_unless_its_sequence_was_preempted(
    trace: Trace, chosen: Settings
) -> None:
    engine, header, events = run(trace, chosen)
    w = header.workload
    decoded = np.zeros(w.num_seqs, dtype=np.int64)
    preempted = set()
    for _, event in events:
        if isinstance(event, ev.TokensWritten):
            decoded[event.decode_seqs] += 1
        elif isinstance(event, ev.SequencePreempted):
            preempted.add(event.seq)
    stored = w.output_len - (0 if header.rules.store_last_token else 1)
    for seq in np.flatnonzero(engine.state.status == st.FINISHED).tolist():
        if seq not in preempted:
            assert decoded[seq] == max(0, int(stored[w.request_of_seq[seq]]))
