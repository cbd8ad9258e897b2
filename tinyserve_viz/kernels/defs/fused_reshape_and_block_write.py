"""`fused_reshape_and_block_write`: scatter new K and V into blocks and widen the blocks' boxes, in one pass."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar
from tinyserve_viz.kernels.layout import BOX, POOL

KERNEL = KernelDef(
    name="fused_reshape_and_block_write",
    summary="Write the K and V of new tokens into their blocks and keep each block's key box.",
    source="TinyServe S:34-67; boxes: Quest, arXiv 2406.10774",
    args=(
        Arg(
            "kv",
            "float16",
            ("num_tokens", "2", "num_kv_heads", "head_dim"),
            doc="packed K, V of the new tokens, sequence by sequence",
        ),
        Arg("token_start", "int64", ("num_seqs",), doc="row of `kv` with the sequence's first new token"),
        Arg("start_pos", "int32", ("num_seqs",), doc="position of that token"),
        Arg(
            "seq_lens",
            "int32",
            ("num_seqs",),
            doc="tokens after the write; positions [start_pos, seq_lens) are written",
        ),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("ref", "int32", ("num_blocks",), doc="references per block"),
        Arg("key_cache", "float16", POOL, "inout"),
        Arg("value_cache", "float16", POOL, "inout"),
        Arg("box", "float16", BOX, "inout", doc="minimum and maximum of the block's valid keys"),
        Arg(
            "work_start",
            "int64",
            ("num_seqs",),
            optional=True,
            doc="blocks touched by earlier sequences, for a grid of num_work",
        ),
    ),
    scalars=(
        Scalar(
            "num_work", "int64", "blocks touched in all, 0 without work_start: the grid then covers whole tables", 0
        ),
    ),
    launch=Launch(
        layout="one thread block per (logical block, sequence): it owns the block, so the box needs no atomics",
        grid=lambda a: (max(1, a["max_blocks_per_seq"]), max(1, a["num_seqs"]), 1),
        threads=128,
    ),
)
