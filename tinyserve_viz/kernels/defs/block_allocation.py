"""`block_allocation`: give each request the next free block, in an order that replays; or race for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Scalar, Stage, Status, ceil_div
from tinyserve_viz.kernels.defs.fused_block_copy import STRIDE_HOLDS_POOL
from tinyserve_viz.kernels.layout import F16, LAYERED_BOX, reset_boxes
from tinyserve_viz.kernels.paging import first_of_each

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

TILE = 1024  # requests of one thread block, a thread each: a batch of no more is one launch
SMALL_TILE = 256  # where no thread block waits for another: they spread more evenly over the multiprocessors

FEW = 256  # requests that one thread block serves faster than a cluster does
CLUSTER = 8  # thread blocks of a cluster, cluster.cuh


def tiles_beyond_one(num_requests: int) -> int:
    """Thread blocks that a batch of requests takes, 0 where one will do."""
    return ceil_div(num_requests, TILE) if num_requests > TILE else 0


def one_thread_block(facts: Mapping[str, Any]) -> bool:
    """Whether a batch of requests is so small that one thread block serves it."""
    return bool(facts["num_requests"] <= FEW)


def one_cluster(facts: Mapping[str, Any]) -> bool:
    """Whether a batch of requests is one for a cluster."""
    return bool(FEW < facts["num_requests"] <= TILE)


def several_tiles(facts: Mapping[str, Any]) -> bool:
    """Whether one thread block or cluster does not do."""
    return bool(facts["num_requests"] > TILE)


def tile_stages(
    *suffixes: str, when: Callable[[Mapping[str, Any]], bool] = several_tiles, threads: int = TILE
) -> tuple[Stage, ...]:
    """Launches over the requests that only a batch of several thread blocks needs."""
    return tuple(
        Stage(suffix, lambda a: (ceil_div(a["num_requests"], threads), 1, 1), threads, when) for suffix in suffixes
    )


def enough(facts: Mapping[str, Any]) -> bool:
    """Whether a batch of several thread blocks has an id for each request."""
    return several_tiles(facts) and bool(facts["num_requests"] <= facts["num_free"])


# A batch that is one launch of its own.
AT_ONCE = (
    Stage("few", lambda _a: (1, 1, 1), FEW, one_thread_block),
    Stage("spread", lambda _a: (CLUSTER, 1, 1), TILE, one_cluster),
)


def valid_requests(reqs: NDArray[np.int32], block_table: NDArray[np.int32]) -> tuple[NDArray[np.bool_], Status]:
    """Which requests name an empty table entry. RANGE: no such entry; ALREADY_MAPPED: it is taken."""
    seq, logical = reqs.astype(np.int64).T
    inside = (seq >= 0) & (seq < block_table.shape[0]) & (logical >= 0) & (logical < block_table.shape[1])
    status = Status.OK if inside.all() else Status.RANGE
    empty = inside.copy()
    empty[inside] = block_table[seq[inside], logical[inside]] == -1
    empty[empty] = first_of_each(seq[empty] * block_table.shape[1] + logical[empty])
    return empty, status | (Status.ALREADY_MAPPED if (inside & ~empty).any() else Status.OK)


def start_new_life(
    blocks: NDArray[np.int64],
    where: NDArray[np.int64],
    block_table: NDArray[np.int32],
    ref: NDArray[np.int32],
    gen: NDArray[np.int32],
    history: NDArray[np.int32] | None,
    box: F16 | None,
    *counters: NDArray[np.int32] | None,
) -> None:
    """Hand `blocks` to the table entries `where` [n][2] with nothing left of their former lives."""
    block_table[where[:, 0], where[:, 1]] = blocks
    ref[blocks] = 1
    gen[blocks] += 1
    for counter in counters:
        if counter is not None:
            counter[blocks] = 0
    if history is not None:
        history[where[:, 0], where[:, 1]] = 0
    if box is not None:
        reset_boxes(box, blocks)


def reference(
    *,
    reqs: NDArray[np.int32],
    free_order: NDArray[np.int32],
    block_table: NDArray[np.int32],
    ref: NDArray[np.int32],
    gen: NDArray[np.int32],
    allocated: NDArray[np.int32],
    cas_failures: NDArray[np.int32],
    num_allocated: NDArray[np.int32],
    uses: NDArray[np.int32] | None,
    freq: NDArray[np.int32] | None,
    level: NDArray[np.int32] | None,
    hits: NDArray[np.int32] | None,
    lookups: NDArray[np.int32] | None,
    history: NDArray[np.int32] | None,
    box: F16 | None,
    mode: int,
    all_or_nothing: int,
) -> Status:
    """scan: the i-th valid request gets free_order[i]; cas: the i-th lowest free id, as if the threads came in turn.

    Invalid requests (see `valid_requests`) get -1 and take no id. More valid requests than ids: OOM, and none or, with
    all_or_nothing 0, only the first ones are served. An id that is outside the pool (RANGE) or held (CONFLICT) in
    free_order serves nobody. In cas every id below the one taken was found taken: that many compare-and-swaps failed.
    """
    allocated[:] = -1
    cas_failures[:] = 0
    valid, status = valid_requests(reqs, block_table)
    order = (np.flatnonzero(ref == 0) if mode == 1 else free_order).astype(np.int64)
    asking = np.flatnonzero(valid)
    if len(asking) > len(order):
        status |= Status.OOM
        cas_failures[asking[len(order) :]] = len(ref) if mode == 1 else 0
        asking = asking[: 0 if all_or_nothing else len(order)]
    blocks = order[: len(asking)]
    inside = (blocks >= 0) & (blocks < len(ref))
    status |= Status.OK if inside.all() else Status.RANGE
    free = inside & (ref[np.where(inside, blocks, 0)] == 0)
    status |= Status.CONFLICT if (inside & ~free).any() else Status.OK
    asking, blocks = asking[free], blocks[free]
    start_new_life(
        blocks, reqs[asking].astype(np.int64), block_table, ref, gen, history, box, uses, freq, level, hits, lookups
    )
    allocated[asking] = blocks
    cas_failures[asking] = blocks if mode == 1 else 0
    num_allocated[0] = len(asking)
    return status


KERNEL = KernelDef(
    name="block_allocation",
    summary="The i-th valid request gets the i-th id of the free order, or nobody gets any.",
    source="TinyServe S:213-239",
    reference=reference,
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
            doc="what thread blocks tell each other, where there are several",
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
        layout="a thread per request: ranks by a scan over the valid ones; then a warp per block given out",
        grid=lambda a: (max(1, ceil_div(a["num_requests"], TILE)), 1, 1),
        threads=TILE,
        before=(
            *AT_ONCE,
            *tile_stages("take", when=enough, threads=SMALL_TILE),
            *tile_stages("undo", when=enough),
            *tile_stages("look", "mark", "count", when=lambda facts: several_tiles(facts) and not enough(facts)),
        ),
        when=several_tiles,
        after=(
            Stage(
                "forget",
                lambda a: (max(1, ceil_div(a["num_requests"], 8)), 1, 1),
                256,
                lambda facts: any(facts[f"has_{arg.name}"] for arg in FRESH_BLOCK),
            ),
        ),
        scratch_axes=lambda a: {
            "workspace_words": 3 * tiles + 4 if (tiles := tiles_beyond_one(a["num_requests"])) else 0
        },
        overlap=True,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
