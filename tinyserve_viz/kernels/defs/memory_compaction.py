"""`memory_compaction`: carry out a plan: move K, V, boxes and block state, remap the tables."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch
from tinyserve_viz.kernels.defs.fused_block_copy import STRIDE_HOLDS_POOL
from tinyserve_viz.kernels.layout import LAYERED_BOX, LAYERED_POOL

KERNEL = KernelDef(
    name="memory_compaction",
    summary="Apply the moves of a plan: copy, remap and free; or refuse the whole plan.",
    source="TinyServe's published memory_compaction_kernel and S:571-580",
    args=(
        Arg("moves", "int32", ("max_moves", "2"), doc="(source, destination); the first num_moves rows count"),
        Arg("num_moves", "int32", ("1",)),
        Arg("old_to_new", "int32", ("num_blocks",), doc="destination of each block, itself when it stays"),
        Arg("key_cache", "float16", LAYERED_POOL, "inout"),
        Arg("value_cache", "float16", LAYERED_POOL, "inout"),
        Arg("box", "float16", LAYERED_BOX, "inout", optional=True),
        Arg(
            "block_table",
            "int32",
            ("num_seqs", "max_blocks_per_seq"),
            "inout",
            "every entry is looked up in old_to_new",
        ),
        Arg("ref", "int32", ("num_blocks",), "inout"),
        Arg(
            "gen",
            "int32",
            ("num_blocks",),
            "inout",
            "one more for the source, which is freed, and the destination, which is taken",
        ),
        Arg("cached", "uint8", ("num_blocks",), "inout"),
        Arg("level", "int32", ("num_blocks",), "inout", optional=True),
        Arg("last_use", "int64", ("num_blocks",), "inout", optional=True),
        Arg("uses", "int32", ("num_blocks",), "inout", optional=True),
        Arg("freq", "int32", ("num_blocks",), "inout", optional=True),
        Arg("hits", "int32", ("num_blocks",), "inout", optional=True),
        Arg("lookups", "int32", ("num_blocks",), "inout", optional=True),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="marks per block for the check"),
    ),
    scalars=(),
    launch=Launch(
        layout="one thread block per (move, layer), more for the tables; sources and destinations are disjoint",
        grid=lambda a: (max(1, a["max_moves"] + a["num_seqs"]), max(1, a["num_layers"]), 1),
        threads=256,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
