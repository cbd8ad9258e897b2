"""`block_fork`: let a child share the first blocks of its parent, which is how blocks become shared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Status
from tinyserve_viz.kernels.paging import mapped, runs


def reference(
    *,
    forks: NDArray[np.int32],
    block_table: NDArray[np.int32],
    ref: NDArray[np.int32],
    history: NDArray[np.int32] | None,
) -> Status:
    """Share the parent's first entries with the child and copy its access history of them.

    A fork with ids or a count outside the table is skipped (RANGE). Entries of the child that hold a block stay
    (ALREADY_MAPPED), entries that the parent lacks are skipped (UNMAPPED), as are those that name a block without
    references (UNMAPPED) or no block (RANGE). When a child occurs twice or is also a parent, nothing is written
    (CONFLICT): the outcome would depend on the order.
    """
    parent, child, shared = forks.astype(np.int64).T
    rows, width = block_table.shape
    legal = (parent >= 0) & (parent < rows) & (child >= 0) & (child < rows) & (shared >= 0) & (shared <= width)
    status = Status.OK if legal.all() else Status.RANGE
    parent, child, shared = parent[legal], child[legal], shared[legal]
    if len(np.unique(child)) != len(child) or np.isin(child, parent).any():
        return status | Status.CONFLICT
    fork, logical = runs(shared)
    source, target = parent[fork], child[fork]
    block = block_table[source, logical].astype(np.int64)
    held, flags = mapped(block, len(ref))
    held &= ref[np.where(held, block, 0)] > 0
    flags |= Status.UNMAPPED if (~held & (block >= 0) & (block < len(ref))).any() else Status.OK
    free = block_table[target, logical] == -1
    flags |= Status.OK if free.all() else Status.ALREADY_MAPPED
    take = held & free
    source, target, logical, block = source[take], target[take], logical[take], block[take]
    block_table[target, logical] = block
    np.add.at(ref, block, 1)
    if history is not None:
        history[target, logical] = history[source, logical]
    return status | flags


KERNEL = KernelDef(
    name="block_fork",
    summary="Copy the parent's first table entries to the child and count one reference more on each block.",
    source="ours: the published code never raises a reference count above 1; fork: PagedAttention, arXiv 2309.06180",
    reference=reference,
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
