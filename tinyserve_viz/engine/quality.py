"""How good a choice of blocks was: compared with true attention, with the oracle at the same budget, and with itself.

Everything here is observed and steers nothing. The truth comes from the kernel `block_mass`: the softmax mass of every
block for every query head, and the largest logit of every block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.config import EngineConfig, ModelConfig
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.kernels.decision_math import reduce_group
from tinyserve_viz.kernels.defs.block_scoring import REDUCTION
from tinyserve_viz.memory.policies.selection.policy import SelectionPolicy

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Mask = NDArray[np.bool_]

_FP16 = 2
_ROUNDING = np.float32(1e-5)  # of sums over query heads, which the score adds before scaling and the logits after


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What was read back for the sequences that attend, k of them, width W: box scores and what they bound.

    `score` [k][num_kv_heads][W] box scores, reduced by `reduction`; `mass` and `peak` [k][num_heads][W] attention mass
    and largest scaled logit of every block; `num_blocks` int32 [k].
    """

    score: F32
    mass: F32
    peak: F32
    num_blocks: I32
    scale: np.float32
    reduction: str


class Watcher:
    """Compares choices with the truth, and with the choice of the step before, which it keeps per layer."""

    def __init__(self, state: CacheState, engine: EngineConfig, model: ModelConfig) -> None:
        self._state, self._engine, self._model = state, engine, model
        self._before: dict[int, tuple[int, I32, Mask]] = {}  # layer → (step, sequences, their choices)

    def observe(self, layer: int, seqs: I32, chosen: Mask, truth: Truth) -> dict[str, Any]:
        """Observed fields of `BlocksSelected` (core/events.py), `retained` among them; `chosen` [k][num_heads][W]."""
        model = self._model
        k, heads, width = chosen.shape
        group = model.num_heads // model.num_kv_heads
        by_head = truth.mass.reshape(k, model.num_kv_heads, group, width)
        kv_mass = reduce_group(by_head, REDUCTION.index("mean"), axis=2)
        kept = chosen.sum(axis=2)
        best = oracle_choice(kv_mass if heads > 1 or model.num_kv_heads == 1 else kv_mass.sum(axis=1)[:, None], kept)
        before, asked = self._choice_before(layer, seqs, chosen)
        masks = np.stack([chosen, best], axis=3).astype(np.float32)
        mass_kept = truth.mass.reshape(k, heads, -1, width) @ masks  # [k][heads][query heads of one][2]
        unknown = np.repeat(~asked, heads)
        peak = reduce_group(truth.peak.reshape(by_head.shape), REDUCTION.index(truth.reduction), axis=2)
        slack_least, slack_mean = _slack(truth, peak)
        return {
            "recalls": _share((chosen & best).sum(axis=2), kept),
            "chances": _share(kept, np.broadcast_to(truth.num_blocks[:, None], kept.shape)),
            "reuses": np.where(unknown, np.float32(-1), _share((chosen & before).sum(axis=2), kept)),
            "next_recalls": np.where(unknown, np.float32(-1), _share((best & before).sum(axis=2), kept)),
            "retained": mass_kept[..., 0].ravel(),
            "oracle_retained": mass_kept[..., 1].ravel(),
            "slack_least": slack_least,
            "slack_mean": slack_mean,
        }

    def _choice_before(self, layer: int, seqs: I32, chosen: Mask) -> tuple[Mask, Mask]:
        """What each of `seqs` chose in the step before, as wide as `chosen`, and whether it was asked then [k]."""
        step, num = self._state.step, self._state.workload.num_seqs
        last, known, masks = self._before.get(layer, (-1, seqs[:0], chosen[:0]))
        self._before[layer] = (step, seqs, chosen)
        if last == step - 1 and masks.shape == chosen.shape and np.array_equal(known, seqs):
            return masks, np.ones(len(seqs), dtype=np.bool_)
        place = np.full(num, -1, dtype=np.int64)
        if last == step - 1:
            place[known] = np.arange(len(known))
        at = place[seqs]
        before = np.zeros_like(chosen)
        width = min(masks.shape[2], chosen.shape[2])
        if (at >= 0).any():
            before[at >= 0, :, :width] = masks[at[at >= 0], :, :width]
        return before, at >= 0

    def meters(self, tokens_read: int, tokens_held: int, num_blocks: int, policy: SelectionPolicy) -> dict[str, int]:
        """Bytes of a layer: chosen K and V, what was read to choose, K and V of full attention, all that is resident.

        Tokens are summed over sequences and KV heads; `num_blocks` over the sequences.
        """
        model, row = self._model, self._model.head_dim * _FP16
        boxes = 2 * row * model.num_kv_heads
        to_choose = 0
        if policy.ranks_by == "box" or policy.budget != "paper":
            to_choose = num_blocks * boxes
        elif policy.ranks_by in ("mass", "window"):
            to_choose = tokens_held * row
        used = self._state.num_used - self._state.null_blocks
        return {
            "bytes_read": 2 * row * tokens_read,
            "bytes_to_choose": to_choose,
            "bytes_dense": 2 * row * tokens_held,
            "bytes_resident": used * (2 * row * model.num_kv_heads * self._engine.block_size + boxes),
        }


