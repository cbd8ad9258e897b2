"""How fragmented a pool is, by five measures, and in words whether that costs anything.

| measure | is |
| --- | --- |
| internal | 1 − Σ tokens / (block_size · distinct live blocks): slots that hold no token, shared blocks once |
| internal, per sequence | the same with a shared block counted for each of its sequences |
| external | 1 − longest run of free blocks / free blocks (cached ones are not free) |
| frag_ratio | (highest live id + 1) / live blocks |
| stranded(S) | unused blocks that share a super-page of S blocks with a used one / blocks of held super-pages |
| scatter | of consecutive logical blocks of a sequence: those that do not lie side by side |

A super-page is held while one of its blocks is used or cached; what is stranded cannot be given back though it is not
used. A null block (profile vllm) is no live block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.state import CacheState

SUPER_SIZE = 128  # blocks in a super-page; kvcached maps memory by pages of about that many
SECTOR = 32  # bytes, the smallest piece that a GPU's DRAM traffic is counted in
LONG_RUN = 512  # bytes in a row: several bursts of DRAM, so hardly a byte is fetched in vain wherever the next run lies
RUN_BINS = 32  # bin k: free runs of 2**k … 2**(k+1) − 1 blocks

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Fragmentation:
    """Measures of one state; ratios are None where nothing is there to measure.

    `scatter_of` int64 [k, 3]: sequence, pairs of consecutive logical blocks that do not lie side by side, such pairs.
    `run_histogram` int64 [RUN_BINS]. Baseline allocators: runs are holes in token slots, and stranded and scatter None.
    """

    internal: float | None
    internal_per_sequence: float | None
    external: float | None
    frag_ratio: float | None
    stranded: float | None
    scatter: float | None
    scatter_of: I64
    run_histogram: I64
    num_free_runs: int
    longest_free_run: int
    num_free: int

    def as_dict(self) -> dict[str, Any]:
        """The section `fragmentation` of a summary; the histogram up to its last run."""
        bins = np.flatnonzero(self.run_histogram)
        return {
            "internal": self.internal,
            "internal_per_sequence": self.internal_per_sequence,
            "external": self.external,
            "frag_ratio": self.frag_ratio,
            "stranded": self.stranded,
            "scatter": self.scatter,
            "num_free_runs": self.num_free_runs,
            "longest_free_run": self.longest_free_run,
            "run_histogram": self.run_histogram[: int(bins[-1]) + 1 if len(bins) else 0].tolist(),
        }


def measure(state: CacheState, super_size: int = SUPER_SIZE) -> Fragmentation:
    """All measures of a state."""
    if state.reserved_len.any():
        return _of_ranges(state)
    used = state.ref > 0
    used[: state.null_blocks] = False
    cached = (state.ref == 0) & (state.hash >= 0)
    free = (state.ref == 0) & (state.hash < 0)
    live, num_free = int(used.sum()), int(free.sum())
    lengths = _run_lengths(free)
    rows = np.flatnonzero(state.num_held > 0)
    scatter_of = _scatter(state, rows)
    broken, pairs = scatter_of[:, 1:].sum(axis=0).tolist()
    slots_by_seq = int(state.num_held[rows].sum()) * state.block_size
    return Fragmentation(
        internal=1 - int(state.fill[used].sum()) / (live * state.block_size) if live else None,
        internal_per_sequence=1 - int(state.ctx[rows].sum()) / slots_by_seq if slots_by_seq else None,
        external=1 - int(lengths.max()) / num_free if num_free else None,
        frag_ratio=(int(np.flatnonzero(used)[-1]) + 1) / live if live else None,
        stranded=_stranded(used, cached, super_size),
        scatter=broken / pairs if pairs else None,
        scatter_of=scatter_of,
        run_histogram=_histogram(lengths),
        num_free_runs=len(lengths),
        longest_free_run=int(lengths.max(initial=0)),
        num_free=num_free,
    )


def fragmentation(state: CacheState) -> dict[str, Any]:
    """The measures as the summary has them."""
    return measure(state).as_dict()


def _run_lengths(free: NDArray[np.bool_]) -> I64:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]]).astype(np.int8)))
    return edges[1::2] - edges[::2]


def _histogram(lengths: I64) -> I64:
    powers = np.int64(1) << np.arange(RUN_BINS)
    return np.bincount(np.searchsorted(powers, lengths, side="right") - 1, minlength=RUN_BINS)[:RUN_BINS]


def _stranded(used: NDArray[np.bool_], cached: NDArray[np.bool_], size: int) -> float | None:
    starts = np.arange(0, len(used), size)
    sizes = np.minimum(size, len(used) - starts)
    in_use = np.add.reduceat(used, starts, dtype=np.int64)
    in_cache = np.add.reduceat(cached, starts, dtype=np.int64)
    held = int(sizes[in_use + in_cache > 0].sum())
    return int((sizes - in_use)[in_use > 0].sum()) / held if held else None


def _scatter(state: CacheState, rows: I64) -> I64:
    found = np.zeros((len(rows), 3), dtype=np.int64)
    if len(rows):
        held = state.num_held[rows]
        tables = state.tables[state.slot[rows], : int(held.max())]
        follows = np.arange(1, tables.shape[1]) < held[:, None]
        found[:, 0] = rows
        found[:, 1] = ((np.diff(tables, axis=1) != 1) & follows).sum(axis=1)
        found[:, 2] = held - 1
    return found


def _of_ranges(state: CacheState) -> Fragmentation:
    live = np.flatnonzero(state.reserved_len)
    order = live[np.argsort(state.reserved_start[live])]
    starts, lengths = state.reserved_start[order], state.reserved_len[order]
    slots = state.num_blocks * state.block_size
    holes = np.diff(np.concatenate([[0], np.column_stack([starts, starts + lengths]).ravel(), [slots]]))[::2]
    holes = holes[holes > 0]
    reserved = int(lengths.sum())
    internal = 1 - int(state.ctx[live].sum()) / reserved
    return Fragmentation(
        internal=internal,
        internal_per_sequence=internal,
        external=1 - int(holes.max()) / int(holes.sum()) if len(holes) else None,
        frag_ratio=int(starts[-1] + lengths[-1]) / reserved,
        stranded=None,
        scatter=None,
        scatter_of=np.zeros((0, 3), dtype=np.int64),
        run_histogram=_histogram(holes),
        num_free_runs=len(holes),
        longest_free_run=int(holes.max(initial=0)) // state.block_size,
        num_free=int(holes.sum()),
    )


def cost_in_words(allocator: str) -> str:
    """Whether external fragmentation costs capacity under an allocator."""
    if allocator == "paged":
        return "any free block serves any request, so external fragmentation costs no capacity here"
    return "a range must be one hole, so external fragmentation costs capacity here"


def verdict_in_words(found: Fragmentation, block_bytes: int) -> list[str]:
    """Whether the fragmentation of a paged pool costs anything, one sentence a measure that says something.

    `block_bytes` is what attention reads in a row: K of one block in one layer.
    """
    said = []
    if found.external is not None:
        said.append(f"external {_percent(found.external)}: {cost_in_words('paged')}, at any value")
    if found.internal is not None:
        said.append(f"internal {_percent(found.internal)}: this is what a paged pool loses; smaller blocks lose less")
    if found.scatter:
        what = f"scatter {_percent(found.scatter)}: attention reads {block_bytes:,} bytes of a block in a row, "
        if block_bytes >= LONG_RUN:
            said.append(
                f"{what}{block_bytes // SECTOR:,} memory sectors, so scatter makes it fetch no more bytes; it costs "
                "what jumping costs (`claims --only fragmentation` measures it) and turns one copy a sequence (swap, "
                "transfer) into one a run"
            )
        else:
            said.append(f"{what}so little that gaps between blocks waste part of a memory burst: use larger blocks")
    if found.stranded:
        said.append(
            f"stranded {_percent(found.stranded)} of the held super-pages of {SUPER_SIZE} blocks: costs memory only "
            "where free super-pages are given back to another user of the device"
        )
    return said


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"
