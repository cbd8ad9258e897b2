"""`query_aware_paged_attention`: attention over the selected blocks only; with boxes it selects them itself (fused)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.attention import PagedBatch
from tinyserve_viz.kernels.definition import (
    Arg,
    Axes,
    KernelDef,
    Launch,
    Requirement,
    Scalar,
    Stage,
    Status,
)
from tinyserve_viz.kernels.defs import block_scoring
from tinyserve_viz.kernels.defs.block_scoring import REDUCTION, SCORING_THREADS, scoring_grid
from tinyserve_viz.kernels.defs.cache_selection import choose, paper_budget
from tinyserve_viz.kernels.defs.flash_paged_attention import WHOLE_WORK_LIST, WORK_LIST, work_of
from tinyserve_viz.kernels.defs.paged_attention import GROUPED
from tinyserve_viz.kernels.layout import BOX, F16, POOL
from tinyserve_viz.kernels.parameters import default

SELECTING_HEADS = Requirement(
    "num_select_heads must be 1 (one choice for all heads) or num_kv_heads",
    lambda axes, _scalars: axes["num_select_heads"] in (1, axes["num_kv_heads"]),
)
FUSED_PER_HEAD = Requirement(
    "the fused form (box given) selects per KV head: num_select_heads must equal num_kv_heads",
    lambda axes, scalars: not scalars["has_box"] or axes["num_select_heads"] == axes["num_kv_heads"],
)


def splits(axes: Axes) -> int:
    """Parts of a row's kept list without a work list: as many as two thread blocks on each of an H100's 132
    multiprocessors can work at, but at least 8 blocks a part, two for each of its warps.
    """
    rows = max(1, axes["num_seqs"] * axes["num_kv_heads"])
    return max(1, min(2 * 132 // rows, axes["max_selected"] // 8))


# What one launch scores, chooses and attends with: a thread block on each multiprocessor, of warps with a ring of three
# slots of shared memory, as in cuda/ring.cuh and the kernel's file.
_AT_ONCE_WARPS, _AT_ONCE_BYTES = 12, 12 * 3 * 4096


def at_once(facts: Mapping[str, Any]) -> bool:
    """Whether the fused form is one launch: where its shapes and the device's shared memory allow it."""
    group = facts["num_heads"] // max(1, facts["num_kv_heads"])
    return (
        bool(facts["has_box"])
        and not facts["has_segments"]
        and facts["head_dim"] == 128
        and facts["block_size"] % 16 == 0
        and group in (4, 8)
        and facts["most_shared"] >= _AT_ONCE_BYTES + 8192
    )


def _in_stages(facts: Mapping[str, Any]) -> bool:
    return bool(facts["has_box"]) and not at_once(facts)


def reference(
    *,
    query: F16,
    key_cache: F16,
    value_cache: F16,
    block_table: NDArray[np.int32],
    seq_lens: NDArray[np.int32],
    selected: NDArray[np.int32],
    count: NDArray[np.int32],
    output: F16,
    lse: NDArray[np.float32],
    blocks_read: NDArray[np.int32],
    tokens_read: NDArray[np.int32],
    box: F16 | None,
    segments: NDArray[np.int32] | None,
    segment_range: NDArray[np.int64] | None,
    scale: np.float32,
    reduction: int,
    ratio_permille: int,
    sinks: int,
    recent: int,
    budget_blocks: int,
    **_merging: Any,
) -> Status:
    """Softmax over the kept tokens only, so that exp(lse - lse of paged_attention) is the attention mass retained.

    With `box`, `selected` and `count` are made first, exactly as block_scoring and cache_selection (paper) make them;
    access histories stay with cache_selection. A list must ascend within the sequence's blocks: entries outside are
    skipped (RANGE), repeated or unordered ones too (CONFLICT). A sequence with tokens and none kept gives output 0,
    lse -inf and RANGE. The work list's units are places in the kept list.
    """
    batch = PagedBatch.of(query, key_cache, value_cache, block_table, seq_lens, scale)
    status = batch.status
    if box is not None:
        scores = np.empty((len(query), batch.num_kv_heads, block_table.shape[1]), np.float32)
        status |= block_scoring.reference(
            query=query,
            box=box,
            block_table=block_table,
            num_seq_blocks=batch.num_seq_blocks.astype(np.int32),
            block_score=scores,
            reduction=reduction,
        )
        budget = paper_budget(batch.num_seq_blocks, ratio_permille, sinks, recent, budget_blocks)
        status |= choose(scores, batch.num_seq_blocks, budget, sinks, recent, selected, count)

    select_heads, max_selected = selected.shape[1:]
    kept = np.clip(count, 0, max_selected)
    group = query.shape[1] // batch.num_kv_heads
    empty = (kept == 0) & (batch.num_seq_blocks[:, None] > 0)
    status |= Status.RANGE if empty.any() or (kept != count).any() else Status.OK
    for head in range(select_heads):
        parts, flags = work_of(kept[:, head].astype(np.int64), segments, segment_range)
        status |= flags
        kv_heads = slice(None) if select_heads == 1 else slice(head, head + 1)
        heads = slice(None) if select_heads == 1 else slice(head * group, (head + 1) * group)
        for seq, part in enumerate(parts):
            logical, flags = _legal(selected[seq, head, : kept[seq, head]], int(batch.num_seq_blocks[seq]))
            status |= flags
            wanted = logical[part]
            wanted = wanted[wanted >= 0]
            read = batch.attend(seq, wanted, kv_heads, output[seq, heads], lse[seq, heads])
            blocks_read[seq, heads], tokens_read[seq, heads] = read[:2]
            status |= read[2]
    return status


