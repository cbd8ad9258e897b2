"""`paged_attention`: attention of one query row per sequence over its blocks, two passes, the readable baseline."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar
from tinyserve_viz.kernels.layout import POOL

GROUPED = Requirement(
    "num_heads must be a multiple of num_kv_heads",
    lambda axes, _scalars: axes["num_kv_heads"] > 0 and axes["num_heads"] % axes["num_kv_heads"] == 0,
)

KERNEL = KernelDef(
    name="paged_attention",
    summary="Exact attention over a paged cache: one pass for the maximum, one for the sums.",
    source="TinyServe S:73-166; PagedAttention, arXiv 2309.06180",
    decision=False,
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
