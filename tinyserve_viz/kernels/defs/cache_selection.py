"""`cache_selection`: choose the blocks that a query will read, by the paper's budget or by the seed's priorities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.decision_math import F32, head_sum, permille
from tinyserve_viz.kernels.definition import Arg, KernelDef, Launch, Requirement, Scalar, Status
from tinyserve_viz.kernels.paging import mapped
from tinyserve_viz.kernels.parameters import default

MODES = ("paper", "seed", "seed-published")
PRIORITIES = ("low", "medium", "high")

Int = NDArray[np.int64]


def paper_budget(num_seq_blocks: Int, ratio_permille: int, sinks: int, recent: int, budget_blocks: int = 0) -> Int:
    """Blocks to keep: the share `ratio` of a sequence's blocks, at least one and at least the always-kept ones.

    With `budget_blocks` the same number for every sequence in place of the share.
    """
    always = np.minimum(num_seq_blocks, sinks + recent)
    share = np.maximum(1, budget_blocks or num_seq_blocks * ratio_permille // 1000)
    return np.minimum(num_seq_blocks, np.maximum(always, share))


def seed_budget(num_seq_blocks: Int, priority: NDArray[Any], requirement: NDArray[Any], sinks: int, recent: int) -> Int:
    """Blocks to keep: the always-kept ones and, by priority, min(requirement + 1, 4), 1 or 0 more (S:333-350)."""
    always = np.minimum(num_seq_blocks, sinks + recent)
    extra: Int = np.where(priority == 2, np.clip(requirement.astype(np.int64) + 1, 0, 4), priority)
    kept: Int = np.minimum(num_seq_blocks, always + extra)
    return kept


def published_budget(num_seq_blocks: Int, priority: NDArray[Any]) -> Int:
    """All blocks; at low priority those up to the middle: `block_idx > num_blocks / 2` is skipped (S:442-445)."""
    upto: Int = np.where(priority == 0, np.minimum(num_seq_blocks, num_seq_blocks // 2 + 1), num_seq_blocks)
    return upto


def choose(
    scores: F32,
    num_seq_blocks: Int,
    budget: Int,
    sinks: int,
    recent: int,
    selected: NDArray[np.int32],
    count: NDArray[np.int32],
) -> Status:
    """Write the `budget` best blocks of each (sequence, head) of `scores` [num_seqs][heads][blocks] into `selected`.

    First and last blocks come before all others, then the higher score, then the lower logical block. A NaN counts as
    -inf (NOT_A_NUMBER). A row whose budget exceeds `selected` is refused: count 0 (RANGE).
    """
    width = scores.shape[2]
    at = np.arange(width)
    blocks = num_seq_blocks[:, None]
    inside = at < blocks
    kept = inside & ((at < sinks) | (at >= blocks - recent))
    undefined = np.isnan(scores) & inside[:, None]
    status = Status.NOT_A_NUMBER if undefined.any() else Status.OK
    value = np.where(np.isnan(scores), np.float32(-np.inf), scores) + np.float32(0)
    key = np.where(inside[:, None], np.where(kept[:, None], np.int64(1) << 40, _ordered(value)), -(np.int64(1) << 40))
    order = np.argsort(-key, axis=2, kind="stable")
    fits = budget <= selected.shape[2]
    status |= Status.OK if fits.all() else Status.RANGE
    size = np.where(fits, budget, 0)
    mask = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(mask, order, np.broadcast_to(at < size[:, None, None], scores.shape), axis=2)
    selected[:] = -1
    seq, head, logical = np.nonzero(mask)
    selected[seq, head, (np.cumsum(mask, axis=2) - 1)[seq, head, logical]] = logical
    count[:] = size[:, None]
    return status


def _ordered(value: F32) -> Int:
    """Integers in the order of the floats: the bits, with negative numbers turned round."""
    bits = np.ascontiguousarray(value).view(np.int32).astype(np.int64)
    return np.where(bits < 0, np.int64(-(1 << 31)) - bits, bits)


def reference(
    *,
    complexity: F32,
    requirement: NDArray[np.int32],
    block_score: F32,
    num_seq_blocks: NDArray[np.int32],
    history: NDArray[np.int32],
    selected: NDArray[np.int32],
    count: NDArray[np.int32],
    priority: NDArray[np.int8],
    row_score: F32,
    block_table: NDArray[np.int32] | None,
    uses: NDArray[np.int32] | None,
    freq: NDArray[np.int32] | None,
    last_use: NDArray[np.int64] | None,
    mode: int,
    ratio_permille: int,
    threshold_permille: int,
    weight_complexity: int,
    weight_requirement: int,
    weight_history: int,
    sinks: int,
    recent: int,
    clock: int,
    budget_blocks: int,
) -> Status:
    """row_score = w_c·min(c, 1) + w_r·requirement + w_h·min(mean history, 100)/100, left to right, each step rounded.

    priority is high above the threshold, medium above half of it (strictly). paper: priority is only shown; seed: it
    sets the budget; seed-published: at low priority the blocks after the middle are dropped, whatever the scores say
    (the caller scores the first block highest and keeps none always). With one selecting head over several scored ones,
    scores are summed in head order. A NaN complexity counts as 0 (NOT_A_NUMBER); num_seq_blocks outside the table is
    cut (RANGE). History is read before it is counted.
    """
    width = block_score.shape[2]
    blocks = np.clip(num_seq_blocks, 0, width).astype(np.int64)
    status = Status.OK if (blocks == num_seq_blocks).all() else Status.RANGE
    undefined = np.isnan(complexity)
    status |= Status.NOT_A_NUMBER if undefined.any() else Status.OK
    clamped = np.where(undefined, np.float32(0), np.where(complexity < 1, complexity, np.float32(1)))
    inside = np.arange(width) < blocks[:, None]
    accesses = np.where(inside, history, 0).sum(axis=1, dtype=np.int64)
    mean = accesses.astype(np.float32) / np.maximum(blocks, 1).astype(np.float32)
    seen = np.where(mean < 100, mean, np.float32(100)) / np.float32(100)
    score = permille(weight_complexity) * clamped + permille(weight_requirement) * requirement.astype(np.float32)
    row_score[:] = score + permille(weight_history) * seen
    threshold = permille(threshold_permille)
    half = threshold * np.float32(0.5)
    priority[:] = np.where(row_score > threshold, 2, np.where(row_score > half, 1, 0))

    if mode == 0:
        budget = paper_budget(blocks, ratio_permille, sinks, recent, budget_blocks)
    elif mode == 1:
        budget = seed_budget(blocks, priority, requirement, sinks, recent)
    else:
        budget = published_budget(blocks, priority)
    if selected.shape[1] != block_score.shape[1]:
        numbers = np.where(np.isnan(block_score), np.float32(-np.inf), block_score)
        status |= Status.NOT_A_NUMBER if (np.isnan(block_score) & inside[:, None]).any() else Status.OK
        block_score = head_sum(numbers, axis=1)[:, None]
    status |= choose(block_score, blocks, budget, sinks, recent, selected, count)

    seq, head, place = np.nonzero(selected >= 0)
    kept = np.zeros(history.shape, np.bool_)
    kept[seq, selected[seq, head, place]] = True
    history += kept
    if block_table is not None:
        seq, logical = np.nonzero(kept)
        block = block_table[seq, logical].astype(np.int64)
        held, flags = mapped(block, max(len(x) for x in (uses, freq, last_use) if x is not None))
        status |= flags
        for counter in (uses, freq):
            if counter is not None:
                np.add.at(counter, block[held], 1)
        if last_use is not None:
            last_use[block[held]] = clock
    return status


KERNEL = KernelDef(
    name="cache_selection",
    summary="Keep first and last blocks and the best-scored others, within the row's budget; count the accesses.",
    source="TinyServe S:306-352 (seed) and arXiv 2509.12211 (paper)",
    reference=reference,
    args=(
        Arg("complexity", "float32", ("num_seqs",)),
        Arg("requirement", "int32", ("num_seqs",), doc="0, 1 or 2, from query_analysis"),
        Arg("block_score", "float32", ("num_seqs", "num_score_heads", "max_blocks_per_seq")),
        Arg("num_seq_blocks", "int32", ("num_seqs",), doc="blocks that hold tokens, ceil(len / block_size)"),
        Arg(
            "history",
            "int32",
            ("num_seqs", "max_blocks_per_seq"),
            "inout",
            "accesses; one more for each block kept by any head",
        ),
        Arg(
            "selected",
            "int32",
            ("num_seqs", "num_select_heads", "max_selected"),
            "out",
            "logical blocks, ascending, then -1",
        ),
        Arg("count", "int32", ("num_seqs", "num_select_heads"), "out", "blocks kept"),
        Arg("priority", "int8", ("num_seqs",), "out", "2 high, 1 medium, 0 low"),
        Arg("row_score", "float32", ("num_seqs",), "out", "weighted complexity, requirement and history"),
        Arg(
            "block_table",
            "int32",
            ("num_seqs", "max_blocks_per_seq"),
            optional=True,
            doc="given: accesses are counted per block too",
        ),
        Arg("uses", "int32", ("num_blocks",), "inout", "uses since allocation", optional=True),
        Arg("freq", "int32", ("num_blocks",), "inout", "accesses in this window", optional=True),
        Arg("last_use", "int64", ("num_blocks",), "inout", "set to clock", optional=True),
        Arg(
            "workspace",
            "int32",
            ("workspace_words",),
            "scratch",
            optional=True,
            doc="thread blocks of each sequence that are done",
        ),
    ),
    scalars=(
        Scalar(
            "mode",
            "int32",
            "paper: a share of the blocks; seed: by priority; seed-published: all, or those up to the middle",
            0,
            MODES,
        ),
        Scalar("ratio_permille", "int32", "blocks kept, of the sequence's (paper)", default("selection.ratio")),
        Scalar(
            "threshold_permille",
            "int32",
            "priority is high above it, medium above half of it",
            default("selection.threshold"),
        ),
        Scalar("weight_complexity", "int32", "per mille", default("selection.weight_complexity")),
        Scalar("weight_requirement", "int32", "per mille", default("selection.weight_requirement")),
        Scalar("weight_history", "int32", "per mille", default("selection.weight_history")),
        Scalar("sinks", "int32", "first blocks always kept", default("selection.sinks")),
        Scalar("recent", "int32", "last blocks always kept", default("selection.recent")),
        Scalar("clock", "int64", "logical clock that last_use takes", 0),
        Scalar("budget_blocks", "int32", "blocks kept of every sequence, 0: by the ratio (paper)", 0),
    ),
    launch=Launch(
        layout="one thread block per (sequence, selecting head) chooses; the last of a sequence to be done counts",
        grid=lambda a: (max(1, a["num_seqs"]), max(1, a["num_select_heads"]), 1),
        threads=512,
        scratch_axes=lambda a: {"workspace_words": a["num_seqs"]},
    ),
    requires=(
        Requirement(
            "block_table is given with uses, freq or last_use, the counters that it leads to",
            lambda _axes, scalars: (
                not scalars["has_block_table"] or any(scalars[f"has_{name}"] for name in ("uses", "freq", "last_use"))
            ),
        ),
        Requirement(
            "num_select_heads must be num_score_heads, or 1 for one choice by the summed scores",
            lambda axes, _scalars: axes["num_select_heads"] in (1, axes["num_score_heads"]),
        ),
    ),
)
