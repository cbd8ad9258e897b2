"""A prefix cache as its server's KV-event stream tells it: the state, what each event does to it, and its invariants.

Such a stream says which contents were stored and removed. It says nothing of requests, block ids, references, hits or
blocks that are not in the cache yet; what it does not say has no field here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.block_queue import NOWHERE
from tinyserve_viz.core.check import FULL_EVERY, Violation
from tinyserve_viz.core.state import I32, I64, CacheState
from tinyserve_viz.core.workload import Workload

UNKNOWN_DEPTH = -1


class StreamState(CacheState):
    """State of a stream's blocks, which have numbers of ours, after a number of events.

    Per block [N]: `place` where the header's list of (medium, group) says it lies, −1 when it is not in the cache;
    `content` the low 64 bits of its hash, `parent` those of the block before it in its prompt and `has_parent` whether
    there is one; `depth` its logical place in that prompt (−1: not told). Of `CacheState` it uses `gen` times taken,
    `last_use` the batch that stored it, `fill` its tokens, `free` the unused numbers, `num_cached_free` how many are
    cached, `step` batches and `time_us`. Sums so far: `num_stored`, `num_removed` and `num_cleared` blocks,
    `num_unmatched` removals of what was never stored, `num_gaps` with `num_missing` batches, `num_unknown` events;
    `sequence` of the last batch (−1).
    """

    __slots__ = (
        "content",
        "depth",
        "has_parent",
        "num_cleared",
        "num_gaps",
        "num_missing",
        "num_removed",
        "num_stored",
        "num_unknown",
        "num_unmatched",
        "parent",
        "place",
        "sequence",
    )

    BLOCK_ARRAYS: ClassVar[tuple[str, ...]] = (
        *CacheState.BLOCK_ARRAYS,
        "place",
        "content",
        "parent",
        "has_parent",
        "depth",
    )
    SCALARS: ClassVar[tuple[str, ...]] = (
        *CacheState.SCALARS,
        "num_stored",
        "num_removed",
        "num_cleared",
        "num_unmatched",
        "num_gaps",
        "num_missing",
        "num_unknown",
        "sequence",
    )

    def __init__(self, workload: Workload, num_blocks: int, block_size: int) -> None:
        """An empty cache of at most `num_blocks` blocks; `workload` has no requests."""
        super().__init__(workload, num_blocks, block_size)
        self.place: I32 = np.full(num_blocks, -1, dtype=np.int32)
        self.content: I64 = np.zeros(num_blocks, dtype=np.int64)
        self.parent: I64 = np.zeros(num_blocks, dtype=np.int64)
        self.has_parent: NDArray[np.uint8] = np.zeros(num_blocks, dtype=np.uint8)
        self.depth: I32 = np.full(num_blocks, UNKNOWN_DEPTH, dtype=np.int32)
        self.num_stored = self.num_removed = self.num_cleared = self.num_unmatched = 0
        self.num_gaps = self.num_missing = self.num_unknown = 0
        self.sequence = -1

    def copies_of(self, block: int) -> I32:
        """The blocks with the content of `block` in its place, oldest first, itself included."""
        same = (self.content == self.content[block]) & (self.place == self.place[block])
        found = np.flatnonzero(same).astype(np.int32)
        return found[np.argsort(self.inserted[found], kind="stable")]


def _stored(state: StreamState, event: ev.StreamStored) -> None:
    blocks = event.blocks
    state.free.remove(blocks)
    state.place[blocks] = event.place
    state.content[blocks] = event.hashes
    state.parent[blocks[0]] = event.parent
    state.parent[blocks[1:]] = event.hashes[:-1]
    state.has_parent[blocks] = 1
    state.has_parent[blocks[0]] = event.has_parent
    state.depth[blocks] = UNKNOWN_DEPTH if event.depth < 0 else np.arange(event.depth, event.depth + len(blocks))
    state.fill[blocks] = event.tokens
    state.gen[blocks] += 1
    state.last_use[blocks] = state.step
    state.inserted[blocks] = np.arange(state.insert_stamp, state.insert_stamp + len(blocks))
    state.insert_stamp += len(blocks)
    state.num_cached_free += len(blocks)
    state.num_stored += len(blocks)


def _removed(state: StreamState, event: ev.StreamRemoved) -> None:
    known = event.blocks[event.blocks >= 0]
    _drop(state, known)
    state.num_removed += len(known)
    state.num_unmatched += len(event.blocks) - len(known)


def _cleared(state: StreamState, event: ev.StreamCleared) -> None:
    _drop(state, event.blocks)
    state.num_cleared += len(event.blocks)


def _drop(state: StreamState, blocks: I32) -> None:
    state.place[blocks] = -1
    state.content[blocks] = 0
    state.parent[blocks] = 0
    state.has_parent[blocks] = 0
    state.depth[blocks] = UNKNOWN_DEPTH
    state.fill[blocks] = 0
    state.free.push_back(blocks)
    state.num_cached_free -= len(blocks)


def _gap(state: StreamState, event: ev.StreamGap) -> None:
    state.num_gaps += 1
    state.num_missing += event.missing


def _unknown(state: StreamState, _event: ev.StreamUnknown) -> None:
    state.num_unknown += 1


def _batch_ended(state: StreamState, event: ev.StreamBatchEnded) -> None:
    state.step += 1
    state.time_us = event.time_us
    state.sequence = event.sequence


APPLY_STREAM: dict[type[ev.Event], Callable[[Any, Any], None]] = {
    ev.StreamStored: _stored,
    ev.StreamRemoved: _removed,
    ev.StreamCleared: _cleared,
    ev.StreamGap: _gap,
    ev.StreamUnknown: _unknown,
    ev.StreamBatchEnded: _batch_ended,
}
"""What `core.apply` does with the events of a stream."""


def check_stream(state: StreamState) -> list[str]:
    """What is wrong with the state, nothing when all is well: counters, the order of unused numbers, prefixes."""
    found = []
    cached = state.place >= 0
    number = int(cached.sum())
    if number != state.num_cached_free:
        found.append(f"{number} blocks are cached, the counter says {state.num_cached_free}")
    if not np.array_equal(state.free.pos == NOWHERE, cached) or state.free.size != state.num_blocks - number:
        found.append("the unused numbers are not those of the blocks that are not cached")
    if number != state.num_stored - state.num_removed - state.num_cleared:
        found.append("stored less removed and cleared is not what is cached")
    begins = cached & (state.has_parent == 0)
    if (state.depth[begins] != 0).any():
        found.append("a block without one before it is not the first of its prompt")
    return found


class StreamChecker:
    """Checks after every batch that its counts are those of the state, and the whole state now and then. A sink."""

    def __init__(self, state: StreamState, full_every: int = FULL_EVERY) -> None:
        self._state, self._full_every = state, full_every
        self._cached = 0  # a second count, kept from the events alone
        self.num_checked = 0
        self.violations: list[Violation] = []

    def add(self, step: int, event: ev.Event) -> None:
        """Take the next event, which was just applied."""
        if isinstance(event, ev.StreamStored):
            self._cached += len(event.blocks)
        elif isinstance(event, ev.StreamRemoved):
            self._cached -= int((event.blocks >= 0).sum())
        elif isinstance(event, ev.StreamCleared):
            self._cached -= len(event.blocks)
        elif isinstance(event, ev.StreamBatchEnded):
            self.num_checked += 1
            counts = (event.cached, self._state.num_cached_free)
            if counts != (self._cached, self._cached):
                message = f"the events leave {self._cached} blocks cached, batch and state say {counts}"
                self.violations.append(Violation(step, "I1", message))
            if self._state.step % self._full_every == 0:
                self.check_now()

    def check_now(self) -> None:
        """Check the whole state."""
        self.num_checked += 1
        self.violations += [Violation(self._state.step, "I1", text) for text in check_stream(self._state)]
