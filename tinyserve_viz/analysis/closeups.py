"""Close-ups of the last step that a frame may hold: what was selected and why, who attends over how much, levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.compaction import CompactionPreview, preview
from tinyserve_viz.analysis.inspection import Inspector, ScoreRule, Scores, Shares
from tinyserve_viz.analysis.quality import near_chance
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.header import Header

REQUIREMENTS = PRIORITIES = ("low", "medium", "high")
NUM_LEVELS = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence of a selection: the chain from its complexity to the blocks that it reads.

    `terms` are weighted complexity, requirement and history, which add up to `score`; None where the weights are not
    known. `kept` blocks of `num_blocks` by any head, `budget` by each; `retained` attention mass, mean and worst head,
    and what the oracle's choice of as many blocks retains.
    """

    seq: int
    complexity: float
    requirement: int
    terms: tuple[float, float, float] | None
    score: float
    priority: int
    num_blocks: int
    budget: int
    kept: int
    retained: tuple[float, float] | None
    oracle_retained: float | None


@dataclass(frozen=True, slots=True)
class Rate:
    """A hit rate by its own name: of the chosen sequence, or of the pool, and in `others` what to compare it with.
    None: not measured."""

    name: str
    value: float | None
    meaning: str
    others: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """How the sequences of `step` chose in `layer` what to read; `choice(i)` is the chain of one of them.

    `at` is the chosen sequence's place among `seqs` (−1: it chose nothing); `chosen` bool [num_heads][blocks] what it
    reads, `scores` what it saw, or None and `no_scores` says why. `read` of `held` tokens over all sequences.
    """

    step: int
    layer: int
    num_layers: int
    policy: str
    num_heads: int
    seqs: ev.I32
    lengths: ev.I32
    block_size: int
    event: ev.BlocksSelected
    rule: ScoreRule | None
    at: int
    chosen: NDArray[np.bool_]
    scores: Scores | None
    no_scores: str
    rates: tuple[Rate, ...]

    def __len__(self) -> int:
        return len(self.seqs)

    def choice(self, place: int) -> Choice:
        """The chain of the sequence at `place`."""
        event, rule = self.event, self.rule
        complexity, score = float(event.complexity[place]), float(event.row_scores[place])
        requirement = int(event.requirements[place])
        terms = None
        if rule is not None:
            first = rule.complexity / 1000 * min(complexity, 1.0)
            second = rule.requirement / 1000 * requirement
            terms = first, second, max(0.0, score - first - second)
        retained = None
        if len(event.retained):
            mass = event.retained.reshape(len(self.seqs), -1)[place]
            retained = float(mass.mean()), float(mass.min())
        counts = event.counts[place * self.num_heads : (place + 1) * self.num_heads]
        return Choice(
            seq=int(self.seqs[place]),
            complexity=complexity,
            requirement=requirement,
            terms=terms,
            score=score,
            priority=int(event.priorities[place]),
            num_blocks=-(-int(self.lengths[place]) // self.block_size),
            budget=int(counts.max(initial=0)),
            kept=len(np.unique(chosen_blocks(event, place))),
            retained=retained,
            oracle_retained=_mean_of(event.oracle_retained, event, place),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """The attention of `step` over workers: over all blocks of `seqs`, and over those that were kept."""

    step: int
    seqs: ev.I32
    dense: Shares
    kept: Shares


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Protection levels now: `spread` blocks in use or cached at each; of this window `done` of `window` steps, prefix
    `hits` of `lookups`, `accesses` by selections (decayed). Hot region: see `CacheState`."""

    spread: tuple[int, ...]
    window: int
    done: int
    hits: int
    lookups: int
    accesses: int
    hot_size: int
    hot_requests: int
    hot_misses: int


@dataclass(frozen=True, slots=True, eq=False)
class Compaction:
    """What a compaction would do now, or with `done` what the last event's compaction did; `kinds` uint8 [num_blocks]
    says of every block before it (BLOCK_KINDS), `after` bool [num_blocks] which are live then."""

    plan: CompactionPreview
    kinds: ev.U8
    after: NDArray[np.bool_]
    done: bool


BLOCK_KINDS = ("free", "cached", "live", "pinned", "moves", "is filled")


def chosen_blocks(event: ev.BlocksSelected, place: int) -> ev.I32:
    """Logical blocks that the sequence at `place` reads, one head after the other."""
    ends = np.concatenate([[0], np.cumsum(event.counts)])
    first = place * event.num_heads
    return event.selected[int(ends[first]) : int(ends[first + event.num_heads])]


def selection_of(
    step: int,
    event: ev.BlocksSelected,
    lengths: ev.I32,
    state: CacheState,
    seq: int,
    num_layers: int,
    inspector: Inspector | None,
) -> Selection:
    """The close-up of `event`, when its sequences had `lengths` tokens; `state` is that of the frame."""
    places = np.flatnonzero(event.seqs == seq)
    at = int(places[0]) if len(places) else -1
    scores, no_scores = None, "this sequence chose nothing in that step"
    chosen = np.zeros((event.num_heads, 0), dtype=np.bool_)
    if at >= 0:
        chosen = _mask(event, at, -(-int(lengths[at]) // state.block_size))
        scores, no_scores = _scores(event, at, int(lengths[at]), inspector)
    return Selection(
        step=step,
        layer=event.layer,
        num_layers=num_layers,
        policy=event.policy,
        num_heads=event.num_heads,
        seqs=event.seqs,
        lengths=lengths,
        block_size=state.block_size,
        event=event,
        rule=None if inspector is None else inspector.rule,
        at=at,
        chosen=chosen,
        scores=scores,
        no_scores=no_scores,
        rates=_rates(event, at, state, seq),
    )


def _scores(
    event: ev.BlocksSelected, at: int, length: int, inspector: Inspector | None
) -> tuple[Scores | None, str]:
    if inspector is None:
        return None, "scores are not worked out again here"
    if inspector.why_not:
        return None, inspector.why_not
    scores = inspector.scores(int(event.seqs[at]), length, event.layer)
    return scores, "" if scores is not None else f"{length:,} tokens are too many to score again for a picture"


def _mask(event: ev.BlocksSelected, place: int, blocks: int) -> NDArray[np.bool_]:
    mask = np.zeros((event.num_heads, blocks), dtype=np.bool_)
    counts = event.counts[place * event.num_heads : (place + 1) * event.num_heads]
    mask[np.repeat(np.arange(event.num_heads), counts), chosen_blocks(event, place)] = True
    return mask


def _rates(event: ev.BlocksSelected, at: int, state: CacheState, seq: int) -> tuple[Rate, ...]:
    def rate(name: str, values: ev.F32, meaning: str, by_lot: str = "") -> Rate:
        asked = values[values >= 0]
        others = f"all sequences {100 * float(asked.mean()):.0f} %{by_lot}" if len(asked) else ""
        return Rate(name, _mean_of(values, event, at), meaning, others)

    chance = _mean_of(event.chances, event, at)
    by_lot = f", by lot {100 * chance:.0f} %" if chance is not None else ""
    recall = _mean_of(event.recalls, event, at)
    if recall is not None and chance is not None and near_chance(recall, chance):
        by_lot += ": near chance"
    prompt = int(state.workload.prompt_len[state.workload.request_of_seq[seq]]) if seq >= 0 else 0
    hot = state.hot_requests
    return (
        Rate("prefix hit", int(state.hit_tokens[seq]) / prompt if prompt else None, "of its prompt was cached"),
        rate("selection recall", event.recalls, "of the oracle's blocks were chosen", by_lot),
        rate("temporal reuse", event.reuses, "of these blocks were chosen a step before"),
        rate("next-step recall", event.next_recalls, "of the oracle's blocks were chosen a step before"),
        Rate("hot-region hit", 1 - state.hot_misses / hot if hot else None, "of hot requests got hot blocks"),
    )


def _mean_of(values: ev.F32, event: ev.BlocksSelected, place: int) -> float | None:
    """The mean of one sequence's entries; None where nothing was observed, or nothing could be (negative)."""
    if place < 0 or not len(values):
        return None
    own = values.reshape(len(event.seqs), -1)[place]
    return None if float(own.min()) < 0 else float(own.mean())


def work_of(step: int, event: ev.BlocksSelected, lengths: ev.I32, inspector: Inspector) -> Work:
    """Who attends over how much in the step of `event`, with and without the selection."""
    kept = np.ascontiguousarray(event.counts[:: event.num_heads])
    return Work(step, event.seqs, inspector.shares(lengths, None), inspector.shares(lengths, kept))


def level_spread(state: CacheState) -> tuple[int, ...]:
    """Blocks in use or cached at each protection level."""
    held = (state.ref > 0) | (state.hash >= 0)
    held[: state.null_blocks] = False
    return tuple(np.bincount(state.level[held], minlength=NUM_LEVELS).tolist())


def levels_of(state: CacheState, window: int) -> Levels:
    """The levels of `state`, in windows of so many steps."""
    return Levels(
        spread=level_spread(state),
        window=window,
        done=state.step % window,
        hits=int(state.window_hits.sum()),
        lookups=int(state.window_lookups.sum()),
        accesses=int(state.freq.sum()),
        hot_size=state.hot_size,
        hot_requests=state.hot_requests,
        hot_misses=state.hot_misses,
    )


def compaction_of(header: Header, state: CacheState, done: bool) -> Compaction:
    """The compaction of `state`; with `done` that state is the one on which the last event decided."""
    found = preview(header, state)
    kinds = np.zeros(state.num_blocks, dtype=np.uint8)
    live = state.ref > 0
    kinds[(state.ref == 0) & (state.hash >= 0)] = BLOCK_KINDS.index("cached")
    kinds[live] = BLOCK_KINDS.index("live")
    kinds[found.pinned_blocks()] = BLOCK_KINDS.index("pinned")
    kinds[found.plan.src] = BLOCK_KINDS.index("moves")
    kinds[found.plan.dst] = BLOCK_KINDS.index("is filled")
    after = live.copy()
    after[found.plan.src] = False
    after[found.plan.dst] = True
    return Compaction(found, kinds, after, done)
