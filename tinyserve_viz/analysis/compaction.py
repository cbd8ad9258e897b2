"""What compaction would do now, on any state of any recording, whether or not it is due: plan, cost, gain, verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinyserve_viz.analysis.fragmentation import Fragmentation, measure, verdict_in_words
from tinyserve_viz.analysis.sentences import count, duration
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.compaction import RULES, VERDICTS, CompactionPlan, CompactionRule, plan
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.header import Header


@dataclass(frozen=True, slots=True, eq=False)
class CompactionPreview:
    """A plan that nobody has carried out. `due`: the engine would, in this step.

    `verdict` says in words what the rule makes of it; `num_bytes` are read and written by the moves (K and V, all
    layers); `predicted_us` at the copy bandwidth that the recording's header holds, None where it has none.
    `before` and `after` are the measures of the state as it is and as the moves would leave it; `block_bytes` is K of
    one block in one layer.
    """

    rule_name: str
    rule: CompactionRule
    plan: CompactionPlan
    due: bool
    verdict: str
    num_bytes: int
    predicted_us: float | None
    bandwidth_of: str
    before: Fragmentation
    after: Fragmentation
    block_bytes: int

    def pinned_blocks(self) -> ev.I32:
        """Ids of the live blocks that are too heavy to move."""
        return np.flatnonzero(self.plan.weight >= self.rule.threshold).astype(np.int32)

    def costs(self) -> list[str]:
        """Whether the fragmentation as it is costs anything, in words."""
        return verdict_in_words(self.before, self.block_bytes)

    def line(self) -> str:
        """One sentence: moves, cost, gain, and what the rule says."""
        p = self.plan
        cost = "" if self.predicted_us is None else f", {duration(self.predicted_us)} predicted by {self.bandwidth_of}"
        return (
            f"{count(len(p.src), 'move')} ({self.num_bytes:,} bytes{cost}) would bring the highest live block from "
            f"{p.top_before} to {p.top_after}, span {p.frag_permille_before / 1000:.2f} → "
            f"{p.frag_permille_after / 1000:.2f} × live; {p.pinned} pinned; {self.verdict}"
        )


def preview(header: Header, state: CacheState, rule_name: str | None = None) -> CompactionPreview:
    """The plan on `state` by the header's rule or the one named; with compaction off, by `intelligent`."""
    configured = header.engine.compaction
    name = rule_name or (configured if configured in RULES else "intelligent")
    rule = RULES[name]
    cached = ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8)
    found = plan(state.ref, cached, state.freq, state.level, rule)
    wait = rule.cools_down(state.step, state.compacted_at)
    moves = VERDICTS[found.verdict] == "moved"
    copy = header.origin.get("copy_bandwidth")
    num_bytes = 2 * len(found.src) * state.block_size * header.model.token_bytes
    return CompactionPreview(
        rule_name=name,
        rule=rule,
        plan=found,
        due=moves and not wait and configured == name,
        verdict=_verdict(configured, VERDICTS[found.verdict], wait),
        num_bytes=num_bytes,
        predicted_us=predicted_us(num_bytes, copy["gb_per_s"]) if copy else None,
        bandwidth_of=copy["of"] if copy else "",
        before=measure(state),
        after=measure(_moved(state, found)),
        block_bytes=state.block_size * header.model.num_kv_heads * header.model.head_dim * 2,
    )


def predicted_us(num_bytes: int, gb_per_s: float) -> float:
    """Time to read and write `num_bytes` in all at a copy bandwidth that counts both."""
    return num_bytes / gb_per_s / 1e3


def _verdict(configured: str, verdict: str, wait: int) -> str:
    if configured not in RULES:
        return f"compaction is off; the rule would say: {verdict}"
    if wait:
        return f"cooling down, {count(wait, 'step')} left; then: {verdict}"
    return "due now" if verdict == "moved" else f"not done: {verdict}"


def _moved(state: CacheState, found: CompactionPlan) -> CacheState:
    after = state.copy()
    event = ev.CompactionPlanned(
        "moved",
        found.src,
        found.dst,
        found.live,
        found.movable,
        found.pinned,
        len(found.src),
        found.top_before,
        found.top_after,
        found.frag_permille_before,
        found.frag_permille_after,
    )
    apply(after, event)
    return after
