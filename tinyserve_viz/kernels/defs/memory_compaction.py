"""`memory_compaction`: carry out a plan: move K, V, boxes and block state, remap the tables."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, Axes, KernelDef, Launch, Stage, Status, ceil_div
from tinyserve_viz.kernels.defs.fused_block_copy import COPY_THREADS, STRIDE_HOLDS_POOL, copy_parts
from tinyserve_viz.kernels.layout import (
    F16,
    LAYERED_BOX,
    LAYERED_POOL,
    blocks_of,
    box_bounds,
    put_blocks,
    put_bounds,
    reset_boxes,
)


def reference(
    *,
    moves: NDArray[np.int32],
    num_moves: NDArray[np.int32],
    old_to_new: NDArray[np.int32],
    key_cache: F16,
    value_cache: F16,
    box: F16 | None,
    block_table: NDArray[np.int32],
    ref: NDArray[np.int32],
    gen: NDArray[np.int32],
    cached: NDArray[np.uint8],
    **counters: Any,
) -> Status:
    """Move every source block to its destination, with its references and counters, and point the tables there.

    The source is freed with an empty box. Nothing at all is written when a count or an id is outside (RANGE), or when
    sources or destinations repeat or overlap, a source holds nothing, a destination is referenced or cached, or
    old_to_new says something else than the moves (CONFLICT). Table entries that are no ids stay as they are.
    """
    count, num_blocks = int(num_moves[0]), len(ref)
    if not 0 <= count <= len(moves):
        return Status.RANGE
    source, target = moves[:count].astype(np.int64).T
    both = np.concatenate([source, target])
    if ((both < 0) | (both >= num_blocks)).any():
        return Status.RANGE
    plan = np.arange(num_blocks)
    plan[source] = target
    if (
        len(np.unique(both)) != len(both)
        or ((ref[source] < 1) & (cached[source] == 0)).any()
        or ((ref[target] != 0) | (cached[target] != 0)).any()
        or (plan != old_to_new).any()
    ):
        return Status.CONFLICT
    for layer in range(len(key_cache)):
        for cache in (key_cache[layer], value_cache[layer]):
            put_blocks(cache, target, blocks_of(cache, source))
        if box is not None:
            put_bounds(box[layer], target, *box_bounds(box[layer], source))
    if box is not None:
        reset_boxes(box, source)
    entries = (block_table >= 0) & (block_table < num_blocks)
    block_table[entries] = plan[block_table[entries]]
    for state in (ref, cached, *counters.values()):
        if state is not None:
            state[target] = state[source]
            state[source] = 0
    gen[both] += 1
    return Status.OK


def _remappers(axes: Axes) -> int:
    """Thread blocks for table entries and moves; they come first, the copies take longer."""
    work = max(axes["num_seqs"] * axes["max_blocks_per_seq"], axes["max_moves"])
    return max(1, min(ceil_div(work, 256), 264))


KERNEL = KernelDef(
    name="memory_compaction",
    summary="Apply the moves of a plan: copy, remap and free; or refuse the whole plan.",
    source="TinyServe's published memory_compaction_kernel and S:571-580",
    reference=reference,
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
        layout="the plan is checked; then threads over entries and moves, a thread block per piece of a moved block",
        grid=lambda a: (_remappers(a) + a["max_moves"] * copy_parts(a), max(1, a["num_layers"]), 1),
        threads=COPY_THREADS,
        before=(
            Stage(
                "mark",
                lambda a: (max(1, ceil_div(max(2 * a["max_moves"], a["num_blocks"]), 1024)), 1, 1),
                1024,
            ),
        ),
        scratch_axes=lambda a: {"workspace_words": a["num_blocks"] + 4},
        overlap=True,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