def chosen_mask(selected: I32, width: int) -> Mask:
    """[k][num_heads][width] from lists [k][num_heads][most] that end in −1."""
    k, heads = selected.shape[:2]
    mask = np.zeros((k * heads, width + 1), dtype=np.bool_)  # the −1 go into a column behind the others
    mask[np.arange(k * heads)[:, None], selected.reshape(k * heads, -1)] = True
    return mask[:, :width].reshape(k, heads, width)


def tokens_of(selected: I32, count: I32, context: I32, block_size: int, num_kv_heads: int) -> int:
    """Tokens in the chosen blocks, summed over sequences and KV heads; the last block may be partly filled.

    The choices are lists [k][num_heads][most] of `count` [k][num_heads] ascending blocks.
    """
    num_blocks = -(-context // block_size)
    keeps_last = selected.max(axis=2, initial=-1) == num_blocks[:, None] - 1
    missing = int((keeps_last.sum(axis=1) * (num_blocks * block_size - context)).sum())
    return (int(count.sum()) * block_size - missing) * num_kv_heads // int(count.shape[1])


def oracle_choice(mass: F32, kept: NDArray[np.int64]) -> Mask:
    """The `kept` [k][heads] blocks of the greatest mass [k][heads][W]; ties to the lower block."""
    if not mass.size:
        return np.zeros(mass.shape, dtype=np.bool_)
    worst_first = np.sort(mass, axis=2)
    place = np.minimum(mass.shape[2] - kept, mass.shape[2] - 1)[:, :, None]
    least = np.take_along_axis(worst_first, place, axis=2)  # mass of the last block that is kept
    best = (mass >= least) & (kept > 0)[:, :, None]
    excess = best.sum(axis=2) - kept
    for row in np.argwhere(excess > 0):  # blocks of the same mass as the last one: the higher ones go
        at = tuple(row)
        ties = np.flatnonzero(mass[at] == least[at])
        best[at][ties[len(ties) - excess[at] :]] = False
    return best


def _slack(truth: Truth, peak: F32) -> tuple[F32, F32]:
    """Least and mean of (scaled score − largest logit) over the blocks of each (sequence, KV head).

    With the reduction `max` both sides were rounded alike, so the difference is never below 0, not by a bit; sums over
    query heads were rounded at different places, which is not counted as a break of the bound.
    """
    scaled = truth.score * truth.scale
    with np.errstate(invalid="ignore"):
        slack = scaled - peak
    if truth.reduction != "max":
        noise = _ROUNDING * (1 + np.abs(scaled))
        slack = np.where((slack < 0) & (slack > -noise), np.float32(0), slack)
    outside = (np.arange(peak.shape[2]) >= truth.num_blocks[:, None])[:, None]
    np.copyto(slack, np.inf, where=outside)
    least = slack.min(axis=2)
    np.copyto(slack, 0, where=outside)
    mean = slack.sum(axis=2, dtype=np.float64) / truth.num_blocks[:, None]
    return least.ravel(), mean.astype(np.float32).ravel()


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> F32:
    return (part / np.maximum(whole, 1)).astype(np.float32).ravel()
