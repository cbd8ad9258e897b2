"""`fused_block_copy`: copy blocks for copy-on-write, K, V and box, all layers and all operations in one launch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, Axes, KernelDef, Launch, Requirement, Stage, Status, ceil_div
from tinyserve_viz.kernels.layout import (
    F16,
    LAYERED_BOX,
    LAYERED_POOL,
    blocks_of,
    box_bounds,
    put_bounds,
    put_tokens,
    tokens_of,
)
from tinyserve_viz.kernels.paging import runs

STRIDE_HOLDS_POOL = Requirement(
    "layer_stride must be at least num_blocks",
    lambda axes, _scalars: axes["num_layers"] == 0 or axes["layer_stride"] >= axes["num_blocks"],
)


def reference(
    *,
    ops: NDArray[np.int32],
    ref: NDArray[np.int32],
    key_cache: F16,
    value_cache: F16,
    box: F16 | None,
) -> Status:
    """Copy the first `tokens` slots of each source into its destination, in every layer.

    The box is copied with a whole block and made again from the copied keys of a part. Nothing at all is written when
    an id is outside the pool or a count outside 1..block_size (RANGE), or when a destination occurs twice, is also a
    source, or has not exactly one reference (CONFLICT). Protocol: allocate, copy, set the table entry, release.
    """
    size = key_cache.shape[2]
    source, target, tokens = ops.astype(np.int64).T
    ids = np.concatenate([source, target])
    if ((ids < 0) | (ids >= len(ref))).any() or ((tokens < 1) | (tokens > size)).any():
        return Status.RANGE
    real = source != target
    source, target, tokens = source[real], target[real], tokens[real]
    distinct = len(np.unique(target)) == len(target)
    if not distinct or np.isin(target, source).any() or (ref[target] != 1).any():
        return Status.CONFLICT
    op, slot = runs(tokens)
    for layer in range(len(key_cache)):
        for cache in (key_cache[layer], value_cache[layer]):
            put_tokens(cache, target[op], slot, tokens_of(cache, source[op], slot))
        if box is not None:
            low, high = box_bounds(box[layer], source)
            partly = tokens < size
            keys = blocks_of(key_cache[layer], source[partly]).astype(np.float32)
            valid = (np.arange(size) < tokens[partly, None])[..., None, None]
            low[partly] = np.fmin.reduce(
                np.where(valid, keys, np.float32(np.inf)), axis=1, initial=np.inf
            ) + np.float32(0)
            high[partly] = np.fmax.reduce(
                np.where(valid, keys, -np.float32(np.inf)), axis=1, initial=-np.inf
            ) + np.float32(0)
            put_bounds(box[layer], target, low, high)
    return Status.OK


PIECE_BYTES, COPY_THREADS = 16384, 256  # of K or V that one thread block copies, and its threads: runs.cuh


def copy_parts(axes: Axes) -> int:
    """Thread blocks that copy one block of one layer: pieces of K, pieces of V, and the box."""
    return 2 * max(1, ceil_div(2 * axes["block_size"] * axes["num_kv_heads"] * axes["head_dim"], PIECE_BYTES)) + 1


KERNEL = KernelDef(
    name="fused_block_copy",
    summary="Copy the first tokens of blocks into fresh blocks of every layer, or refuse the whole batch.",
    source="TinyServe S:172-196",
    reference=reference,
    args=(
        Arg("ops", "int32", ("num_ops", "3"), doc="(source, destination, tokens); source = destination does nothing"),
        Arg("ref", "int32", ("num_blocks",), doc="references per block; a destination has exactly one"),
        Arg("key_cache", "float16", LAYERED_POOL, "inout"),
        Arg("value_cache", "float16", LAYERED_POOL, "inout"),
        Arg("box", "float16", LAYERED_BOX, "inout", "copied with a full block, made again from a part", optional=True),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="marks per block for the check"),
    ),
    scalars=(),
    launch=Launch(
        layout="the whole batch is checked; then one thread block per piece of an operation's K, V and box, and layer",
        grid=lambda a: (max(1, a["num_ops"] * copy_parts(a)), max(1, a["num_layers"]), 1),
        threads=COPY_THREADS,
        before=(Stage("mark", lambda a: (max(1, ceil_div(a["num_ops"], 1024)), 1, 1), 1024),),
        scratch_axes=lambda a: {"workspace_words": a["num_blocks"] + 4},
        overlap=True,
    ),
    requires=(STRIDE_HOLDS_POOL,),
)
