"""`block_allocation`: give each request the next free block, in an order that replays; or race for it."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar, ceil_div
from tinyserve_viz.kernels.defs.fused_block_copy import STRIDE_HOLDS_POOL
from tinyserve_viz.kernels.layout import LAYERED_BOX

# What a block that starts a new life forgets; each array may be absent.
FRESH_BLOCK = (
    Arg("uses", "int32", ("num_blocks",), "inout", "uses since allocation", optional=True),
    Arg("freq", "int32", ("num_blocks",), "inout", "accesses in this window", optional=True),
    Arg("level", "int32", ("num_blocks",), "inout", "protection level, 0 to 4", optional=True),
    Arg("hits", "int32", ("num_blocks",), "inout", "prefix hits in the window", optional=True),
    Arg("lookups", "int32", ("num_blocks",), "inout", "prefix lookups in the window", optional=True),
    Arg("history", "int32", ("num_seqs", "max_blocks_per_seq"), "inout", "accesses per logical block", optional=True),
    Arg("box", "float16", LAYERED_BOX, "inout", "emptied for the new owner, in every layer", optional=True),
)

KERNEL = KernelDef(
    name="block_allocation",
    summary="The i-th valid request gets the i-th id of the free order, or nobody gets any.",
    source="TinyServe S:213-239",
    args=(
        Arg("reqs", "int32", ("num_requests", "2"), doc="(sequence, logical block)"),
        Arg("free_order", "int32", ("num_free",), doc="distinct free ids in the order in which they are given out"),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), "inout"),
        Arg("ref", "int32", ("num_blocks",), "inout"),
        Arg("gen", "int32", ("num_blocks",), "inout", "times allocated"),
        Arg("allocated", "int32", ("num_requests",), "out", "block of each request, -1 = none"),
        Arg("cas_failures", "int32", ("num_requests",), "out", "blocks that a request found taken (cas), 0 in scan"),
        Arg("num_allocated", "int32", ("1",), "out"),
        *FRESH_BLOCK,
        Arg(
            "workspace",
            "int32",
            ("workspace_words",),
            "scratch",
            optional=True,
            doc="state of the scan across thread blocks",
        ),
    ),
    scalars=(
        Scalar(
            "mode",
            "int32",
            "cas is the published search with compare-and-swap: who gets which block is a race",
            0,
            ("scan", "cas"),
        ),
        Scalar(
            "all_or_nothing",
            "int32",
            "1: on a shortage nothing is allocated; 0: requests are served until blocks run out",
            1,
        ),
    ),
    launch=Launch(
        layout="one thread per request; ranks by an exclusive scan over the valid requests",
        grid=lambda a: (max(1, ceil_div(a["num_requests"], 256)), 1, 1),
        threads=256,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
