"""`advanced_block_allocation`: least-recently-used allocation with a hot region, evicting at need."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, Axes, KernelDef, Launch, Scalar, Stage, Status, ceil_div
from tinyserve_viz.kernels.defs.block_allocation import (
    CLUSTER,
    TILE,
    several_tiles,
    start_new_life,
    tile_stages,
    tiles_beyond_one,
    valid_requests,
)
from tinyserve_viz.kernels.defs.fused_block_copy import STRIDE_HOLDS_POOL
from tinyserve_viz.kernels.layout import F16, LAYERED_BOX
from tinyserve_viz.kernels.parameters import default


def victim_queues(
    ref: NDArray[np.int32],
    cached: NDArray[np.uint8],
    level: NDArray[np.int32],
    last_use: NDArray[np.int64],
    cache_size: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Unreferenced blocks of the hot and of the cold region, each by (cached, level, last use, id)."""
    free = np.flatnonzero(ref == 0)
    order = free[np.lexsort((free, last_use[free], level[free], cached[free] != 0))]
    hot = order < cache_size
    return order[hot], order[~hot]


def resized_hot_region(cache_size: int, hot_requests: int, hot_misses: int, num_blocks: int) -> int:
    """The hot region's size after a window: grow when hot requests miss it often, shrink when they hardly do.

    A miss is a hot request that got a cold block. Steps and limits are those of `parameters`.
    """
    step = num_blocks // default("hot.step_divisor")
    if hot_requests and hot_misses * 1000 > default("hot.grow_above") * hot_requests:
        cache_size += step
    elif hot_requests and hot_misses * 1000 < default("hot.shrink_below") * hot_requests:
        cache_size -= step
    smallest = num_blocks // default("hot.smallest_divisor")
    return max(smallest, min(cache_size, num_blocks // default("hot.largest_divisor")))


def reference(
    *,
    reqs: NDArray[np.int32],
    request_freq: NDArray[np.int32],
    block_table: NDArray[np.int32],
    ref: NDArray[np.int32],
    gen: NDArray[np.int32],
    cached: NDArray[np.uint8],
    level: NDArray[np.int32],
    last_use: NDArray[np.int64],
    uses: NDArray[np.int32],
    allocated: NDArray[np.int32],
    region: NDArray[np.int32],
    reason: NDArray[np.int32],
    runner_up: NDArray[np.int32],
    num_allocated: NDArray[np.int32],
    freq: NDArray[np.int32] | None,
    hits: NDArray[np.int32] | None,
    lookups: NDArray[np.int32] | None,
    history: NDArray[np.int32] | None,
    box: F16 | None,
    cache_size: int,
    clock: int,
    hot_frequency: int,
    all_or_nothing: int,
) -> Status:
    """Serve the valid requests in order: each takes the least block by (wrong region, cached, level, last use, id).

    Two queues suffice: each kind of request takes the head of its own region's queue until one queue runs dry; from
    that request on everybody takes the head of the other. Invalid requests as in `block_allocation`; OOM likewise. A
    cached block that is taken leaves the prefix index (reason 1 or 3: the caller emits the eviction).
    """
    for out in (allocated, region, reason, runner_up):
        out[:] = -1
    valid, status = valid_requests(reqs, block_table)
    queues = victim_queues(ref, cached, level, last_use, cache_size)
    asking = np.flatnonzero(valid)
    supply = len(queues[0]) + len(queues[1])
    if len(asking) > supply:
        status |= Status.OOM
        asking = asking[: 0 if all_or_nothing else supply]
    cold = (request_freq[asking] <= hot_frequency).astype(np.int64)
    own_rank = np.where(cold == 1, np.cumsum(cold), np.cumsum(1 - cold)) - 1
    # `switch`: the first request that finds its own queue dry; afterwards only one queue is left.
    dry = np.flatnonzero(own_rank >= np.array([len(queues[0]), len(queues[1])])[cold])
    switch = int(dry[0]) if len(dry) else len(asking)
    taken = np.array([np.sum(cold[:switch] == side) for side in (0, 1)])
    left = 1 - int(cold[switch]) if len(dry) else 0
    late = np.arange(len(asking)) >= switch
    side = np.where(late, left, cold)
    rank = np.where(late, taken[left] + np.arange(len(asking)) - switch, own_rank)
    both = np.concatenate(queues)
    base = np.array([0, len(queues[0])])
    blocks = both[base[side] + rank]
    # The runner-up is the next in the same queue, else the head of the other as it stands at that moment.
    other_taken = np.where(late, taken[1 - left], np.where(cold == 1, np.cumsum(1 - cold), np.cumsum(cold)))
    sizes = np.array([len(queues[0]), len(queues[1])])
    same = rank + 1 < sizes[side]
    other = other_taken < sizes[1 - side]
    place = np.where(same, base[side] + rank + 1, base[1 - side] + other_taken)
    next_best = np.where(same | other, np.append(both, -1)[np.where(same | other, place, -1)], -1)

    allocated[asking] = blocks
    region[asking] = side
    reason[asking] = 2 * (side != cold) + (cached[blocks] != 0)
    runner_up[asking] = next_best
    num_allocated[0] = len(asking)
    start_new_life(
        blocks, reqs[asking].astype(np.int64), block_table, ref, gen, history, box, level, freq, hits, lookups
    )
    cached[blocks] = 0
    uses[blocks] = 1
    last_use[blocks] = clock + 1 + np.arange(len(asking))
    return status


SURVEY_WORDS = 49164  # int32 words of the head of the workspace, advanced_block_allocation.cu: Survey


def _pool_grid(axes: Axes) -> tuple[int, int, int]:
    """A thread block for each of an H100's 132 multiprocessors at most, one for each region at least: each brings a
    histogram of its own."""
    return max(2, min(ceil_div(axes["num_blocks"], 4 * TILE), 132)), 1, 1


KERNEL = KernelDef(
    name="advanced_block_allocation",
    summary="Each request in turn takes the first block by (wrong region, cached, level, last use, id).",
    source="TinyServe S:557-567 (a sketch) and its published code",
    reference=reference,
    args=(
        Arg("reqs", "int32", ("num_requests", "2"), doc="(sequence, logical block)"),
        Arg(
            "request_freq", "int32", ("num_requests",), doc="accesses expected; above hot_frequency the request is hot"
        ),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), "inout"),
        Arg("ref", "int32", ("num_blocks",), "inout"),
        Arg("gen", "int32", ("num_blocks",), "inout", "times allocated"),
        Arg("cached", "uint8", ("num_blocks",), "inout", "1: free but still in the prefix index"),
        Arg("level", "int32", ("num_blocks",), "inout", "protection level, 0 to 4"),
        Arg("last_use", "int64", ("num_blocks",), "inout", "logical clock of the last use"),
        Arg("uses", "int32", ("num_blocks",), "inout", "uses since allocation"),
        Arg("allocated", "int32", ("num_requests",), "out", "block of each request, -1 = none"),
        Arg("region", "int32", ("num_requests",), "out", "region that the block lies in: 0 hot, 1 cold, -1 = none"),
        Arg(
            "reason",
            "int32",
            ("num_requests",),
            "out",
            "0 own region, free · 1 own, evicted · 2 other, free · 3 other, evicted · -1 none",
        ),
        Arg(
            "runner_up",
            "int32",
            ("num_requests",),
            "out",
            "the next block that the request would have taken, -1 = none",
        ),
        Arg("num_allocated", "int32", ("1",), "out", "what the caller adds to its clock"),
        Arg("freq", "int32", ("num_blocks",), "inout", "accesses in this window", optional=True),
        Arg("hits", "int32", ("num_blocks",), "inout", "prefix hits in the window", optional=True),
        Arg("lookups", "int32", ("num_blocks",), "inout", "prefix lookups in the window", optional=True),
        Arg(
            "history", "int32", ("num_seqs", "max_blocks_per_seq"), "inout", "accesses per logical block", optional=True
        ),
        Arg("box", "float16", LAYERED_BOX, "inout", "emptied for the new owner, in every layer", optional=True),
        Arg(
            "workspace",
            "int32",
            ("workspace_words",),
            "scratch",
            optional=True,
            doc="what the survey found, candidates in victim order, counts of requests",
        ),
    ),
    scalars=(
        Scalar("cache_size", "int64", "blocks [0, cache_size) are the hot region"),
        Scalar("clock", "int64", "logical clock before this call; the i-th block served is stamped clock + 1 + i"),
        Scalar("hot_frequency", "int32", "a request with more accesses is hot", default("hot.frequency")),
        Scalar(
            "all_or_nothing",
            "int32",
            "1: on a shortage nothing is allocated; 0: requests are served until blocks run out",
            1,
        ),
    ),
    launch=Launch(
        layout="per region a partition of the pool and the order of what is in reach; then a thread per request",
        grid=lambda a: (max(1, ceil_div(a["num_requests"], TILE)), 1, 1),
        threads=TILE,
        before=(
            *tile_stages("count"),
            *(Stage(suffix, _pool_grid, TILE) for suffix in ("histogram", "gather")),
            Stage("sort", lambda a: (max(132, min(ceil_div(a["num_requests"], 16), 4096)), 1, 1), 512),
            Stage("few", lambda _a: (CLUSTER, 1, 1), TILE, lambda facts: not several_tiles(facts)),
            *tile_stages("dry"),
        ),
        when=several_tiles,
        after=(
            Stage(
                "forget",
                lambda a: (max(1, ceil_div(a["num_requests"], 8)), 1, 1),
                256,
                lambda facts: any(facts[f"has_{name}"] for name in ("freq", "hits", "lookups", "box")),
            ),
        ),
        scratch_axes=lambda a: {
            "workspace_words": SURVEY_WORDS
            + 4 * ceil_div(a["num_blocks"], 2)
            + 2 * ceil_div(a["num_blocks"], 4)
            + 3 * tiles_beyond_one(a["num_requests"])
        },
        overlap=True,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
