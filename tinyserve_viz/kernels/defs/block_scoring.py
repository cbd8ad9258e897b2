"""`block_scoring`: an upper bound of every logit in a block, from the block's box alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.decision_math import F32, lane_sum, reduce_group
from tinyserve_viz.kernels.definition import Arg, Axes, KernelDef, Launch, Requirement, Scalar, Status, ceil_div
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import BOX, F16, box_bounds
from tinyserve_viz.kernels.paging import resident

REDUCTION = ("max", "mean", "sum")
SCORING_HEADS = Requirement(
    "num_score_heads must be num_heads (no reduction) or num_kv_heads",
    lambda axes, _scalars: axes["num_score_heads"] in (axes["num_heads"], axes["num_kv_heads"]),
)

SCORING_THREADS, _BLOCKS = 256, 64  # of a thread block, as in cuda/box_scores.cuh
_PER_CHUNK = 1 << 22  # channels scored at once: 16 MiB of fp32, so that a long context does not fill the memory


def scoring_grid(axes: Axes) -> tuple[int, int, int]:
    """Thread blocks of the same blocks and other KV heads follow each other: their boxes lie side by side."""
    return max(1, axes["num_kv_heads"]), max(1, ceil_div(axes["max_blocks_per_seq"], _BLOCKS)), max(1, axes["num_seqs"])


def reference(
    *,
    query: F16,
    box: F16,
    block_table: NDArray[np.int32],
    num_seq_blocks: NDArray[np.int32],
    block_score: F32,
    reduction: int,
) -> Status:
    """Σ_d of q_d·max_d where q_d is positive and q_d·min_d where it is negative, in lane order, per block.

    Equals Σ_d max(q_d·min_d, q_d·max_d), so it is at least the largest q·k in the block (up to the rounding of the
    sum; the products are exact). An empty box gives -inf; a NaN gives NaN, also through the reduction.
    """
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = box.shape[1]
    score_heads = block_score.shape[1]
    block_score[:] = -np.inf
    held = resident(block_table, num_seq_blocks, 1, len(box))
    q = query.reshape(len(query), num_kv_heads, num_heads // num_kv_heads, head_dim).astype(np.float32)
    chunk = max(1, _PER_CHUNK // max(1, num_heads * head_dim))
    for at in range(0, len(held.block), chunk):  # bounds the memory; the work of a chunk is one array operation
        part = slice(at, at + chunk)
        low, high = (bound.astype(np.float32)[:, :, None] for bound in box_bounds(box, held.block[part]))
        rows = q[held.seq[part]]
        products = np.where(rows > 0, rows * high, np.where(rows < 0, rows * low, rows * np.float32(0)))
        scores = lane_sum(products)  # [blocks][kv][group]
        if score_heads == num_heads:
            scores = scores.reshape(len(scores), num_heads)
        else:
            scores = reduce_group(scores, reduction, axis=2)
        block_score[held.seq[part], :, held.logical[part]] = scores
    return held.status


KERNEL = KernelDef(
    name="block_scoring",
    summary="Score each block by the largest q·k that its key box allows.",
    source="TinyServe paper, arXiv 2509.12211 eq. 2; Quest, arXiv 2406.10774",
    reference=reference,
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("box", "float16", BOX),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("num_seq_blocks", "int32", ("num_seqs",), doc="blocks that hold tokens, ceil(len / block_size)"),
        Arg(
            "block_score",
            "float32",
            ("num_seqs", "num_score_heads", "max_blocks_per_seq"),
            "out",
            "-inf past the sequence and where there is no block",
        ),
    ),
    scalars=(
        Scalar(
            "reduction",
            "int32",
            "score of a KV head from its query heads: max, mean, sum",
            0,
            REDUCTION,
        ),
    ),
    launch=Launch(
        layout="one warp per (8 blocks, sequence, kv head), eight to a thread block; products on tensor cores",
        grid=scoring_grid,
        threads=SCORING_THREADS,
    ),
    requires=(GROUPED, SCORING_HEADS),
)
