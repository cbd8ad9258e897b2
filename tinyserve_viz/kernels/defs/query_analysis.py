"""`query_analysis`: how demanding a query row is, and the cache requirement that follows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.decision_math import F32, LOG2_E, decision_exp2, decision_log2, head_sum, lane_sum, permille
from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar, Status
from tinyserve_viz.kernels.layout import F16
from tinyserve_viz.kernels.parameters import default

MODES = ("energy", "entropy", "mass_entropy")


def reference(
    *,
    query: F16,
    complexity: F32,
    requirement: NDArray[np.int32],
    block_score: F32 | None,
    num_scored: NDArray[np.int32] | None,
    mode: int,
    scale: np.float32,
    high_permille: int,
    medium_permille: int,
) -> Status:
    """complexity, and requirement 2 above `high`, 1 above `medium`, else 0 (strictly above).

    energy: mean of q² over all channels of the row. entropy: H / log P of softmax(scale·score) over the row's P blocks,
    scores summed over heads; mass_entropy: the same of block masses that are already shares. Entropies lie in [0, 1];
    one block or none gives 0. A row that has no entropy (NaN, infinite scores) gets complexity 0 and NOT_A_NUMBER.
    RANGE: num_scored outside the scores' last axis, cut to it.
    """
    status = Status.OK
    if mode == 0:
        flat = query.reshape(len(query), query.shape[1] * query.shape[2]).astype(np.float32)
        value = lane_sum(flat * flat) / np.float32(max(1, flat.shape[1]))
    else:
        assert block_score is not None
        assert num_scored is not None
        width = block_score.shape[2]
        counted = np.clip(num_scored, 0, width)
        status |= Status.OK if (counted == num_scored).all() else Status.RANGE
        inside = np.arange(width) < counted[:, None]
        summed = np.where(inside, head_sum(block_score, axis=1), np.float32(0))
        entropy = _softmax_entropy(summed, inside, scale) if mode == 1 else _mass_entropy(summed)
        several = counted > 1
        value = entropy / decision_log2(np.where(several, counted, 2).astype(np.float32))
        value = np.where(
            several, np.where(value > 1, np.float32(1), np.where(value < 0, np.float32(0), value)), np.float32(0)
        )
    undefined = np.isnan(value)
    status |= Status.NOT_A_NUMBER if undefined.any() else Status.OK
    complexity[:] = np.where(undefined, np.float32(0), value) + np.float32(0)
    requirement[:] = np.where(
        complexity > permille(high_permille), 2, np.where(complexity > permille(medium_permille), 1, 0)
    )
    return status


def _softmax_entropy(scores: F32, inside: NDArray[np.bool_], scale: np.float32) -> F32:
    """Entropy in bits: log2 Z - Σ e·y / Z with y = (scale·score - max)·log2(e) and e = 2**y."""
    scaled = np.where(inside, scores * scale, np.float32(-np.inf))
    top = scaled.max(axis=1, initial=-np.inf)[:, None]
    y = np.where(inside, (scaled - top) * LOG2_E, np.float32(-np.inf))
    e = np.where(inside, decision_exp2(y), np.float32(0))
    total = lane_sum(e)
    return decision_log2(total) - lane_sum(np.where(e == 0, np.float32(0), e * y)) / total


def _mass_entropy(mass: F32) -> F32:
    """Entropy in bits of shares that add up to about 1: log2 S - Σ m·log2 m / S."""
    total = lane_sum(mass)
    return decision_log2(total) - lane_sum(np.where(mass == 0, np.float32(0), mass * decision_log2(mass))) / total


KERNEL = KernelDef(
    name="query_analysis",
    summary="Mean square of the query, or the normalised entropy of its block scores or of its attention mass.",
    source="TinyServe S:261-300",
    reference=reference,
    args=(
        Arg(
            "query", "float16", ("num_rows", "num_heads", "head_dim"), doc="energy is the mean over heads and channels"
        ),
        Arg("complexity", "float32", ("num_rows",), "out"),
        Arg("requirement", "int32", ("num_rows",), "out", "2 high, 1 medium, 0 low"),
        Arg(
            "block_score",
            "float32",
            ("num_rows", "num_score_heads", "max_blocks_per_seq"),
            optional=True,
            doc="box scores (entropy) or block mass (mass_entropy)",
        ),
        Arg("num_scored", "int32", ("num_rows",), optional=True, doc="blocks of each row that count"),
    ),
    scalars=(
        Scalar(
            "mode",
            "int32",
            "energy is the published formula, entropy its words; mass_entropy takes block_mass",
            0,
            MODES,
        ),
        Scalar("scale", "float32", "factor of the scores before the softmax of mode entropy", 1.0),
        Scalar("high_permille", "int32", "complexity above it is high", default("requirement.high")),
        Scalar("medium_permille", "int32", "complexity above it is medium", default("requirement.medium")),
    ),
    launch=Launch(
        layout="one warp per row, four to a thread block; one lane writes",
        grid=lambda a: (max(1, -(-a["num_rows"] // 4)), 1, 1),
        threads=128,
    ),
    requires=(
        Requirement(
            "the entropy modes need block_score and num_scored",
            lambda _axes, scalars: (
                scalars["mode"] == 0 or bool(scalars["has_block_score"] and scalars["has_num_scored"])
            ),
        ),
    ),
)
