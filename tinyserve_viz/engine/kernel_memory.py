"""The cache that the kernels keep beside the state: pools, tables, counters; its kernels repeat what the events say.

Everything here lives with the session and is changed by kernels alone. What the host decides without a kernel of its
own (prefix hits, evictions, the table's side of copy-on-write) is collected as edits and goes in one launch of
`block_bookkeeping` before the next kernel that looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.config import EngineConfig, ModelConfig
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.useful_bytes import copy_bytes, move_bytes
from tinyserve_viz.kernels.defs.block_bookkeeping import ADD, EDITED, SET
from tinyserve_viz.kernels.session import Calls, Given, Held, Session

COUNTERS = ("ref", "gen", "level", "freq", "hits", "lookups")
_ALLOCATED = ("block_table", *COUNTERS, "history", "box")  # what an allocation changes
_FEW = 8  # blocks that a step's program may allocate: there is one for each number
_OTHER_BLOCKS = "block_allocation gave other blocks"
Report = Callable[[str, str], None]
"""Called with an invariant and what is wrong with it."""
Contents = tuple[NDArray[Any], NDArray[Any]]


class _Allocation(NamedTuple):
    """Blocks to be given out: inputs of `block_allocation`, and what it must answer."""

    arrays: dict[str, NDArray[Any]]
    expected: ev.I32


class KernelMemory:
    """Held arrays by name: `key_cache`, `value_cache` [layers][blocks]…, `box`, `block_table`, `history`, the counters
    of the blocks and `cached`. `checking` tells whether contents are compared around copies and moves (I8)."""

    def __init__(
        self, state: CacheState, engine: EngineConfig, model: ModelConfig, session: Session, report: Report
    ) -> None:
        self._state, self._engine, self._model, self._session, self._report = state, engine, model, session, report
        n, bs = engine.num_blocks, engine.block_size
        pool = (model.num_layers, n, bs, model.num_kv_heads, model.head_dim)
        self.held: dict[str, Held] = {name: session.hold(np.zeros(pool, np.float16)) for name in POOLS}
        self.held["box"] = session.hold(
            np.zeros((model.num_layers, n, model.num_kv_heads, 2, model.head_dim), dtype=np.float16)
        )
        self.held["block_table"] = session.hold(np.full_like(state.tables, -1))
        self.held["history"] = session.hold(np.zeros_like(state.tables))
        self.held |= {name: session.hold(np.zeros(n, dtype=np.int32)) for name in COUNTERS}
        self.held["ref"] = session.hold(state.ref)
        self.held["cached"] = session.hold(np.zeros(n, dtype=np.uint8))
        self.checking = True
        self.check_s = 0.0  # spent on comparing contents
        self._edits: dict[str, tuple[int, list[NDArray[Any]], list[NDArray[Any]]]] = {}
        self._expected: list[tuple[Callable[[], NDArray[Any]], NDArray[Any], str]] = []
        self._allocation: _Allocation | None = None  # comes before the edits
        self._after: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SequenceAdmitted: self._admitted,
            ev.BlocksAllocated: self._allocated,
            ev.BlocksFreed: self._freed,
            ev.BlocksEvicted: self._evicted,
            ev.BlocksCopied: self._copied,
            ev.SequencesForked: self._forked,
            ev.CompactionPlanned: self._compacted,
        }

    @property
    def num_rows(self) -> int:
        """Rows of the tables, which are those of the state's."""
        return self.held["block_table"].shape[0]

    def layer(self, name: str, layer: int) -> Held:
        """One layer of a pool or of the boxes."""
        return self._session.part(self.held[name], layer)

    def after(self, event: ev.Event) -> None:
        """Take an event that was just applied to the state."""
        handler = self._after.get(type(event))
        if handler is not None:
            handler(event)

    # ── edits ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _edit(self, operation: int, name: str, index: Any, value: Any) -> None:
        """Set or add to entries, from the next kernel on; of two sets of one entry the later counts."""
        index = np.asarray(index, dtype=np.int64).ravel()
        if name in self._edits and self._edits[name][0] != operation:
            self.flush()
        _, indices, values = self._edits.setdefault(name, (operation, [], []))
        indices.append(index)
        values.append(np.broadcast_to(np.asarray(value, dtype=np.int64), index.shape))

    def flush(self) -> None:
        """Send what waits: an allocation, then the edits."""
        if self._allocation is not None:
            (arrays, expected), self._allocation = self._allocation, None
            given: dict[str, Given] = {**arrays, **{name: self.held[name] for name in _ALLOCATED}}
            outputs = self._session.call("block_allocation", given, 24 * len(expected))
            self._expect(outputs["allocated"], expected, _OTHER_BLOCKS)
        if not self._edits:
            return
        parts = []
        for name, (operation, indices, values) in self._edits.items():
            index, value = np.concatenate(indices), np.concatenate(values)
            if operation == SET and len(indices) > 1:
                index, last = np.unique(index[::-1], return_index=True)
                value = value[::-1][last]
            which = np.full(len(index), 2 * EDITED.index(name) + operation, dtype=np.int64)
            parts.append(np.stack([which, index, value], axis=1))
        self._edits = {}
        edits = np.concatenate(parts)
        if len(edits):
            self._session.call(
                "block_bookkeeping", {"edits": edits, **{name: self.held[name] for name in EDITED}}, 32 * len(edits)
            )

    def _call(self, kernel: str, num_bytes: int, arrays: Mapping[str, Given], *names: str) -> dict[str, Held]:
        """A kernel on `arrays` and the held arrays of those names."""
        self.flush()
        return self._session.call(kernel, {**arrays, **{name: self.held[name] for name in names}}, num_bytes)

    # ── what the events say ─────────────────────────────────────────────────────────────────────────────────────

    def match_rows(self) -> bool:
        """Give the tables as many rows as the state's have; whether they grew."""
        missing = len(self._state.tables) - self.num_rows
        if missing <= 0:
            return False
        self.flush()
        for name, empty in (("block_table", -1), ("history", 0)):
            old = self.held[name]
            (content,) = self._session.read(old)
            more = np.full((missing, old.shape[1]), empty, dtype=np.int32)
            self.held[name] = self._session.hold(np.concatenate([content, more]))
            self._session.drop(old)
        return True

    def _entries(self, slots: Any, logical: Any) -> NDArray[np.int64]:
        """Flat places in the tables."""
        places: NDArray[np.int64] = np.asarray(slots, dtype=np.int64) * self.held["block_table"].shape[1] + logical
        return places

    def _admitted(self, event: ev.SequenceAdmitted) -> None:
        self.match_rows()
        hits = event.hits
        if len(hits):
            self._edit(SET, "block_table", self._entries(event.slot, np.arange(len(hits))), hits)
            self._edit(SET, "cached", hits, 0)
            for counter in ("ref", "hits", "lookups"):
                self._edit(ADD, counter, hits, 1)
        if len(event.orphans):
            self._edit(ADD, "lookups", event.orphans, 1)

    def _allocated(self, event: ev.BlocksAllocated) -> None:
        slots: NDArray[Any] = self._state.slot[event.seqs]
        logical: NDArray[Any] = event.first_logical
        if len(event.blocks) > len(event.seqs):  # some get more than one
            slots = np.repeat(slots, event.counts)
            first = np.repeat(logical - (np.cumsum(event.counts) - event.counts), event.counts)
            logical = first + np.arange(len(event.blocks))
        reqs = np.empty((len(event.blocks), 2), dtype=np.int32)
        reqs[:, 0], reqs[:, 1] = slots, logical
        self._allocate({"reqs": reqs, "free_order": event.blocks}, event.blocks)

    def _allocate(self, arrays: dict[str, NDArray[Any]], expected: ev.I32) -> None:
        """A few blocks wait for `take_allocation`, until something else of the memory is wanted; more are a call."""
        self.flush()
        self._allocation = _Allocation(arrays, expected)
        if len(expected) > _FEW:
            self.flush()

    def take_allocation(self) -> _Allocation | None:
        """The blocks that are still to be allocated, if nothing else waits: the caller's program does it first."""
        if self._edits:
            self.flush()
        taken, self._allocation = self._allocation, None
        return taken

    def allocating(self, calls: Calls) -> Held:
        """The call of a program whose inputs are those of an allocation; the blocks that were given."""
        given = {name: calls.input(name) for name in ("reqs", "free_order")}
        given |= {name: self.held[name] for name in _ALLOCATED}
        return calls.call("block_allocation", given, lambda s: 24 * s["allocated"])["allocated"]

    def check_allocation(self, allocation: _Allocation, found: NDArray[Any]) -> None:
        """The blocks that the kernel gave must be those of the event."""
        if not np.array_equal(found, allocation.expected):
            self._report("kernel", _OTHER_BLOCKS)

    def _freed(self, event: ev.BlocksFreed) -> None:
        slots = np.repeat(self._state.slot[event.seqs], event.counts)
        logical = np.concatenate([np.arange(count)[::-1] for count in event.counts.tolist()])
        outputs = self._call(
            "block_deallocation",
            16 * len(event.blocks),
            {"reqs": np.stack([slots, logical], axis=1).astype(np.int32)},
            *("block_table", "ref"),
        )
        self._expect(outputs["released"], event.blocks, "block_deallocation freed others")
        freed = event.blocks[self._state.ref[event.blocks] == 0]
        self._edit(SET, "cached", freed, self._state.hash[freed] >= 0)
        self._edit(SET, "history", self._entries(slots, logical), 0)

    def _evicted(self, event: ev.BlocksEvicted) -> None:
        self._edit(SET, "cached", event.blocks, 0)

    def _forked(self, event: ev.SequencesForked) -> None:
        self.match_rows()
        slot = self._state.slot
        num_shared = int(self._state.num_held[event.children[0]])
        for child in event.children.tolist():
            forks = np.array([[slot[event.parent], slot[child], num_shared]], dtype=np.int32)
            self._call("block_fork", 16 * num_shared, {"forks": forks}, "block_table", "ref", "history")

    def _copied(self, event: ev.BlocksCopied) -> None:
        state = self._state
        slots = state.slot[event.seqs]
        lengths = state.ctx[event.seqs].tolist()
        old_tables = state.tables[slots].copy()
        old_tables[np.arange(len(slots)), event.logical] = event.src  # the state has the copies already
        before = self._gather(old_tables)
        self._edit(SET, "ref", event.dst, 1)
        self._edit(ADD, "gen", event.dst, 1)
        for counter in ("level", "freq", "hits", "lookups"):
            self._edit(SET, counter, event.dst, 0)
        self._call(
            "fused_block_copy",
            copy_bytes(self._model, int(event.tokens.sum()), len(event.dst), self._model.num_layers),
            {"ops": np.stack([event.src, event.dst, event.tokens], axis=1)},
            *("ref", *POOLS, "box"),
        )
        self._edit(SET, "block_table", self._entries(slots, event.logical), event.dst)
        self._edit(ADD, "ref", event.src, -1)
        self._edit(SET, "cached", event.src, (state.ref[event.src] == 0) & (state.hash[event.src] >= 0))
        self._compare(before, self._gather(state.tables[slots]), lengths, "copy-on-write changed what a sequence reads")

    def _compacted(self, event: ev.CompactionPlanned) -> None:
        if not len(event.src):
            return
        state = self._state
        slots = np.flatnonzero(state.slot_used)
        back = np.arange(self._engine.num_blocks, dtype=np.int32)
        old_to_new = back.copy()
        old_to_new[event.src], back[event.dst] = event.dst, event.src
        tables = state.tables[slots]
        before = self._gather(np.where(tables >= 0, back[tables], -1))
        self._call(
            "memory_compaction",
            move_bytes(
                self._model, len(event.src) * self._engine.block_size, len(event.src), self._model.num_layers
            ),
            {
                "moves": np.stack([event.src, event.dst], axis=1),
                "num_moves": np.array([len(event.src)], dtype=np.int32),
                "old_to_new": old_to_new,
            },
            *(*POOLS, "box", "block_table", *COUNTERS, "cached"),
        )
        whole = [None] * len(slots)
        self._compare(before, self._gather(tables), whole, "compaction changed what a sequence reads")

    # ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _expect(self, held: Held, expected: NDArray[Any], message: str) -> None:
        """`held` must be `expected`; looked at when the step ends."""
        later = self._session.read_later(held)
        self._expected.append((lambda: later()[0], expected, message))

    def check_expected(self) -> None:
        """Compare what the kernels of this step gave with what the events say."""
        for found, expected, message in self._expected:
            if not np.array_equal(found(), expected):
                self._report("kernel", message)
        self._expected = []

    def _gather(self, tables: ev.I32) -> list[Contents]:
        """K and V that rows of these tables read, [layers][slots of the blocks][...] each; nothing unless checking."""
        if not self.checking:
            return []
        started = time.perf_counter()
        model, found = self._model, []
        flat = (model.num_layers, -1, model.num_kv_heads, model.head_dim)
        for table in tables:
            blocks = table[table >= 0]
            keys, values = (self._session.read_blocks(self.held[name], blocks).reshape(flat) for name in POOLS)
            found.append((keys, values))
        self.check_s += time.perf_counter() - started
        return found

    def _compare(self, before: list[Contents], now: list[Contents], lengths: list[Any], message: str) -> None:
        for length, old, new in zip(lengths, before, now, strict=False):
            if not all(np.array_equal(a[:, :length], b[:, :length]) for a, b in zip(old, new, strict=True)):
                self._report("I8", message)

    def compare_with_state(self) -> None:
        """Every table and counter must be the state's."""
        self.flush()
        started = time.perf_counter()
        state, rows = self._state, self.num_rows
        cached = ((state.ref == 0) & (state.hash >= 0)).astype(np.uint8)
        pairs = {
            "ref": state.ref,
            "gen": state.gen,
            "level": state.level,
            "freq": state.freq,
            "hits": state.window_hits,
            "lookups": state.window_lookups,
            "block_table": state.tables[:rows],
            "history": state.history[:rows],
            "cached": cached,
        }
        found = self._session.read(*(self.held[name] for name in pairs))
        for (name, theirs), ours in zip(pairs.items(), found, strict=True):
            if not np.array_equal(ours, theirs):
                self._report("kernel", f"{name} of the backend is not that of the state")
        self.check_s += time.perf_counter() - started


POOLS = ("key_cache", "value_cache")
