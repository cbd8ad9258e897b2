"""The invariants of the cache, checked in full on a state or step by step on the blocks that a step named.

| id | says |
| --- | --- |
| I1 | used + cached-free + free = num_blocks, and the counters say the same as the arrays |
| I2 | a block has as many references as live tables name it |
| I3 | every unreferenced block stands once in its free order: cached ones in the index, free ones not |
| I4 | table entries are mapped up to the held count and -1 beyond; reserved ranges are disjoint, inside the pool |
| I5 | no write to a block with more than one reference (checked at every write, so by `StepChecker` alone) |
| I7 | the prefix index names full blocks with the right chained content, each hash its oldest block |

I6 (boxes contain their keys) and I8 (moving blocks changes no sequence) need K/V and are checked where the kernels run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.block_queue import NOWHERE
from tinyserve_viz.core.state import CacheState

_FEW = 8  # named blocks up to which scalar checks cost less than NumPy calls
FULL_EVERY = 1000  # steps; a full check of 8,192 blocks and 256 tables costs about 1 ms
PER_STEP = ("I1", "I2", "I3", "I4", "I5", "I7")


@dataclass(frozen=True, slots=True)
class Violation:
    """One invariant that did not hold after `step`."""

    step: int
    invariant: str
    message: str


def check(state: CacheState) -> list[Violation]:
    """All invariants that need no K/V, in full; the violations found, none when all is well. Changes nothing."""
    found: list[Violation] = []

    def expect(holds: bool, invariant: str, message: str) -> None:
        if not holds:
            found.append(Violation(state.step, invariant, message))

    used, hashed = state.ref > 0, state.hash >= 0
    cached_free = ~used & hashed
    counts = (int(used.sum()), int(cached_free.sum()))
    expect(
        counts == (state.num_used, state.num_cached_free),
        "I1",
        f"counted {counts} used and cached-free blocks, counters say {(state.num_used, state.num_cached_free)}",
    )
    resident = int(state.fill[used].sum())
    expect(
        resident == state.resident_tokens,
        "I1",
        f"used blocks hold {resident} tokens, the counter says {state.resident_tokens}",
    )

    live = np.flatnonzero(state.slot >= 0)
    tables = [state.table(seq) for seq in live.tolist()]
    named = np.concatenate(tables) if tables else ev.EMPTY
    expect(not len(named) or int(named.min()) >= 0, "I4", "a held logical block is unmapped")
    references = np.bincount(named[named >= 0], minlength=state.num_blocks)
    references[: state.null_blocks] += 1
    wrong = np.flatnonzero(references != state.ref)
    expect(
        not len(wrong),
        "I2",
        f"blocks {wrong[:5].tolist()} have {state.ref[wrong[:5]].tolist()} references, "
        f"tables name them {references[wrong[:5]].tolist()} times",
    )

    expected_free = ~used if state.single_queue else ~used & ~hashed
    expect(
        np.array_equal(state.free.pos != NOWHERE, expected_free), "I3", "the free order is not the set of free blocks"
    )
    expect(
        state.free.size == int(expected_free.sum()),
        "I3",
        "the free order has another length than there are free blocks",
    )
    if not state.single_queue:
        expect(
            np.array_equal(state.cached.pos != NOWHERE, cached_free),
            "I3",
            "the cached-free order is not the set of cached-free blocks",
        )
        expect(
            state.cached.size == counts[1], "I3", "the cached-free order has another length than there are such blocks"
        )

    mapped = int((state.tables >= 0).sum())
    expect(
        mapped == int(state.num_held[live].sum()),
        "I4",
        f"{mapped} table entries are mapped, sequences hold {int(state.num_held[live].sum())}",
    )
    _check_ranges(state, found)
    _check_index(state, found, live, hashed)
    return found


def _check_ranges(state: CacheState, found: list[Violation]) -> None:
    reserved = np.flatnonzero(state.reserved_len)
    if len(reserved):
        order = reserved[np.argsort(state.reserved_start[reserved])]
        starts, ends = state.reserved_start[order], (state.reserved_start + state.reserved_len)[order]
        inside = starts[0] >= 0 and ends[-1] <= state.num_blocks * state.block_size
        if not inside or (starts[1:] < ends[:-1]).any():
            found.append(Violation(state.step, "I4", "reserved ranges overlap or leave the pool"))


def _check_index(
    state: CacheState, found: list[Violation], live: ev.I64, hashed: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> None:
    blocks = np.flatnonzero(hashed)
    owners = state.block_of_hash[state.hash[blocks]]
    if len(blocks) and (owners < 0).any():
        found.append(Violation(state.step, "I7", "a block carries a hash that the index does not know"))
    elif (state.hash[owners] != state.hash[blocks]).any() or (state.inserted[owners] > state.inserted[blocks]).any():
        found.append(Violation(state.step, "I7", "the index names another block than the oldest with that content"))
    elif int((state.block_of_hash >= 0).sum()) != len(blocks) - state.num_duplicates:
        found.append(Violation(state.step, "I7", "the index has other entries than the blocks have hashes"))
    if (state.fill[blocks] != state.block_size).any():
        found.append(Violation(state.step, "I7", "a block that is not full stands in the prefix index"))
    w = state.workload
    for seq in live.tolist() if len(w.hash_flat) else ():
        if w.parent[w.request_of_seq[seq]] >= 0:
            continue  # what it shares was its parent's, whatever its own ids would say
        table, known = state.table(seq), w.hashes_of(int(w.request_of_seq[seq]))
        whole = int(state.ctx[seq]) // state.block_size  # a fork may hold a block of which only the start is its own
        shared = min(len(table), len(known), whole)
        content = state.hash[table[:shared]]
        if ((content >= 0) & (content != known[:shared])).any():
            found.append(
                Violation(state.step, "I7", f"{w.seq_name(seq)} holds a block whose cached content is not its own")
            )


class StepChecker:
    """Checks after every step the blocks and sequences that its events named, and the whole state now and then.

    Reference counts are compared with a second count that is kept from the events alone. `add` is a sink.
    """

    def __init__(self, state: CacheState, full_every: int = FULL_EVERY, cached_when_scheduled: bool = False) -> None:
        """With `cached_when_scheduled` a block may be shared before its first write fills it (vLLM's rule)."""
        self._cached_when_scheduled = cached_when_scheduled
        self._state = state
        self._full_every = full_every
        self._references = np.zeros(state.num_blocks, dtype=np.int32)
        self._references[: state.null_blocks] = 1
        self._named: list[ev.I32] = []
        self._few: list[int] = []  # blocks that events named one by one
        self._seqs: ev.I32 = ev.EMPTY
        self.num_checked = 0
        self.violations: list[Violation] = []
        self._handlers: dict[type[ev.Event], Callable[[int, Any], None]] = {
            ev.TokensWritten: self._written,
            ev.StepEnded: self._check_step,
            ev.BlocksAllocated: self._allocated,
            ev.BlocksFreed: self._freed,
            ev.SequenceAdmitted: self._admitted,
            ev.BlocksCopied: self._copied,
            ev.SequencesForked: self._forked,
            ev.BlocksEvicted: self._indexed,
            ev.BlocksCached: self._indexed,
            ev.CompactionPlanned: self._moved,
        }

    def add(self, step: int, event: ev.Event) -> None:
        """Take the next event, which was just applied."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(step, event)

    def _written(self, step: int, _event: ev.TokensWritten) -> None:
        written = self._state.last_written
        shared = self._state.ref[written] > 1
        if np.count_nonzero(shared):
            hashed = self._state.hash[written[shared]] >= 0
            if not (self._cached_when_scheduled and hashed.all()):
                self._report(step, "I5", "a shared block was written")

    def _allocated(self, _step: int, event: ev.BlocksAllocated) -> None:
        blocks, references = event.blocks, self._references
        if len(blocks) <= _FEW:
            few = blocks.tolist()
            for block in few:
                references[block] += 1
            self._few += few
        else:
            references[blocks] += 1
            self._named.append(blocks)
        self._seqs = event.seqs

    def _freed(self, _step: int, event: ev.BlocksFreed) -> None:
        if len(event.seqs) == 1:  # a table names a block once
            self._references[event.blocks] -= 1
        else:
            np.subtract.at(self._references, event.blocks, 1)
        self._named.append(event.blocks)

    def _admitted(self, _step: int, event: ev.SequenceAdmitted) -> None:
        if len(event.hits):
            self._references[event.hits] += 1
            self._named.append(event.hits)

    def _copied(self, _step: int, event: ev.BlocksCopied) -> None:
        self._references[event.dst] += 1
        np.subtract.at(self._references, event.src, 1)
        self._named += [event.dst, event.src]

    def _forked(self, _step: int, event: ev.SequencesForked) -> None:
        for child in event.children.tolist():
            self._references[self._state.table(child)] += 1
            self._named.append(self._state.table(child).copy())

    def _indexed(self, _step: int, event: ev.BlocksEvicted | ev.BlocksCached) -> None:
        if len(event.blocks) <= _FEW:
            self._few += event.blocks.tolist()
        else:
            self._named.append(event.blocks)

    def _moved(self, _step: int, event: ev.CompactionPlanned) -> None:
        self._references[event.dst] = self._references[event.src]
        self._references[event.src] = 0
        self._named += [event.dst, event.src]

    def _check_step(self, step: int, _event: ev.StepEnded) -> None:
        state = self._state
        self.num_checked += len(PER_STEP)
        if self._named or self._few:
            if self._named or len(self._few) > _FEW or not self._check_few(self._few):
                few = np.array(self._few, dtype=np.intp)
                self._check_named(step, np.concatenate([few, *self._named]))
            self._named, self._few = [], []
            self._check_orders(step)
        if state.step % self._full_every == 0:
            self.check_now()

    def _check_few(self, named: list[int]) -> bool:
        """The checks of `_check_named` on a handful of blocks, without NumPy's cost per call; False when one failed."""
        state, references = self._state, self._references
        ref, content, in_free, in_cached = state.ref, state.hash, state.free.pos, state.cached.pos
        single = state.single_queue
        for block in named:
            references_now = ref[block]
            if references_now != references[block]:
                return False
            free = in_free[block] != NOWHERE
            placed = free if single else free != (in_cached[block] != NOWHERE)
            if (references_now > 0) == placed:
                return False
            hashed = content[block]
            if hashed >= 0 and content[state.block_of_hash[hashed]] != hashed:
                return False
        return True

    def _check_named(self, step: int, named: ev.I64) -> None:
        state = self._state
        ref = state.ref[named]
        if np.count_nonzero(ref != self._references[named]):
            self._report(step, "I2", "a block has other references than the events gave it")
        in_free, in_cached = state.free.pos[named] != NOWHERE, state.cached.pos[named] != NOWHERE
        placed = in_free if state.single_queue else in_free ^ in_cached
        if np.count_nonzero((ref > 0) == placed):
            self._report(step, "I3", "a block is both referenced and free, or neither")
        content = state.hash[named]
        content = content[content >= 0]
        if len(content) and not np.array_equal(state.hash[state.block_of_hash[content]], content):
            self._report(step, "I7", "the index does not lead back to a block's content")

    def _check_orders(self, step: int) -> None:
        state = self._state
        if not state.single_queue and state.cached.size != state.num_cached_free:
            self._report(
                step,
                "I1",
                f"{state.cached.size} blocks are in the cached-free order, {state.num_cached_free} are counted",
            )
        if state.free.size != state.num_free + (state.num_cached_free if state.single_queue else 0):
            self._report(step, "I1", f"{state.free.size} blocks are in the free order, {state.num_free} are counted")
        seqs = self._seqs
        self._seqs = ev.EMPTY
        for seq in seqs.tolist():
            held = state.num_held[seq]
            if held and state.tables[state.slot[seq], held - 1] != state.tail_block[seq]:
                self._report(
                    step, "I4", f"the last logical block of {state.workload.seq_name(seq)} is not where it writes"
                )

    def check_now(self) -> None:
        """Check the whole state."""
        self.violations.extend(check(self._state))

    def _report(self, step: int, invariant: str, message: str) -> None:
        self.violations.append(Violation(step, invariant, message))
