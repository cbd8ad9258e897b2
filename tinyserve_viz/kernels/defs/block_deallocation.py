"""`block_deallocation`: give references back, clear the table entries, and list the freed blocks in request order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Status, ceil_div
from tinyserve_viz.kernels.defs.block_allocation import (
    AT_ONCE,
    SMALL_TILE,
    TILE,
    several_tiles,
    tile_stages,
    tiles_beyond_one,
)
from tinyserve_viz.kernels.paging import first_of_each, mapped


def reference(
    *,
    reqs: NDArray[np.int32],
    block_table: NDArray[np.int32],
    ref: NDArray[np.int32],
    released: NDArray[np.int32],
    freed: NDArray[np.int32],
    num_freed: NDArray[np.int32],
) -> Status:
    """Take one reference back per request, in request order, and clear its table entry.

    UNMAPPED: the entry holds no block, or an earlier request of the batch cleared it. RANGE: no such entry, or it holds
    no id (it is cleared). DOUBLE_FREE: the block has no reference left; its count stays where it is, the entry is
    cleared. A block is listed where the request that took its last reference stands.
    """
    released[:] = -1
    freed[:] = -1
    seq, logical = reqs.astype(np.int64).T
    inside = (seq >= 0) & (seq < block_table.shape[0]) & (logical >= 0) & (logical < block_table.shape[1])
    status = Status.OK if inside.all() else Status.RANGE
    at = np.flatnonzero(inside)
    again = ~first_of_each(seq[at] * block_table.shape[1] + logical[at])
    block = np.where(again, -1, block_table[seq[at], logical[at]]).astype(np.int64)
    block_table[seq[at], logical[at]] = -1
    held, flags = mapped(block, len(ref))
    at, block = at[held], block[held]

    # The n-th release of a block within the batch finds ref - n references left.
    order = np.argsort(block, kind="stable")
    ordered = block[order]
    nth = np.empty(len(block), np.int64)
    nth[order] = np.arange(len(block)) - np.searchsorted(ordered, ordered)
    left = ref[block] - nth
    good = left > 0
    np.subtract.at(ref, block[good], 1)
    released[at[good]] = block[good]
    last = block[left == 1]
    freed[: len(last)] = last
    num_freed[0] = len(last)
    return status | flags | (Status.OK if good.all() else Status.DOUBLE_FREE)


KERNEL = KernelDef(
    name="block_deallocation",
    summary="Release table entries; a block whose last reference goes is listed as freed, in request order.",
    source="TinyServe's published code (not in its README); order: PagedAttention, arXiv 2309.06180",
    reference=reference,
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
            doc="releases of each block, first requests of each entry, where one cluster does not do",
        ),
    ),
    scalars=(),
    launch=Launch(
        layout="a thread per request; the freed list by an exclusive scan, never in atomic order",
        grid=lambda a: (max(1, ceil_div(a["num_requests"], TILE)), 1, 1),
        threads=TILE,
        before=(*AT_ONCE, *tile_stages("take", threads=SMALL_TILE), *tile_stages("count")),
        when=several_tiles,
        scratch_axes=lambda a: {
            "workspace_words": 2
            + 2 * (a["num_blocks"] + tiles)
            + a["num_requests"]
            + a["num_seqs"] * a["max_blocks_per_seq"]
            if (tiles := tiles_beyond_one(a["num_requests"]))
            else 0
        },
        overlap=True,
    ),
)
