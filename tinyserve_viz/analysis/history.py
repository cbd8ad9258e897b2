"""What a whole recording looks like from far: one row of numbers a step, and marks where something notable happened."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinyserve_viz.core import events as ev

MARKS: dict[type[ev.Event], str] = {
    ev.RequestRejected: "X",
    ev.SequencePreempted: "P",
    ev.CompactionPlanned: "K",
    ev.SequencesForked: "F",
    ev.BlocksCopied: "C",
    ev.BlocksEvicted: "E",
}
"""Where two fall together the earlier one in this order is shown."""

MARK_WORDS = {"X": "reject", "P": "preempt", "K": "compact", "F": "fork", "C": "copy", "E": "evict"}
MARK_RANK = {mark: rank for rank, mark in enumerate(MARKS.values())}


@dataclass(slots=True)
class History:
    """Columns over the steps read so far, and `marks` as (event index, letter). `add` takes events in order.

    `ends[i]` is the number of events after which step i is complete; `waste` the unfilled share of the used slots;
    `kernel_us` the time of all kernels of the step (0 where none ran).
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
    marks: list[tuple[int, str]] = field(default_factory=list)
    _pending_us: float = 0.0

    def add(self, event: ev.Event) -> None:
        """Take the next event."""
        index = self.num_events
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
        elif isinstance(event, ev.KernelsTimed):
            self._pending_us += float(event.total_us.sum())
        else:
            mark = MARKS.get(type(event))
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
