"""Random small traces for property tests, and a run of one with every event kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinyserve_viz.cli.session import Settings, prepare
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.rules import CHOICES, RULES_IN_WORDS
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.recording.header import Header
from tinyserve_viz.trace.request import Request, Trace

BLOCK = 4


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    """Up to 14 requests: shared prefixes, samples, children, cancellations, priorities, prompts of whole blocks."""
    requests: list[Request] = []
    arrival = 0
    for i in range(draw(st.integers(1, 14))):
        arrival += draw(st.sampled_from([0, 0, 1_000, 40_000, 300_000]))
        ids = [*range(draw(st.integers(0, 4))), *(100 * (i + 1) + k for k in range(draw(st.integers(0, 3))))]
        prompt = max(1, BLOCK * len(ids) - draw(st.integers(0, 3)) if ids else draw(st.integers(1, 9)))
        ids = ids[: -(-prompt // BLOCK)]
        output = draw(st.integers(0, 14))
        parent = draw(st.sampled_from(requests)) if requests and draw(st.integers(0, 4)) == 0 else None
        fork_at = None
        if parent is not None and draw(st.booleans()):
            fork_at = draw(st.integers(1, min(prompt, parent.prompt_len + parent.output_len)))
        requests.append(
            Request(
                id=f"r{i}",
                arrival_us=arrival,
                prompt_len=prompt,
                output_len=output,
                prefix_hash_ids=np.array(ids, dtype=np.int64) if ids and draw(st.integers(0, 4)) else None,
                n=draw(st.sampled_from([1, 1, 2, 3])) if parent is None else 1,
                parent=parent.id if parent is not None else None,
                fork_at=fork_at,
                cancel_at_us=arrival + draw(st.integers(0, 400_000)) if draw(st.integers(0, 5)) == 0 else None,
                priority=draw(st.sampled_from([0, 0, 0, 1])),
            )
        )
    return Trace(name="random", format="json", hash_block=BLOCK, requests=tuple(requests))


@st.composite
def settings_for(draw: st.DrawFn, kernels: str = "none") -> Settings:
    """Tiny pools, all policies and allocators, both profiles."""
    profile = draw(st.sampled_from(["tinyserve", "tinyserve", "vllm"]))
    allocator = draw(st.sampled_from(["paged"] * 5 + ["contiguous", "pow2", "exact"]))
    engine: dict[str, Any] = {
        "block_size": BLOCK,
        "num_blocks": draw(st.integers(6, 24)),
        "max_batch_tokens": draw(st.integers(3, 30)),
        "max_num_seqs": draw(st.integers(1, 5)),
        "max_model_len": 40,
        "watermark_permille": draw(st.sampled_from([0, 10, 200])),
        "eviction": draw(st.sampled_from(["lru", "fifo", "lfu", "clock", "seed"])) if profile == "tinyserve" else "lru",
        "allocator": allocator if profile == "tinyserve" else "paged",
        "prefix_caching": draw(st.sampled_from([True, True, True, False])),
    }
    arrivals = draw(st.sampled_from(["trace", "trace", "burst", "sequential"]))
    return Settings(engine=engine, profile=profile, arrivals=arrivals, kernels=kernels)


@st.composite
def any_rules(draw: st.DrawFn) -> Settings:
    """Settings whose rules are those of a profile with some changed, as `--rule` can."""
    chosen = draw(settings_for().filter(lambda settings: settings.engine["allocator"] == "paged"))
    names = draw(st.lists(st.sampled_from(sorted(RULES_IN_WORDS)), max_size=4, unique=True))
    for name in names:
        chosen.rules[name] = draw(st.sampled_from(CHOICES.get(name, (True, False))))
    if chosen.rules.get("free_order") == "queue":
        chosen.engine["eviction"] = "lru"
    return chosen


def run(
    trace: Trace, settings: Settings, each: Callable[[Engine, int, ev.Event], None] | None = None
) -> tuple[Engine, Header, list[tuple[int, ev.Event]]]:
    """Replay `trace`; returns the engine at its end and every (step, event)."""
    header = prepare(trace, settings)
    events: list[tuple[int, ev.Event]] = []

    def sink(step: int, event: ev.Event) -> None:
        events.append((step, event))
        if each is not None:
            each(engine, step, event)

    engine = Engine(header.workload, header.engine, header.rules, sink, settings.arrivals == "sequential")
    while engine.step():
        assert engine.state.step < 5000, "the replay does not come to an end"
    return engine, header, events
