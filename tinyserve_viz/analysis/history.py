"""What a whole recording looks like from far: one row of numbers a step, and marks where something notable happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tinyserve_viz.analysis.closeups import level_spread
from tinyserve_viz.analysis.sentences import hash_name
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.timeline import Timeline

MARKS: dict[type[ev.Event], str] = {
    ev.RequestRejected: "X",
    ev.SequencePreempted: "P",
    ev.CompactionPlanned: "K",
    ev.SequencesForked: "F",
    ev.BlocksCopied: "C",
    ev.BlocksEvicted: "E",
}
STREAM_MARKS: dict[type[ev.Event], str] = {
    ev.StreamGap: "G",
    ev.StreamUnknown: "?",
    ev.StreamCleared: "Z",
    ev.StreamRemoved: "E",
}
"""Where two fall together the earlier one in this order is shown."""

STREAM_MARK_WORDS = {"G": "gap", "?": "unknown event", "Z": "cleared", "E": "evict"}
MARK_WORDS = {"X": "reject", "P": "preempt", "K": "compact", "F": "fork", "C": "copy", "E": "evict"}
MARK_RANK = {mark: rank for rank, mark in enumerate([*[m for m in MARKS.values() if m != "E"], *STREAM_MARKS.values()])}


@dataclass(slots=True)
class History:
    """Columns over the steps read so far, and `marks` as (event index, letter). `add` takes events in order.

    `ends[i]` is the number of events after which step i is complete; `waste` the unfilled share of the used slots;
    `kernel_us` the time of all kernels of the step (0 where none ran). `levels` are (step, blocks at each protection
    level) after every window; they need `state`, an empty one that the events are applied to on the way. Of a KV-event
    stream the steps are batches, with `cached`, `stored` and `removed` blocks, and no column that it does not tell.
    """

    num_events: int = 0
    ends: list[int] = field(default_factory=list)
    time_us: list[int] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    waste: list[float] = field(default_factory=list)
    kernel_us: list[float] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    levels: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    state: CacheState | None = None
    _pending_us: float = 0.0

    def add(self, event: ev.Event) -> None:
        """Take the next event."""
        index = self.num_events
        if self.state is not None:
            apply(self.state, event)
            if isinstance(event, ev.LevelsAdapted):
                self.levels.append((self.state.step, level_spread(self.state)))
        if isinstance(event, ev.StepEnded):
            self.time_us.append(event.time_us)
            self.used.append(event.used_blocks)
            self.cached.append(event.cached_free_blocks)
            self.running.append(event.num_running)
            self.waiting.append(event.num_waiting)
            self.waste.append(1 - event.resident_tokens / event.used_slots if event.used_slots else 0.0)
            self.kernel_us.append(self._pending_us)
            self._pending_us = 0.0
            self.ends.append(index + 1)
        elif isinstance(event, ev.StreamBatchEnded):
            self.time_us.append(event.time_us)
            self.cached.append(event.cached)
            self.stored.append(event.stored)
            self.removed.append(event.removed + event.cleared)
            self.ends.append(index + 1)
        elif isinstance(event, ev.KernelsTimed):
            self._pending_us += float(event.total_us.sum())
        else:
            mark = MARKS.get(type(event)) or STREAM_MARKS.get(type(event))
            if mark is not None and not (isinstance(event, ev.CompactionPlanned) and not len(event.src)):
                self.marks.append((index, mark))
        self.num_events = index + 1

    def steps_before(self, step: int, count: int) -> slice:
        """The last `count` complete steps before `step`, as far as they are read."""
        stop = min(step, len(self.ends))
        return slice(max(0, stop - count), stop)


def strip_of_marks(marks: list[tuple[int, str]], num_events: int, width: int) -> str:
    """`marks` on a line of `width` places for `num_events` events; where they meet the weightier letter stands."""
    cells = [" "] * width
    for index, mark in marks:
        place = min(width - 1, index * width // max(1, num_events))
        if cells[place] == " " or MARK_RANK[mark] < MARK_RANK[cells[place]]:
            cells[place] = mark
    return "".join(cells)


_LIFE_LOOKS_BACK = 4000  # events; decoding them takes some 60 ms


def life_of_block(timeline: Timeline, block: int, position: int) -> list[str]:
    """What happened to `block` in the events before `position`, newest first, as far back as is read quickly."""
    first = max(0, position - _LIFE_LOOKS_BACK)
    name = timeline.header.workload.seq_name
    found = []
    for number, (step, event) in enumerate(timeline.events(first, position), first + 1):
        found += [f"step {step}, event {number:,}: {words}" for words in about_block(event, block, name)]
    found.reverse()
    return found


def about_block(event: ev.Event, block: int, name: Callable[[int], str]) -> list[str]:
    """What `event` did with `block`, in words; `name` says how a sequence is called."""
    match event:
        case ev.SequenceAdmitted() if block in event.hits:
            return [f"shared with {name(event.seq)}: a prefix hit for its logical {_place(event.hits, block)}"]
        case ev.BlocksAllocated() if block in event.blocks:
            place = _place(event.blocks, block)
            columns = (event.seqs.tolist(), event.first_logical.tolist(), event.counts.tolist())
            for seq, start, number in zip(*columns, strict=True):
                if place < number:
                    return [f"allocated to {name(seq)} as logical {start + place}"]
                place -= number
        case ev.BlocksCopied():
            rows = list(zip(event.seqs.tolist(), event.src.tolist(), event.dst.tolist(), event.tokens, strict=True))
            left = [f"left by {name(seq)}, which copied it to block {dst}" for seq, src, dst, _ in rows if src == block]
            return left + [
                f"allocated to {name(seq)}: a copy of {tokens} tokens of block {src}"
                for seq, src, dst, tokens in rows
                if dst == block
            ]
        case ev.BlocksCached() if block in event.blocks:
            return [f"entered the prefix index as content #{event.hashes[_place(event.blocks, block)]}"]
        case ev.BlocksFreed() if block in event.blocks:
            ends = np.cumsum(event.counts)
            places = np.flatnonzero(event.blocks == block)
            seqs = event.seqs[np.searchsorted(ends, places, side="right")].tolist()
            return [f"dropped by {', '.join(map(name, seqs))}"]
        case ev.BlocksEvicted() if block in event.blocks:
            return [f"evicted by {event.rule}, number {_place(event.blocks, block) + 1} of {len(event.blocks)}"]
        case ev.StreamStored() if block in event.blocks:
            return [f"our number for hash {hash_name(int(event.hashes[_place(event.blocks, block)]))}, just stored"]
        case ev.StreamRemoved() if block in event.blocks:
            return [f"hash {hash_name(int(event.hashes[_place(event.blocks, block)]))} evicted"]
        case ev.StreamCleared() if block in event.blocks:
            return ["cleared with the whole cache"]
        case ev.CompactionPlanned() if block in event.src:
            return [f"moved to block {event.dst[_place(event.src, block)]} by compaction"]
        case ev.CompactionPlanned() if block in event.dst:
            return [f"filled with block {event.src[_place(event.dst, block)]} by compaction"]
        case _:
            pass
    return []


def _place(blocks: ev.I32, block: int) -> int:
    return int(np.flatnonzero(blocks == block)[0])