def _legal(chosen: NDArray[np.int32], num_blocks: int) -> tuple[NDArray[np.int64], Status]:
    """A kept list with -1 where an entry is outside the sequence or does not ascend."""
    logical = chosen.astype(np.int64)
    inside = (logical >= 0) & (logical < num_blocks)
    before = np.maximum.accumulate(np.r_[-1, np.where(inside, logical, -1)])[:-1]
    ascending = logical > before
    status = Status.OK if inside.all() else Status.RANGE
    status |= Status.CONFLICT if (inside & ~ascending).any() else Status.OK
    return np.where(inside & ascending, logical, -1), status


KERNEL = KernelDef(
    name="query_aware_paged_attention",
    summary="Attention over the selected blocks; given boxes, scoring, choice and attention are one call.",
    source="TinyServe S:391-521 and arXiv 2509.12211; Quest, arXiv 2406.10774",
    decision=False,
    reference=reference,
    args=(
        Arg("query", "float16", ("num_seqs", "num_heads", "head_dim")),
        Arg("key_cache", "float16", POOL),
        Arg("value_cache", "float16", POOL),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",), doc="tokens of the whole sequence"),
        Arg(
            "selected",
            "int32",
            ("num_seqs", "num_select_heads", "max_selected"),
            "inout",
            "logical blocks kept, ascending, then -1; read, or written when fused",
        ),
        Arg("count", "int32", ("num_seqs", "num_select_heads"), "inout", "blocks kept; read, or written when fused"),
        Arg("output", "float16", ("num_seqs", "num_heads", "head_dim"), "out"),
        Arg("lse", "float32", ("num_seqs", "num_heads"), "out", doc="over the kept tokens, -inf for none"),
        Arg("blocks_read", "int32", ("num_seqs", "num_heads"), "out", doc="blocks that were attended"),
        Arg("tokens_read", "int32", ("num_seqs", "num_heads"), "out", doc="tokens that were attended"),
        Arg(
            "box",
            "float16",
            BOX,
            optional=True,
            doc="given: the fused form, budget and choice as in cache_selection's paper mode",
        ),
        Arg(
            "score",
            "float32",
            ("num_seqs", "num_kv_heads", "max_blocks_per_seq"),
            "scratch",
            optional=True,
            doc="block scores of the fused form",
        ),
        *WORK_LIST,
    ),
    scalars=(
        Scalar("scale", "float32", "factor of q·k, usually 1/sqrt(head_dim)"),
        Scalar("reduction", "int32", "score of a KV head from its query heads (fused form)", 0, REDUCTION),
        Scalar("ratio_permille", "int32", "blocks kept, of the sequence's (fused form)", default("selection.ratio")),
        Scalar("sinks", "int32", "first blocks always kept (fused form)", default("selection.sinks")),
        Scalar("recent", "int32", "last blocks always kept (fused form)", default("selection.recent")),
        Scalar("budget_blocks", "int32", "blocks kept of every sequence, 0: the ratio (fused form)", 0),
    ),
    launch=Launch(
        layout="one thread block per (part of the kept blocks, or worker, kv head), gathered by logical id; with boxes "
        "one per multiprocessor does all, where shapes and shared memory allow it",
        grid=lambda a: (max(1, a["num_workers"] or a["num_seqs"] * splits(a)), max(1, a["num_kv_heads"]), 1),
        threads=128,
        before=(
            Stage("score", scoring_grid, SCORING_THREADS, lambda facts: bool(facts["has_box"])),
            Stage(
                "at_once",
                lambda a: (max(1, a["num_sms"]), 1, 1),
                32 * _AT_ONCE_WARPS,
                at_once,
                lambda _axes: _AT_ONCE_BYTES,
            ),
            Stage(
                "select",
                lambda a: (max(1, a["num_seqs"]), max(1, a["num_kv_heads"]), 1),
                512,
                _in_stages,
            ),
        ),
        scratch_axes=lambda a: {"max_segments": a["num_seqs"] * splits(a)},
        when=lambda facts: not at_once(facts),
        overlap=True,
    ),
    requires=(GROUPED, SELECTING_HEADS, FUSED_PER_HEAD, WHOLE_WORK_LIST),
)
