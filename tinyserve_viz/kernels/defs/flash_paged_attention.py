"""`flash_paged_attention`: the same attention in one pass over K and V, split over a work list when one is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.attention import PagedBatch
from tinyserve_viz.kernels.definition import Arg, Axes, KernelDef, Launch, Requirement, Scalar, Stage, Status, ceil_div
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import F16, POOL
from tinyserve_viz.kernels.paging import runs

# The work list of `dynamic_workload_balancing`, and the workspace in which its parts meet; all given or all absent.
WORK_LIST = (
    Arg(
        "segments",
        "int32",
        ("max_segments", "3"),
        optional=True,
        doc="(sequence, first block, end block), -1 in unused rows",
    ),
    Arg("segment_range", "int64", ("num_workers", "2"), optional=True, doc="segments [first, end) of each worker"),
    Arg(
        "seq_segments",
        "int32",
        ("num_seqs", "2"),
        optional=True,
        doc="first segment and number of segments of each sequence",
    ),
    Arg("partial_output", "float32", ("max_segments", "num_heads", "head_dim"), "scratch", optional=True),
    Arg(
        "partial_ml",
        "float32",
        ("max_segments", "num_heads", "4"),
        "scratch",
        optional=True,
        doc="maximum and sum of a segment, blocks and tokens read",
    ),
    Arg(
        "tickets", "int32", ("num_seqs", "num_kv_heads"), "scratch", optional=True, doc="arrivals; the last one merges"
    ),
)
WHOLE_WORK_LIST = Requirement(
    "segments, segment_range and seq_segments are given together or not at all",
    lambda _axes, scalars: len({scalars["has_" + name] for name in ("segments", "segment_range", "seq_segments")}) == 1,
)


def work_of(
    num_units: NDArray[np.int64],
    segments: NDArray[np.int32] | None,
    segment_range: NDArray[np.int64] | None,
) -> tuple[list[NDArray[np.int64]], Status]:
    """The units (blocks, or places in the kept list) that the workers read of each sequence, as the list says.

    Without a list every unit once. RANGE: a worker's segments lie outside the list, or a segment outside its sequence;
    both are skipped. A list that leaves units out, or names them twice, is obeyed: that is the caller's mistake to see.
    """
    num_seqs = len(num_units)
    if segments is None or segment_range is None:
        return [np.arange(units) for units in num_units], Status.OK
    first, end = segment_range[:, 0], segment_range[:, 1]
    legal = (first >= 0) & (first <= end) & (end <= len(segments))
    worker, i = runs(np.where(legal, end - first, 0))
    seq, low, high = segments[first[worker] + i].astype(np.int64).T
    inside = (seq >= 0) & (seq < num_seqs) & (low >= 0) & (low <= high)
    inside &= high <= np.append(num_units, 0)[np.where(inside, seq, num_seqs)]
    seq, low, high = seq[inside], low[inside], high[inside]
    segment, place = runs(high - low)
    owner, unit = seq[segment], low[segment] + place
    order = np.argsort(owner, kind="stable")
    parts = np.split(unit[order], np.searchsorted(owner[order], np.arange(1, num_seqs)))
    return parts[:num_seqs], Status.OK if legal.all() and inside.all() else Status.RANGE


def reference(
    *,
    query: F16,
    key_cache: F16,
    value_cache: F16,
    block_table: NDArray[np.int32],
    seq_lens: NDArray[np.int32],
    output: F16,
    lse: NDArray[np.float32],
    segments: NDArray[np.int32] | None,
    segment_range: NDArray[np.int64] | None,
    scale: np.float32,
    **_merging: Any,
) -> Status:
    """As `paged_attention`; with a work list the blocks are those that the list's segments name.

    K and V are read once: the bytes are K + V where the two-pass form moves 2K + V.
    """
    batch = PagedBatch.of(query, key_cache, value_cache, block_table, seq_lens, scale)
    parts, status = work_of(batch.num_seq_blocks, segments, segment_range)
    status |= batch.status
    for seq, part in enumerate(parts):
        status |= batch.attend(seq, part, slice(None), output[seq], lse[seq])[2]
    return status


FEW = 144  # thread blocks: about one for each SM of a large GPU
_MOST_ROWS = 65_535  # of a grid of thread blocks


def _plain_grid(axes: Axes) -> tuple[int, int, int]:
    return max(1, axes["num_workers"] or axes["num_seqs"]), max(1, axes["num_kv_heads"]), 1


def _grid(axes: Axes) -> tuple[int, int, int]:
    """KV heads first, so that a token's are read about the same time; workers, or sequences, in rows and layers."""
    workers, heads, _ = _plain_grid(axes)
    layers = ceil_div(workers, _MOST_ROWS)
    return heads, ceil_div(workers, layers), layers


def _is_plain(facts: Mapping[str, Any]) -> bool:
    return bool(facts["head_dim"] not in (64, 128) or facts["block_size"] % 16 != 0)


def _is_wide(facts: Mapping[str, Any]) -> bool:
    return not _is_plain(facts) and 0 < facts["num_workers"] * facts["num_kv_heads"] <= FEW


KERNEL = KernelDef(
    name="flash_paged_attention",
    summary="Attention over a paged cache in one pass with a running maximum and sum; split over workers on request.",
    source="TinyServe S:541-553; online softmax: Milakov & Gimelshein, arXiv 1805.02867; split KV: Flash-Decoding",
    decision=False,
    reference=reference,
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("key_cache", "float16", POOL),
        Arg("value_cache", "float16", POOL),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",), doc="tokens attended"),
        Arg("output", "float16", ("num_seqs", "num_heads", "head_dim"), "out"),
        Arg("lse", "float32", ("num_seqs", "num_heads"), "out", doc="log of the summed exp(scores), -inf for no token"),
        *WORK_LIST,
    ),
    scalars=(Scalar("scale", "float32", "factor of q·k, usually 1/sqrt(head_dim)"),),
    launch=Launch(
        layout="one thread block per (worker or sequence, kv head), of eight warps where there are few, else of four;"
        " the query heads of a group share its K and V reads",
        grid=_grid,
        threads=128,
        before=(
            Stage("plain", _plain_grid, 128, _is_plain),
            Stage("wide", _grid, 256, _is_wide),
        ),
        when=lambda facts: not _is_plain(facts) and not _is_wide(facts),
        early=True,
    ),
    requires=(GROUPED, WHOLE_WORK_LIST),
)
