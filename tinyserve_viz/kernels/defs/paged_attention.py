"""`paged_attention`: attention of one query row per sequence over its blocks, two passes, the readable baseline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.attention import PagedBatch
from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar, Status
from tinyserve_viz.kernels.layout import F16, POOL

GROUPED = Requirement(
    "num_heads must be a multiple of num_kv_heads",
    lambda axes, _scalars: axes["num_kv_heads"] > 0 and axes["num_heads"] % axes["num_kv_heads"] == 0,
)


def reference(
    *,
    query: F16,
    key_cache: F16,
    value_cache: F16,
    block_table: NDArray[np.int32],
    seq_lens: NDArray[np.int32],
    output: F16,
    lse: NDArray[np.float32],
    scale: np.float32,
) -> Status:
    """output = Σ exp(s_j - m)·v_j / Σ exp(s_j - m) with s = scale·q·k and m = max s, in float64; lse = m + ln Σ.

    Every valid token counts once. Unmapped blocks are left out (UNMAPPED, RANGE); no token: output 0, lse -inf.
    """
    batch = PagedBatch.of(query, key_cache, value_cache, block_table, seq_lens, scale)
    status = batch.status
    for seq in range(len(query)):
        everything = np.arange(batch.num_seq_blocks[seq])
        status |= batch.attend(seq, everything, slice(None), output[seq], lse[seq])[2]
    return status


KERNEL = KernelDef(
    name="paged_attention",
    summary="Exact attention over a paged cache: one pass for the maximum, one for the sums.",
    source="TinyServe S:73-166; PagedAttention, arXiv 2309.06180",
    decision=False,
    reference=reference,
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("key_cache", "float16", POOL),
        Arg("value_cache", "float16", POOL),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",), doc="tokens attended"),
        Arg("output", "float16", ("num_seqs", "num_heads", "head_dim"), "out"),
        Arg("lse", "float32", ("num_seqs", "num_heads"), "out", doc="log of the summed exp(scores), -inf for no token"),
    ),
    scalars=(Scalar("scale", "float32", "factor of q·k, usually 1/sqrt(head_dim)"),),
    launch=Launch(
        layout="one thread block per (sequence, head); threads split tokens for q·k and channels for p·v",
        grid=lambda a: (max(1, a["num_seqs"]), max(1, a["num_heads"]), 1),
        threads=128,
        shared_bytes=lambda a: 4 * (a["head_dim"] + 128),
    ),
    requires=(GROUPED,),
)
