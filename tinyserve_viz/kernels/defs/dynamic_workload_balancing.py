"""`dynamic_workload_balancing`: split the batch's blocks over workers; the list that split attention walks."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar, Status

MODES = ("even-blocks", "per-seq", "lpt")

Int = NDArray[np.int64]


def reference(
    *,
    seq_lens: NDArray[np.int32],
    kept: NDArray[np.int32] | None,
    ranges: NDArray[np.int64],
    load: NDArray[np.int64],
    segments: NDArray[np.int32],
    segment_range: NDArray[np.int64],
    seq_segments: NDArray[np.int32],
    num_segments: NDArray[np.int32],
    imbalance_permille: NDArray[np.int64],
    block_size: int,
    mode: int,
) -> Status:
    """Cover every block exactly once: disjoint, monotone ranges along the list of segments.

    A sequence's units are its blocks, or the kept ones; all are full but the last, which is always kept. even-blocks:
    worker w takes units [w·U/W, (w+1)·U/W), so shares differ by at most one. per-seq: worker b mod W takes sequence b.
    lpt: longest first, to the worker with the least tokens, ties to the lower id. RANGE: a negative length, or more
    blocks kept than there are; cut.
    """
    num_workers = len(load)
    lens = np.maximum(seq_lens, 0).astype(np.int64)
    blocks = -(-lens // block_size)
    units = blocks if kept is None else np.clip(kept.astype(np.int64), 0, blocks)
    cut = (lens != seq_lens).any() or (kept is not None and bool((units != kept).any()))
    tokens = np.where(units > 0, lens - (blocks - units) * block_size, 0)

    if mode == 0:
        seq, low, high, worker = _even(units, num_workers)
    else:
        seq, worker = _whole_sequences(tokens, num_workers, longest_first=mode == 2)
        low, high = np.zeros_like(seq), units[seq]
    segments[:] = -1
    segments[: len(seq)] = np.stack([seq, low, high], axis=1)
    num_segments[0] = len(seq)
    segment_range[:, 0] = np.searchsorted(worker, np.arange(num_workers))
    segment_range[:, 1] = np.searchsorted(worker, np.arange(num_workers), side="right")
    before = np.r_[0, np.cumsum(high - low)]
    ranges[:] = before[segment_range]
    size = (high - low) * block_size - np.where(high == units[seq], units[seq] * block_size - tokens[seq], 0)
    load[:] = np.diff(np.r_[0, np.cumsum(size)][np.c_[segment_range[:, 0], segment_range[:, 1]]], axis=1)[:, 0]
    seq_segments[:] = 0
    seq_segments[:, 1] = np.bincount(seq, minlength=len(lens))
    first = np.unique(seq, return_index=True)
    seq_segments[first[0], 0] = first[1]
    total = int(tokens.sum())
    imbalance_permille[0] = int(tokens.max()) * len(lens) * 1000 // total if total else 0
    imbalance_permille[1] = int(load.max()) * num_workers * 1000 // total if total else 0
    return Status.RANGE if cut else Status.OK


def _even(units: Int, num_workers: int) -> tuple[Int, Int, Int, Int]:
    """Cut the line of all units at the workers' and at the sequences' borders: (sequence, low, high, worker)."""
    end = np.cumsum(units)
    total = int(end[-1]) if len(end) else 0
    shares = np.arange(num_workers + 1) * total // num_workers
    cuts = np.unique(np.concatenate([end - units, shares]))
    cuts = cuts[cuts < total]
    seq = np.searchsorted(end, cuts, side="right")
    start = (end - units)[seq]
    return (
        seq,
        cuts - start,
        np.r_[cuts[1:], total][: len(cuts)] - start,
        np.searchsorted(shares, cuts, side="right") - 1,
    )


def _whole_sequences(tokens: Int, num_workers: int, longest_first: bool) -> tuple[Int, Int]:
    """Sequences that have tokens and their workers, by worker; a worker's in the order in which it got them."""
    busy = np.flatnonzero(tokens)
    if not longest_first:
        worker = busy % num_workers
    else:
        busy = busy[np.argsort(-tokens[busy], kind="stable")]
        heap = [(0, w) for w in range(num_workers)]
        worker = np.empty(len(busy), np.int64)
        for i, size in enumerate(tokens[busy].tolist()):
            least, worker[i] = heap[0]
            heapq.heapreplace(heap, (least + size, int(worker[i])))
    order = np.argsort(worker, kind="stable")
    return busy[order], worker[order]


KERNEL = KernelDef(
    name="dynamic_workload_balancing",
    summary="Give every worker a run of blocks: even shares, whole sequences in turn, or longest sequence first.",
    source="TinyServe S:534 (named only); lpt: Graham 1969",
    reference=reference,
    args=(
        Arg("seq_lens", "int32", ("num_seqs",), doc="tokens"),
        Arg(
            "kept",
            "int32",
            ("num_seqs",),
            optional=True,
            doc="blocks kept of each sequence, its last among them; absent: all",
        ),
        Arg(
            "ranges",
            "int64",
            ("num_workers", "2"),
            "out",
            "blocks [first, end) of each worker, counted along `segments`",
        ),
        Arg("load", "int64", ("num_workers",), "out", "tokens of each worker"),
        Arg(
            "segments",
            "int32",
            ("max_segments", "3"),
            "out",
            "(sequence, first block, end block) in worker order, then -1",
        ),
        Arg("segment_range", "int64", ("num_workers", "2"), "out", "segments [first, end) of each worker"),
        Arg("seq_segments", "int32", ("num_seqs", "2"), "out", "first segment and number of segments of each sequence"),
        Arg("num_segments", "int32", ("1",), "out"),
        Arg(
            "imbalance_permille",
            "int64",
            ("2",),
            "out",
            "largest / mean load in tokens: one worker per sequence, and this plan",
        ),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="prefix sums, sorted sequences"),
    ),
    scalars=(
        Scalar("block_size", "int32", "tokens in a block"),
        Scalar(
            "mode",
            "int32",
            "even-blocks may cut a sequence; per-seq is the baseline; lpt keeps sequences whole",
            0,
            MODES,
        ),
    ),
    launch=Launch(
        layout="one thread block: prefix sums over the sequences, then every cut finds its place by counting",
        grid=lambda _a: (1, 1, 1),
        threads=256,  # a batch of decode: fewer warps meet at a barrier sooner
        scratch_axes=lambda a: {"workspace_words": 10 * a["num_seqs"]},
    ),
    requires=(
        Requirement("num_workers must be at least 1", lambda axes, _scalars: axes["num_workers"] >= 1),
        Requirement("block_size must be at least 1", lambda _axes, scalars: scalars["block_size"] >= 1),
        Requirement("num_workers must be at most 2**20", lambda axes, _scalars: axes["num_workers"] <= 1 << 20),
        Requirement(
            "max_segments must be at least num_seqs + num_workers",
            lambda axes, _scalars: axes["max_segments"] >= axes["num_seqs"] + axes["num_workers"],
        ),
    ),
)
