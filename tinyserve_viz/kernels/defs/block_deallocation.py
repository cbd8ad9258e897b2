"""`block_deallocation`: give references back, clear the table entries, and list the freed blocks in request order."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, ceil_div

KERNEL = KernelDef(
    name="block_deallocation",
    summary="Release table entries; a block whose last reference goes is listed as freed, in request order.",
    source="TinyServe's published code (not in its README); order: PagedAttention, arXiv 2309.06180",
    args=(
        Arg("reqs", "int32", ("num_requests", "2"), doc="(sequence, logical block), a sequence's tail first"),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), "inout"),
        Arg("ref", "int32", ("num_blocks",), "inout"),
        Arg("released", "int32", ("num_requests",), "out", "block that the request gave up, -1 = none"),
        Arg("freed", "int32", ("num_requests",), "out", "blocks that became free, in request order, then -1"),
        Arg("num_freed", "int32", ("1",), "out"),
        Arg(
            "workspace",
            "int32",
            ("workspace_words",),
            "scratch",
            optional=True,
            doc="last release per block, state of the scan",
        ),
    ),
    scalars=(),
    launch=Launch(
        layout="one thread per request; the freed list by an exclusive scan, never in atomic order",
        grid=lambda a: (max(1, ceil_div(a["num_requests"], 256)), 1, 1),
        threads=256,
    ),
)
