"""`fragmentation_analysis`: what is wasted inside blocks, between them, and by where they lie, as whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.kernels.definition import Arg, Axes, KernelDef, Launch, Requirement, Scalar, Stage, Status, ceil_div
from tinyserve_viz.kernels.defs.block_allocation import CLUSTER
from tinyserve_viz.kernels.paging import resident

METRICS = (
    "used", "cached_free", "free", "live", "tokens", "longest_free_run", "num_runs", "max_live_id",
    "super_held", "super_pinned", "adjacent", "pairs",
)  # fmt: skip
STRETCH = 8192  # blocks of the pool of one thread block, or of a cluster where that is all
CLUSTER_SEQS, CLUSTER_ENTRIES = 1024, 1 << 16  # of a table that each thread block of a cluster reads as a whole
RUN_BINS = 32  # bin k counts free runs of 2**k to 2**(k+1) - 1 blocks; 2**31 blocks is beyond any int32 id


def ratios(metrics: NDArray[np.int64], block_size: int) -> dict[str, float | None]:
    """The measures in words, None where nothing is held. `external` costs no capacity: any free block fits any request.

    internal: share of the live blocks' slots that hold no token, shared blocks once. external: share of the free blocks
    outside the longest free run. frag_ratio: (highest live id + 1) / live. stranded: share of the blocks in held
    super-pages that are not in use and yet cannot be given back. scatter: share of consecutive logical blocks that do
    not lie side by side.
    """
    m = dict(zip(METRICS, (int(value) for value in metrics), strict=True))

    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        "internal": share(block_size * m["live"] - m["tokens"], block_size * m["live"]),
        "external": share(m["free"] - m["longest_free_run"], m["free"]),
        "frag_ratio": share(m["max_live_id"] + 1, m["used"]),
        "stranded": share(m["super_pinned"], m["super_held"]),
        "scatter": share(m["pairs"] - m["adjacent"], m["pairs"]),
    }


def reference(
    *,
    ref: NDArray[np.int32],
    cached: NDArray[np.uint8],
    block_table: NDArray[np.int32],
    seq_lens: NDArray[np.int32],
    fill: NDArray[np.int32],
    scatter: NDArray[np.int32],
    run_histogram: NDArray[np.int64],
    metrics: NDArray[np.int64],
    block_size: int,
    super_size: int,
) -> Status:
    """Whole numbers only; `ratios` makes the measures of them.

    used: ref > 0 · cached_free: ref 0 and cached · free: the rest · live: distinct blocks of the tables up to each
    length · tokens: those in live blocks, shared ones once · runs: of consecutive free ids · super_held: blocks of the
    super-pages with a used or cached block · super_pinned: those of them that are not used but share a super-page with
    a used one · pairs and adjacent: consecutive logical blocks, and those whose ids are consecutive too.
    """
    held = resident(block_table, seq_lens, block_size, len(ref))
    fill[:] = 0
    np.maximum.at(fill, held.block, held.tokens.astype(np.int32))

    follows = (np.diff(held.seq) == 0) & (np.diff(held.logical) == 1)
    broken = follows & (np.diff(held.block) != 1)
    scatter[:, 0] = np.bincount(held.seq[1:][broken], minlength=len(seq_lens))
    scatter[:, 1] = np.bincount(held.seq[1:][follows], minlength=len(seq_lens))

    used = ref > 0
    kept = ~used & (cached != 0)
    free = ~used & ~kept
    edges = np.diff(np.r_[False, free, False].astype(np.int8))
    lengths = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    powers = np.int64(1) << np.arange(RUN_BINS)
    run_histogram[:] = np.bincount(np.searchsorted(powers, lengths, side="right") - 1, minlength=RUN_BINS)[:RUN_BINS]

    starts = np.arange(0, len(ref), super_size)
    sizes = np.minimum(super_size, len(ref) - starts)
    in_use = np.add.reduceat(used, starts, dtype=np.int64) if len(ref) else np.zeros(0, np.int64)
    in_cache = np.add.reduceat(kept, starts, dtype=np.int64) if len(ref) else np.zeros(0, np.int64)
    pairs = int(follows.sum())
    metrics[:] = (
        used.sum(),
        kept.sum(),
        free.sum(),
        np.count_nonzero(fill),
        fill.sum(dtype=np.int64),
        lengths.max(initial=0),
        len(lengths),
        np.flatnonzero(used)[-1] if used.any() else -1,
        sizes[in_use + in_cache > 0].sum(),
        (sizes - in_use)[in_use > 0].sum(),
        pairs - int(broken.sum()),
        pairs,
    )
    return held.status


def _walkers(axes: Axes) -> tuple[int, int, int]:
    """Thread blocks of eight warps for the table's entries, 128 to a warp."""
    warps = axes["num_seqs"] * max(1, ceil_div(axes["max_blocks_per_seq"], 128))
    return max(1, min(ceil_div(warps, 8), 1 << 20)), 1, 1


