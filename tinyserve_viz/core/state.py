"""The KV cache at one moment, as arrays over blocks, over sequences and over content hashes.

`core.apply.apply(state, event)` is the only code that changes a state. Policies keep nothing of their own: the orders,
stamps, counters and hands that they decide by are fields here, so a state taken from a recording decides alike.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.block_queue import BlockQueue
from tinyserve_viz.core.workload import Workload

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

# What a sequence is doing. A FORKED child holds blocks and waits for a seat.
UNBORN, WAITING, RUNNING, PREEMPTED, FORKED, FINISHED, REJECTED, CANCELLED = range(8)
STATUS_NAMES = ("unborn", "waiting", "running", "preempted", "forked", "finished", "rejected", "cancelled")

_FIRST_SLOTS = 8


class CacheState:
    """State after a number of events. N blocks, S sequences, H content hashes, rows (`slots`) for live block tables.

    Per block [N]: `ref` references, `hash` content id while in the prefix index (else -1), `fill` tokens stored,
    `gen` times allocated, `last_use` step of the last allocation, hit or release, `uses` hits + 1 since it entered the
    index, `inserted` order of entering it, `clock_bit`; where kernels run: `level` protection 0 … 4, `freq` accesses by
    selections (decayed a window), `window_hits` and `window_lookups` prefix hits and lookups of this window.
    Per sequence [S]: `status`, `ctx` tokens stored, `prefill_target` tokens that count as prefill, `slot` row in
    `tables` or -1, `num_held` mapped logical blocks, `held_at_preempt`, `num_preemptions`, `hit_tokens`, times in µs
    (-1: not yet), `reserved_start`/`reserved_len` token slots of the baselines, `tail_block` the last block of its
    table, which is where it writes next (derived; meaningless while it holds none).
    `tables` int32 [slots][max_blocks], -1 = no block; beside it `causes` uint8: why a prompt block was a hit or a miss,
    and `history` int32: how often a selection kept the logical block.
    `compacted_at` step of the last compaction that was weighed, -1: none.
    Hot region of eviction `seed`: blocks below `hot_size`; `hot_requests` and `hot_misses` of its window.
    Per hash [H]: `block_of_hash` the oldest block with that content or -1, `ever_cached`.
    """

    __slots__ = (
        "block_of_hash",
        "block_size",
        "cached",
        "causes",
        "clock_bit",
        "clock_hand",
        "compacted_at",
        "ctx",
        "ever_cached",
        "fill",
        "finished_us",
        "first_token_us",
        "free",
        "freq",
        "gen",
        "has_forks",
        "hash",
        "held_at_preempt",
        "history",
        "hit_tokens",
        "hot_misses",
        "hot_requests",
        "hot_size",
        "insert_stamp",
        "inserted",
        "last_use",
        "last_written",
        "level",
        "null_blocks",
        "num_blocks",
        "num_cached_free",
        "num_duplicates",
        "num_held",
        "num_preemptions",
        "num_used",
        "prefill_target",
        "ref",
        "reserved_len",
        "reserved_start",
        "resident_tokens",
        "single_queue",
        "slot",
        "slot_used",
        "status",
        "step",
        "tables",
        "tail_block",
        "time_us",
        "uses",
        "window_hits",
        "window_lookups",
        "workload",
    )

    BLOCK_ARRAYS: ClassVar[tuple[str, ...]] = (
        "ref",
        "hash",
        "fill",
        "gen",
        "last_use",
        "uses",
        "inserted",
        "clock_bit",
        "level",
        "freq",
        "window_hits",
        "window_lookups",
    )
    SEQ_ARRAYS = (
        "status",
        "ctx",
        "prefill_target",
        "slot",
        "num_held",
        "held_at_preempt",
        "num_preemptions",
        "hit_tokens",
        "first_token_us",
        "finished_us",
        "reserved_start",
        "reserved_len",
    )
    SCALARS: ClassVar[tuple[str, ...]] = (
        "clock_hand",
        "insert_stamp",
        "num_cached_free",
        "num_duplicates",
        "num_used",
        "resident_tokens",
        "step",
        "time_us",
        "has_forks",
        "hot_size",
        "hot_requests",
        "hot_misses",
        "compacted_at",
    )

    def __init__(
        self, workload: Workload, num_blocks: int, block_size: int, null_blocks: int = 0, single_queue: bool = False
    ) -> None:
        """An empty cache. `null_blocks` ids from 0 on are never handed out; with `single_queue` cached and uncached
        free blocks stand in one order (vLLM), else the cached ones have an order of their own."""
        n, s = num_blocks, workload.num_seqs
        self.workload, self.num_blocks, self.block_size, self.null_blocks = workload, n, block_size, null_blocks
        self.ref: I32 = np.zeros(n, dtype=np.int32)
        self.hash: I32 = np.full(n, -1, dtype=np.int32)
        self.fill: I32 = np.zeros(n, dtype=np.int32)
        self.gen: I32 = np.zeros(n, dtype=np.int32)
        self.last_use: I32 = np.zeros(n, dtype=np.int32)
        self.uses: I32 = np.zeros(n, dtype=np.int32)
        self.inserted: I64 = np.zeros(n, dtype=np.int64)
        self.clock_bit: U8 = np.zeros(n, dtype=np.uint8)
        self.level: I32 = np.zeros(n, dtype=np.int32)
        self.freq: I32 = np.zeros(n, dtype=np.int32)
        self.window_hits: I32 = np.zeros(n, dtype=np.int32)
        self.window_lookups: I32 = np.zeros(n, dtype=np.int32)
        self.ref[:null_blocks] = 1
        self.free = BlockQueue(n)
        self.free.push_back(np.arange(null_blocks, n, dtype=np.int32))
        self.single_queue = single_queue
        self.cached = self.free if single_queue else BlockQueue(n)

        self.status: U8 = np.full(s, UNBORN, dtype=np.uint8)
        for name in ("ctx", "prefill_target", "num_held", "held_at_preempt", "num_preemptions", "hit_tokens"):
            setattr(self, name, np.zeros(s, dtype=np.int32))
        self.slot: I32 = np.full(s, -1, dtype=np.int32)
        self.tail_block: I64 = np.zeros(s, dtype=np.int64)  # an index every step, and NumPy converts int32 each time
        for name in ("first_token_us", "finished_us", "reserved_start"):
            setattr(self, name, np.full(s, -1, dtype=np.int64))
        self.reserved_len: I64 = np.zeros(s, dtype=np.int64)

        max_blocks = -(-workload.max_tokens // block_size)
        self.tables: I32 = np.full((_FIRST_SLOTS, max_blocks), -1, dtype=np.int32)
        self.causes: U8 = np.zeros((_FIRST_SLOTS, max_blocks), dtype=np.uint8)
        self.history: I32 = np.zeros((_FIRST_SLOTS, max_blocks), dtype=np.int32)
        self.slot_used: NDArray[np.bool_] = np.zeros(_FIRST_SLOTS, dtype=np.bool_)

        self.block_of_hash: I32 = np.full(workload.num_hashes, -1, dtype=np.int32)
        self.ever_cached: NDArray[np.bool_] = np.zeros(workload.num_hashes, dtype=np.bool_)

        self.clock_hand = self.insert_stamp = self.num_cached_free = self.num_duplicates = 0
        self.num_used = null_blocks
        self.resident_tokens = self.step = self.time_us = self.has_forks = 0
        self.hot_size = self.hot_requests = self.hot_misses = 0
        self.compacted_at = -1
        self.last_written: I64 = np.zeros(0, dtype=np.int64)

    ctx: I32
    prefill_target: I32
    num_held: I32
    held_at_preempt: I32
    num_preemptions: I32
    hit_tokens: I32
    first_token_us: I64
    finished_us: I64
    reserved_start: I64

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing worth keeping."""
        return self.num_blocks - self.num_used - self.num_cached_free

    @property
    def num_available(self) -> int:
        """Blocks that an allocation can have: free ones and cached ones without a reference."""
        return self.num_blocks - self.num_used

    def table(self, seq: int) -> I32:
        """Physical blocks of `seq` in logical order, int32 [num_held]; a view."""
        slot = int(self.slot[seq])
        if slot < 0:
            return self.tables[0, :0]
        return self.tables[slot, : int(self.num_held[seq])]

    def lowest_free_slot(self, taken: int = 0) -> int:
        """The lowest row that no sequence has, passing over the first `taken` such rows."""
        free = np.flatnonzero(~self.slot_used)
        return int(free[taken]) if taken < len(free) else len(self.slot_used) + taken - len(free)

    def grow_slots(self, slot: int) -> None:
        """Make row `slot` exist."""
        rows = len(self.slot_used)
        while rows <= slot:
            rows *= 2
        if rows > len(self.slot_used):
            extra = rows - len(self.slot_used)
            width = self.tables.shape[1]
            self.tables = np.concatenate([self.tables, np.full((extra, width), -1, dtype=np.int32)])
            self.causes = np.concatenate([self.causes, np.zeros((extra, width), dtype=np.uint8)])
            self.history = np.concatenate([self.history, np.zeros((extra, width), dtype=np.int32)])
            self.slot_used = np.concatenate([self.slot_used, np.zeros(extra, dtype=np.bool_)])

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All fields, those of a class that adds some included."""
        return tuple(name for base in cls.__mro__ for name in getattr(base, "__slots__", ()))

    def copy(self) -> CacheState:
        """An independent state; `workload` is shared, it never changes."""
        other = object.__new__(type(self))
        for name in self.names():
            value = getattr(self, name)
            setattr(other, name, value.copy() if isinstance(value, np.ndarray | BlockQueue) else value)
        if self.single_queue:
            other.cached = other.free
        return other

    def equals(self, other: CacheState) -> bool:
        """Whether both states would decide alike for ever: all arrays, orders and counters are the same."""
        if any(getattr(self, name) != getattr(other, name) for name in self.SCALARS):
            return False
        arrays = (*self.BLOCK_ARRAYS, *self.SEQ_ARRAYS, "block_of_hash", "ever_cached")
        if not all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays):
            return False
        if not (
            np.array_equal(self.free.order(), other.free.order())
            and np.array_equal(self.cached.order(), other.cached.order())
        ):
            return False
        live = np.flatnonzero(self.slot >= 0)
        return all(
            np.array_equal(self.table(seq), other.table(seq))
            and np.array_equal(self.causes[self.slot[seq]], other.causes[other.slot[seq]])
            and np.array_equal(self.history[self.slot[seq]], other.history[other.slot[seq]])
            for seq in live.tolist()
        )
