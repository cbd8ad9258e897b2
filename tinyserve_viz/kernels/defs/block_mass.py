"""`block_mass`: the softmax mass of every block, in the fixed order that lets it steer."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar
from tinyserve_viz.kernels.defs.block_scoring import REDUCTION, SCORING_HEADS
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import POOL

KERNEL = KernelDef(
    name="block_mass",
    summary="Share of the attention that each block receives; the same bits on every backend.",
    source="ours, for the policies oracle and snapkv (SnapKV, arXiv 2404.14469) and for mass_entropy",
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("key_cache", "float16", POOL),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",)),
        Arg(
            "block_mass", "float32", ("num_seqs", "num_score_heads", "max_blocks_per_seq"), "out", "0 past the sequence"
        ),
        Arg(
            "token_weight",
            "float32",
            ("num_seqs", "num_heads", "max_tokens"),
            "scratch",
            optional=True,
            doc="logits, then weights",
        ),
    ),
    scalars=(
        Scalar("scale", "float32", "factor of q·k, usually 1/sqrt(head_dim)"),
        Scalar("reduction", "int32", "mass of a KV head from its query heads; the mean adds up to 1", 1, REDUCTION),
    ),
    launch=Launch(
        layout="one thread block per (sequence, kv head); a warp per block of tokens",
        grid=lambda a: (max(1, a["num_seqs"]), max(1, a["num_kv_heads"]), 1),
        threads=256,
    ),
    requires=(GROUPED, SCORING_HEADS),
)