def _beyond_a_cluster(facts: Mapping[str, Any]) -> bool:
    """Whether the pool has more blocks than a cluster has threads, or the table too many entries."""
    entries = facts["num_seqs"] * facts["max_blocks_per_seq"]
    return bool(facts["num_blocks"] > STRETCH or facts["num_seqs"] > CLUSTER_SEQS or entries > CLUSTER_ENTRIES)


KERNEL = KernelDef(
    name="fragmentation_analysis",
    summary="Count waste inside blocks, free runs, the live prefix, stranded super-pages and scattered sequences.",
    source="ours: the published formula is utilisation; super-pages: kvcached",
    reference=reference,
    args=(
        Arg("ref", "int32", ("num_blocks",)),
        Arg("cached", "uint8", ("num_blocks",), doc="1: free but still in the prefix index"),
        Arg("block_table", "int32", ("num_seqs", "max_blocks_per_seq"), doc="-1 = no block"),
        Arg("seq_lens", "int32", ("num_seqs",)),
        Arg(
            "fill", "int32", ("num_blocks",), "out", "valid tokens of each block, the most that any sequence has in it"
        ),
        Arg(
            "scatter",
            "int32",
            ("num_seqs", "2"),
            "out",
            "(consecutive logical blocks that do not lie side by side, such pairs)",
        ),
        Arg("run_histogram", "int64", (str(RUN_BINS),), "out", "free runs by the power of two of their length"),
        Arg("metrics", "int64", (str(len(METRICS)),), "out", ", ".join(METRICS)),
        Arg("workspace", "int32", ("workspace_words",), "scratch", optional=True, doc="bits of the pool"),
    ),
    scalars=(
        Scalar("block_size", "int32", "tokens in a block"),
        Scalar("super_size", "int32", "blocks in a super-page", 128),
    ),
    launch=Launch(
        layout="bits of the pool; a warp per 128 table entries for fill and scatter; then a thread per 32 blocks",
        grid=lambda a: (max(1, ceil_div(a["num_blocks"], STRETCH)), 1, 1),
        threads=256,
        before=(
            Stage("few", lambda _a: (CLUSTER, 1, 1), 1024, lambda facts: not _beyond_a_cluster(facts)),
            Stage("bits", lambda a: (max(1, ceil_div(a["num_blocks"], STRETCH)), 1, 1), 1024, _beyond_a_cluster),
            Stage("walk", _walkers, 256, _beyond_a_cluster),
        ),
        when=_beyond_a_cluster,
        scratch_axes=lambda a: {
            "workspace_words": 2 * ceil_div(a["num_blocks"], 32) + ceil_div(a["num_blocks"], STRETCH)
            if _beyond_a_cluster(a)
            else 0
        },
        overlap=True,
    ),
    requires=(
        Requirement("block_size must be at least 1", lambda _axes, scalars: scalars["block_size"] >= 1),
        Requirement("super_size must be at least 1", lambda _axes, scalars: scalars["super_size"] >= 1),
    ),
)
