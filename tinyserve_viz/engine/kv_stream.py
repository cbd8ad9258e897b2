"""A KV-event stream as events of ours: block lives by hash with copies counted, gaps and all that is not understood.

The stream is read twice: once for what a recording's header says (how many blocks at most, of which size, where), once
for its events. Nothing here remembers more than the blocks that are in the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.errors import TraceError
from tinyserve_viz.core.events import I64
from tinyserve_viz.core.stream import UNKNOWN_DEPTH, StreamState
from tinyserve_viz.trace.kv_events import Batch, Cleared, Place, Removed, Stored, StreamEvent, UnknownEvent

Sink = Callable[[int, ev.Event], None]


@dataclass(slots=True)
class Survey:
    """What the first reading found: `num_batches`, the most blocks cached at once, the largest block, every place."""

    num_batches: int = 0
    peak: int = 0
    block_size: int = 1
    first_time_s: float = 0.0
    rank: int | None = None
    places: list[Place] = field(default_factory=list)


def survey(path: str, batches: Iterable[Batch]) -> Survey:
    """Read a stream for the first time; `path` is for errors.

    Raises:
        TraceError: it has no batch, mixes ranks, or its sequence numbers do not grow.
    """
    found = Survey()
    copies: dict[tuple[Place, int], int] = {}
    cached, last = 0, -1
    for batch in batches:
        if not found.num_batches:
            found.first_time_s, found.rank = batch.time_s, batch.rank
        _check_order(batch, found, last)
        last = batch.sequence
        found.num_batches += 1
        for event in batch.events:
            if isinstance(event, Cleared):
                copies.clear()
                cached = 0
            elif isinstance(event, Stored | Removed):
                if event.place not in found.places:
                    found.places.append(event.place)
                change = 1 if isinstance(event, Stored) else -1
                for content in event.hashes.tolist():
                    number = copies.get((event.place, content), 0) + change
                    if number < 0:
                        continue
                    cached += change
                    if number:
                        copies[event.place, content] = number
                    else:
                        del copies[event.place, content]
                if isinstance(event, Stored):
                    found.block_size = max(found.block_size, event.block_size)
                    found.peak = max(found.peak, cached)
    if not found.num_batches:
        raise TraceError(f"{path}: has no batch, expected a KV-event stream")
    return found


def _check_order(batch: Batch, found: Survey, last: int) -> None:
    if batch.sequence <= last:
        raise TraceError(
            f"{batch.where}: sequence number {batch.sequence:,} after {last:,}, expected {last + 1:,} or more "
            "(a server that was restarted begins again: split the file there)"
        )
    if batch.rank != found.rank:
        raise TraceError(
            f"{batch.where}: data_parallel_rank is {batch.rank}, expected {found.rank}: "
            "each rank has a cache of its own; split the file by rank"
        )


class StreamReplay:
    """Turns batches, in order, into events of `state`; every event goes to the sink after it was applied.

    `_blocks` says which of our numbers hold a content, oldest first: an index over the state, made from events alone.
    """

    def __init__(self, state: StreamState, found: Survey, sink: Sink) -> None:
        self._state, self._found, self._sink = state, found, sink
        self._blocks: dict[tuple[int, int], deque[int]] = {}
        self._counts = [0, 0, 0, 0]  # stored, removed, unmatched, cleared in this batch

    def add(self, batch: Batch) -> None:
        """Take the next batch."""
        state = self._state
        self._counts = [0, 0, 0, 0]
        expected = state.sequence + 1
        if batch.sequence > expected:
            self._emit(ev.StreamGap(expected, batch.sequence - expected))
        for place, told in groupby(batch.events, key=lambda event: event.place if isinstance(event, Removed) else None):
            if place is not None:  # servers tell removals one by one: those in a row are one event
                self._remove(place, [event.hashes for event in told if isinstance(event, Removed)])
                continue
            self._take(batch, told)
        stored, removed, unmatched, cleared = self._counts
        self._emit(
            ev.StreamBatchEnded(
                sequence=batch.sequence,
                time_us=round((batch.time_s - self._found.first_time_s) * 1e6),
                stored=stored,
                removed=removed,
                unmatched=unmatched,
                cleared=cleared,
                cached=state.num_cached_free,
            )
        )

    def _take(self, batch: Batch, events: Iterable[StreamEvent]) -> None:
        for event in events:
            if isinstance(event, Stored):
                self._store(batch, event)
            elif isinstance(event, Cleared):
                self._clear()
            elif isinstance(event, UnknownEvent):
                self._emit(ev.StreamUnknown(event.name))

    def _emit(self, event: ev.Event) -> None:
        step = self._state.step
        apply(self._state, event)
        self._sink(step, event)

    def _store(self, batch: Batch, event: Stored) -> None:
        state, place = self._state, self._found.places.index(event.place)
        count = len(event.hashes)
        if not count:
            return
        if state.free.size < count:
            raise TraceError(
                f"{batch.where}: {state.num_cached_free + count:,} blocks are in the cache, "
                f"expected at most {state.num_blocks:,} (--num-blocks)"
            )
        blocks = state.free.front(count)
        depth = UNKNOWN_DEPTH
        if event.parent is None:
            depth = 0
        elif before := self._blocks.get((place, event.parent)):
            known = int(state.depth[before[0]])
            depth = known + 1 if known >= 0 else UNKNOWN_DEPTH
        self._emit(
            ev.StreamStored(
                place=place,
                blocks=blocks,
                hashes=event.hashes,
                parent=event.parent or 0,
                has_parent=int(event.parent is not None),
                depth=depth,
                tokens=event.block_size,
            )
        )
        for content, block in zip(event.hashes.tolist(), blocks.tolist(), strict=True):
            self._blocks.setdefault((place, content), deque()).append(block)
        self._counts[0] += count

    def _remove(self, where: Place, told: list[I64]) -> None:
        hashes = told[0] if len(told) == 1 else np.concatenate(told)
        if not len(hashes):
            return
        place = self._found.places.index(where)
        blocks = []
        for content in hashes.tolist():
            holding = self._blocks.get((place, content))
            blocks.append(holding.popleft() if holding else -1)
            if holding is not None and not holding:
                del self._blocks[place, content]
        self._emit(ev.StreamRemoved(place, np.array(blocks, dtype=np.int32), hashes, len(told)))
        unmatched = blocks.count(-1)
        self._counts[1] += len(blocks) - unmatched
        self._counts[2] += unmatched

    def _clear(self) -> None:
        blocks = np.flatnonzero(self._state.place >= 0).astype(np.int32)
        self._emit(ev.StreamCleared(blocks))
        self._blocks.clear()
        self._counts[3] += len(blocks)


def first_of(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The first `count` batches: a file that grows while it is read ends where the first reading ended."""
    for _, batch in zip(range(count), batches, strict=False):
        yield batch
