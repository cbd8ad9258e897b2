"""When blocks should move together, which, and where to: plain arithmetic on block arrays.

The engine asks the kernel `intelligent_memory_compaction`, whose reference is `plan` here; views ask `plan` itself, so
that what a screen previews on any state is what the engine would decide there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]

VERDICTS = ("moved", "not triggered", "too few moves", "does not pay back", "nothing to move")
NOBODY_IS_PINNED = 1 << 62  # a threshold that no weight reaches


@dataclass(frozen=True, slots=True)
class CompactionRule:
    """Numbers that steer, all whole; ratios and weights per mille. Source and range of each: `kernels.parameters`.

    A block's weight is `weight_uses` · accesses + `weight_level` · protection level + `weight_shared` if several
    sequences hold it; blocks of `threshold` or more are pinned. A plan is made when (highest live id + 1) / live passes
    `trigger`, `cooldown` steps after the last one. It is dropped when it has fewer than `min_moves` moves, or releases
    fewer than `payback` ids at the top per move; each move must come down by `min_gain` ids.
    """

    threshold: int = 2000
    weight_uses: int = 1000
    weight_level: int = 1000
    weight_shared: int = 4000
    trigger: int = 1500
    min_moves: int = 4
    min_gain: int = 1
    payback: int = 1000
    cooldown: int = 16

    def weights(self, ref: I32, uses: I32, level: I32) -> NDArray[np.int64]:
        """What stands against moving each block, per mille."""
        heavy = np.int64(self.weight_uses) * uses + np.int64(self.weight_level) * level
        heavy += np.int64(self.weight_shared) * (ref > 1)
        return np.asarray(heavy)

    def cools_down(self, step: int, last: int) -> int:
        """Steps until a plan may be made again, 0 when now; `last` is the step of the last one, −1: none yet."""
        return 0 if last < 0 else max(0, last + self.cooldown - step)


RULES: dict[str, CompactionRule] = {
    "intelligent": CompactionRule(),
    "plain": CompactionRule(threshold=NOBODY_IS_PINNED),
}
"""By the name that `--compaction` takes. `plain` is the published unweighted kernel: every live block may move."""


@dataclass(frozen=True, slots=True, eq=False)
class CompactionPlan:
    """What a compaction would do now: `src` int32 [k] to `dst`, whether or not `verdict` (of VERDICTS) lets it.

    `weight` int64 [num_blocks] per mille, 0 where nothing is live; (top + 1) / live per mille before and after.
    """

    src: I32
    dst: I32
    verdict: int
    weight: NDArray[np.int64]
    live: int
    free: int
    movable: int
    pinned: int
    top_before: int
    top_after: int
    frag_permille_before: int
    frag_permille_after: int


def plan(
    ref: I32, cached: NDArray[np.uint8], uses: I32, level: I32, rule: CompactionRule, max_moves: int | None = None
) -> CompactionPlan:
    """Pair the k-th lowest hole with the k-th highest movable block while the move comes down by `min_gain` or more.

    Live is ref > 0; movable is live and lighter than the threshold; a hole is neither referenced nor `cached` (free but
    in the prefix index). So sources and destinations are disjoint, and no pinned or cached block is overwritten.
    """
    live = ref > 0
    heavy = rule.weights(ref, uses, level)
    movable = live & (heavy < rule.threshold)
    holes = np.flatnonzero(~live & (cached == 0))
    movers = np.flatnonzero(movable)[::-1]
    pairs = min(len(holes), len(movers), len(ref) if max_moves is None else max_moves)
    planned = int(np.sum(movers[:pairs] - holes[:pairs] >= rule.min_gain))
    src, dst = movers[:planned].astype(np.int32), holes[:planned].astype(np.int32)
    num_live, num_movable = int(live.sum()), int(movable.sum())
    top = _highest(live)
    moved = live.copy()
    moved[src] = False
    moved[dst] = True
    new_top = _highest(moved)
    frag = (top + 1) * 1000 // num_live if num_live else 0
    if rule.trigger and frag <= rule.trigger:
        verdict = VERDICTS.index("not triggered")
    elif not planned:
        verdict = VERDICTS.index("nothing to move")
    elif planned < rule.min_moves:
        verdict = VERDICTS.index("too few moves")
    elif (top - new_top) * 1000 < rule.payback * planned:
        verdict = VERDICTS.index("does not pay back")
    else:
        verdict = VERDICTS.index("moved")
    return CompactionPlan(
        src=src,
        dst=dst,
        verdict=verdict,
        weight=np.where(live, heavy, 0),
        live=num_live,
        free=len(holes),
        movable=num_movable,
        pinned=num_live - num_movable,
        top_before=top,
        top_after=new_top,
        frag_permille_before=frag,
        frag_permille_after=(new_top + 1) * 1000 // num_live if num_live else 0,
    )


def _highest(live: NDArray[np.bool_]) -> int:
    ids = np.flatnonzero(live)
    return int(ids[-1]) if len(ids) else -1
