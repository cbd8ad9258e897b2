"""The engine against an independent simulator of its rules, event for event, on random traces without forks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.histories import BLOCK, run, traces
from tests.engine.reference_simulator import Happened, Job, simulate
from tinyserve_viz.cli.session import Settings
from tinyserve_viz.core import events as ev
from tinyserve_viz.trace.request import Trace


def without_forks(trace: Trace) -> Trace:
    requests = [replace(r, n=1, parent=None, fork_at=None) for r in trace.requests]
    return replace(trace, requests=tuple(requests))


def told(events: list[tuple[int, ev.Event]]) -> list[Happened]:
    """What the engine's events say, in the words of the simulator."""
    happened: list[Happened] = []
    for _, event in events:
        match event:
            case ev.RequestsArrived():
                happened += [("arrived", r) for r in event.requests.tolist()]
            case ev.RequestRejected():
                happened.append(("rejected", event.request, event.needed, event.available))
            case ev.RequestCancelled():
                happened.append(("cancelled", event.request))
            case ev.SequenceAdmitted():
                happened.append(("admitted", event.seq, event.hits.tolist()))
            case ev.SequencePreempted():
                happened.append(("preempted", event.seq, event.lost_tokens))
            case ev.BlocksEvicted():
                happened.append(("evicted", event.blocks.tolist()))
            case ev.BlocksAllocated() | ev.BlocksFreed():
                blocks = event.blocks.tolist()
                for seq, count in zip(event.seqs.tolist(), event.counts.tolist(), strict=True):
                    what = "allocated" if isinstance(event, ev.BlocksAllocated) else "freed"
                    happened.append((what, seq, blocks[:count]))
                    del blocks[:count]
            case ev.TokensWritten():
                prefill = zip(event.prefill_seqs.tolist(), event.prefill_counts.tolist(), strict=True)
                happened.append(("written", event.decode_seqs.tolist(), list(prefill)))
            case ev.BlocksCached():
                happened.append(("cached", event.blocks.tolist()))
            case ev.SequencesFinished():
                happened.append(("finished", event.seqs.tolist()))
            case ev.StepEnded():
                happened.append(("step", event.time_us, event.used_blocks, event.cached_free_blocks))
    return happened


def grouped(happened: list[Happened]) -> list[Happened]:
    """Arrivals that one event names come before what happens to each of them: put them in that order."""
    first, rest, out = [], [], list[Happened]()
    for item in [*happened, ("end",)]:
        if item[0] == "arrived":
            first.append(item)
        elif item[0] == "rejected":
            rest.append(item)
        else:
            out += [*first, *rest, item]
            first, rest = [], []
    return out


@st.composite
def engines(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "block_size": BLOCK,
        "num_blocks": draw(st.integers(1, 20)),
        "max_batch_tokens": draw(st.integers(1, 40)),
        "max_num_seqs": draw(st.integers(1, 6)),
        "watermark_permille": draw(st.sampled_from([0, 100, 300])),
        "eviction": draw(st.sampled_from(["lru", "fifo", "lfu", "clock"])),
        "prefix_caching": draw(st.sampled_from([True, True, True, False])),
    }


@settings(max_examples=400)
@given(traces(), engines())
def test_the_engine_decides_what_the_simulator_decides(trace: Trace, engine: dict[str, Any]) -> None:
    trace = without_forks(trace)
    _, header, events = run(trace, Settings(engine=engine, kernels="none"))
    w = header.workload
    jobs = [
        Job(
            number=i,
            arrival=r.arrival_us,
            prompt=r.prompt_len,
            output=r.output_len,
            hashes=w.hashes_of(i).tolist(),
            priority=r.priority,
            cancel_at=-1 if r.cancel_at_us is None else r.cancel_at_us,
        )
        for i, r in enumerate(trace.requests)
    ]
    reserve = engine["num_blocks"] * engine["watermark_permille"] // 1000
    expected = simulate(
        jobs,
        engine["num_blocks"],
        BLOCK,
        engine["max_batch_tokens"],
        engine["max_num_seqs"],
        reserve,
        engine["eviction"],
        engine["prefix_caching"],
    )
    assert grouped(told(events)) == grouped(expected)


@pytest.mark.parametrize("policy", ["lru", "fifo", "lfu", "clock"])
def test_the_simulator_itself_evicts_preempts_and_hits(policy: str) -> None:
    jobs = [Job(i, 1000 * i, 8, 6, [i % 2, 10 + i % 3]) for i in range(9)]
    kinds = {item[0] for item in simulate(jobs, 6, 4, 16, 4, 0, policy, True)}
    assert kinds == {"arrived", "admitted", "allocated", "evicted", "preempted", "freed", "written", "cached",
                     "finished", "step"}  # fmt: skip
