"""`block_fork`: let a child share the first blocks of its parent, which is how blocks become shared."""

from __future__ import annotations

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch

KERNEL = KernelDef(
    name="block_fork",
    summary="Copy the parent's first table entries to the child and count one reference more on each block.",
    source="ours: the published code never raises a reference count above 1; fork: PagedAttention, arXiv 2309.06180",
    args=(
        Arg("forks", "int32", ("num_forks", "3"), doc="(parent, child, blocks to share)"),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), "inout"),
        Arg("ref", "int32", ("num_blocks",), "inout"),
        Arg(
            "history",
            "int32",
            ("num_seqs", "max_blocks_per_seq"),
            "inout",
            "accesses per logical block, copied",
            optional=True,
        ),
    ),
    scalars=(),
    launch=Launch(
        layout="one thread block per fork, threads over the entries; integer atomics on the references",
        grid=lambda a: (max(1, a["num_forks"]), 1, 1),
        threads=128,
    ),
)
