"""Small literal replays: a few requests in a tiny pool, and what happened as plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.engine.histories import run
from tinyserve_viz.analysis.metrics import Metrics
from tinyserve_viz.cli.session import Settings
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.check import StepChecker, check
from tinyserve_viz.core.state import STATUS_NAMES
from tinyserve_viz.engine.replay import Engine
from tinyserve_viz.trace.request import Request, Trace


def req(
    name: str,
    prompt: int,
    output: int,
    ids: list[int] | None = None,
    at: int = 0,
    cancel: int | None = None,
    **more: Any,
) -> Request:
    """A request; `at` and `cancel` in µs, `ids` one content id for each block of its prompt from the first on."""
    hashes = None if ids is None else np.array(ids, dtype=np.int64)
    return Request(name, at, prompt, output, hashes, cancel_at_us=cancel, **more)


class Scenario:
    """One replay, checked in full after every step; blocks of 4 tokens and no watermark unless told otherwise."""

    def __init__(
        self,
        *requests: Request,
        each: Callable[[Engine, ev.Event], None] | None = None,
        profile: str = "tinyserve",
        rules: dict[str, Any] | None = None,
        **engine: Any,
    ) -> None:
        sizes = {"block_size": 4, "num_blocks": 12, "max_batch_tokens": 64, "max_num_seqs": 8, "watermark_permille": 0}
        trace = Trace("scenario", "json", requests, hash_block=sizes["block_size"])
        if "block_size" in engine:
            trace = Trace("scenario", "json", requests, hash_block=engine["block_size"])
        checkers: list[StepChecker] = []

        def watch(running: Engine, step: int, event: ev.Event) -> None:
            if not checkers:
                checkers.append(StepChecker(running.state, 1, running.rules.cache_at == "scheduled"))
            checkers[0].add(step, event)
            if each is not None:
                each(running, event)

        chosen = Settings(engine={**sizes, **engine}, kernels="none", profile=profile, rules=rules or {})
        self.engine, self.header, self.events = run(trace, chosen, watch)
        self.state = self.engine.state
        assert checkers[0].violations == []
        assert check(self.state) == []
        metrics = Metrics(self.header.workload, self.header.engine)
        for step, event in self.events:
            metrics.add(step, event)
        self.metrics = metrics.as_dict(self.state)
        assert self.metrics["blocks"]["leaked"] == 0

    def of(self, kind: type[ev.Event]) -> list[Any]:
        """All events of one type."""
        return [event for _, event in self.events if type(event) is kind]

    def steps_of(self, kind: type[ev.Event]) -> list[int]:
        """The steps in which events of one type fell."""
        return [step for step, event in self.events if type(event) is kind]

    def fates(self) -> dict[str, str]:
        """What became of every sequence, by name."""
        w = self.header.workload
        return {w.seq_name(seq): STATUS_NAMES[self.state.status[seq]] for seq in range(w.num_seqs)}

    def allocated(self) -> list[tuple[str, list[int]]]:
        """(sequence, blocks) in order of allocation."""
        found = []
        for event in self.of(ev.BlocksAllocated):
            blocks = event.blocks.tolist()
            for seq, count in zip(event.seqs.tolist(), event.counts.tolist(), strict=True):
                found.append((self.header.workload.seq_name(seq), blocks[:count]))
                del blocks[:count]
        return found

    def misses(self) -> dict[str, int]:
        """Prompt tokens of each class that has any, `hit` included."""
        classes = {"hit": self.metrics["prefix"]["hit_tokens"], **self.metrics["prefix"]["misses"]}
        return {name: tokens for name, tokens in classes.items() if tokens}
