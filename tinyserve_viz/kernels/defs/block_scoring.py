"""`block_scoring`: an upper bound of every logit in a block, from the block's box alone."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import BOX

REDUCTION = ("max", "mean", "sum")
SCORING_HEADS = Requirement(
    "num_score_heads must be num_heads (no reduction) or num_kv_heads",
    lambda axes, _scalars: axes["num_score_heads"] in (axes["num_heads"], axes["num_kv_heads"]),
)

KERNEL = KernelDef(
    name="block_scoring",
    summary="Score each block by the largest q·k that its key box allows.",
    source="TinyServe paper, arXiv 2509.12211 eq. 2; Quest, arXiv 2406.10774",
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
            "score of a KV head from its query heads: max, mean (SGLang) or sum",
            0,
            REDUCTION,
        ),
    ),
    launch=Launch(
        layout="one warp per (block, sequence, kv head), four to a thread block; the group's query heads stay in registers",
        grid=lambda a: (max(1, -(-a["max_blocks_per_seq"] // 4)), max(1, a["num_seqs"]), max(1, a["num_kv_heads"])),
        threads=128,
    ),
    requires=(GROUPED, SCORING_HEADS),
)
