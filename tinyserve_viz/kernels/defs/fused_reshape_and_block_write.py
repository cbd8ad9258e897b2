"""`fused_reshape_and_block_write`: scatter new K and V into blocks and widen the blocks' boxes, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, Axes, KernelDef, Launch, Scalar, Stage, Status
from tinyserve_viz.kernels.layout import BOX, F16, POOL, box_bounds, put_bounds, put_tokens
from tinyserve_viz.kernels.paging import mapped, runs


def reference(
    *,
    kv: F16,
    token_start: NDArray[np.int64],
    start_pos: NDArray[np.int32],
    seq_lens: NDArray[np.int32],
    block_table: NDArray[np.int32],
    ref: NDArray[np.int32],
    key_cache: F16,
    value_cache: F16,
    box: F16,
    **_fast_form: Any,
) -> Status:
    """Scatter token i of a sequence, kv[token_start + i], to position start_pos + i.

    A block is skipped, and flagged, when it is unmapped or unowned (UNMAPPED), no id of the pool (RANGE) or shared
    (SHARED_WRITE); a sequence whose positions or rows do not fit is skipped as a whole (RANGE). A box starts anew when
    slot 0 is written and widens otherwise; a NaN key leaves it as it is, and its zeros are positive.
    """
    status = Status.OK
    num_blocks, size = key_cache.shape[:2]
    start, end, row = start_pos.astype(np.int64), seq_lens.astype(np.int64), token_start
    fits = (start >= 0) & (start <= end) & (end <= block_table.shape[1] * size)
    fits &= (row >= 0) & (row + end - start <= len(kv))
    if not fits.all():
        status |= Status.RANGE
    seq, i = runs(np.where(fits, end - start, 0))
    logical, slot = np.divmod(start[seq] + i, size)
    block = block_table[seq, logical].astype(np.int64)
    owned, flags = mapped(block, num_blocks)
    status |= flags
    refs = np.where(owned, ref[np.where(owned, block, 0)], 1)
    status |= Status.UNMAPPED if (refs < 1).any() else Status.OK
    status |= Status.SHARED_WRITE if (refs > 1).any() else Status.OK
    owned &= refs == 1
    seq, slot, logical, block, source = (x[owned] for x in (seq, slot, logical, block, row[seq] + i))
    if not len(seq):
        return status

    keys = kv[source, 0]
    put_tokens(key_cache, block, slot, keys)
    put_tokens(value_cache, block, slot, kv[source, 1])
    # One run of tokens per (sequence, logical block): its extremes make or widen the box.
    starts = np.flatnonzero(np.r_[True, (np.diff(seq) != 0) | (np.diff(logical) != 0)])
    wide = keys.astype(np.float32)
    low, high = np.fmin.reduceat(wide, starts), np.fmax.reduceat(wide, starts)
    touched, fresh = block[starts], (slot[starts] == 0)[:, None, None]
    old_low, old_high = box_bounds(box, touched)
    low = np.fmin(low, np.where(fresh, np.float32(np.inf), old_low)) + np.float32(0)
    high = np.fmax(high, np.where(fresh, np.float32(-np.inf), old_high)) + np.float32(0)
    put_bounds(box, touched, low.astype(np.float16), high.astype(np.float16))
    return status


STREAM_BYTES = 2 * (32768 + 8)  # fused_reshape_and_block_write.cu: RowStages::BYTES


def streamed(facts: Mapping[str, Any]) -> bool:
    """Whether rows come by bulk copies: many of a sequence, and shared memory for three thread blocks (Hopper)."""
    many = facts["num_tokens"] > facts["num_seqs"] and facts["has_work_start"]
    return bool(many and facts["most_shared"] >= 3 * (STREAM_BYTES + 8192))


def _touched_at_most(axes: Axes) -> tuple[int, int, int]:
    """A thread block for each block that the new tokens can touch, or for each table entry where those are fewer.

    At decode these are two per sequence, of which one only starts and stops. Without a work list thread blocks walk on.
    """
    touched = 2 * axes["num_seqs"] + axes["num_tokens"] // max(1, axes["block_size"])
    return max(1, min(touched, axes["max_blocks_per_seq"] * axes["num_seqs"])), 1, 1


KERNEL = KernelDef(
    name="fused_reshape_and_block_write",
    summary="Write the K and V of new tokens into their blocks and keep each block's key box.",
    source="TinyServe S:34-67; boxes: Quest, arXiv 2406.10774",
    reference=reference,
    args=(
        Arg(
            "kv",
            "float16",
            ("num_tokens", "2", "num_kv_heads", "head_dim"),
            doc="packed K, V of the new tokens, sequence by sequence",
        ),
        Arg("token_start", "int64", ("num_seqs",), doc="row of `kv` with the sequence's first new token"),
        Arg("start_pos", "int32", ("num_seqs",), doc="position of that token"),
        Arg(
            "seq_lens",
            "int32",
            ("num_seqs",),
            doc="tokens after the write; positions [start_pos, seq_lens) are written",
        ),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("ref", "int32", ("num_blocks",), doc="references per block"),
        Arg("key_cache", "float16", POOL, "inout"),
        Arg("value_cache", "float16", POOL, "inout"),
        Arg("box", "float16", BOX, "inout", doc="minimum and maximum of the block's valid keys"),
        Arg(
            "work_start",
            "int64",
            ("num_seqs",),
            optional=True,
            doc="blocks touched by earlier sequences, for a grid of num_work",
        ),
    ),
    scalars=(
        Scalar(
            "num_work", "int64", "blocks touched in all, 0 without work_start: the grid then covers whole tables", 0
        ),
    ),
    launch=Launch(
        layout="a thread block takes one touched block at a time: it owns the block, so the box needs no atomics",
        grid=_touched_at_most,
        threads=128,
        before=(Stage("streamed", _touched_at_most, 128, streamed, lambda _axes: STREAM_BYTES),),
        when=lambda facts: not streamed(facts),
    ),
)
