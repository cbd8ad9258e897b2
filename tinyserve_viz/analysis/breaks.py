"""Breakpoints: conditions on events at which a debugger stops, and the search for the next event that meets one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tinyserve_viz.analysis.history import about_block
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.recording.timeline import Timeline

KINDS: dict[str, type[ev.Event]] = {
    "preempt": ev.SequencePreempted,
    "evict": ev.BlocksEvicted,
    "copy": ev.BlocksCopied,
    "compact": ev.CompactionPlanned,
    "reject": ev.RequestRejected,
    "cancel": ev.RequestCancelled,
    "fork": ev.SequencesForked,
    "admit": ev.SequenceAdmitted,
    "finish": ev.SequencesFinished,
}
_OF_BLOCKS = (
    ev.SequenceAdmitted,
    ev.BlocksEvicted,
    ev.BlocksAllocated,
    ev.BlocksCopied,
    ev.BlocksCached,
    ev.BlocksFreed,
    ev.CompactionPlanned,
)
_OF_SEQS = (
    ev.RequestsArrived,
    ev.RequestRejected,
    ev.RequestCancelled,
    ev.SequenceAdmitted,
    ev.SequencePreempted,
    ev.SequenceSeated,
    ev.BlocksAllocated,
    ev.BlocksCopied,
    ev.BlocksFreed,
    ev.SequencesForked,
    ev.SequencesFinished,
    ev.RangeReserved,
    ev.RangesFreed,
)
_CHUNK = 4000  # rows of events between two breaths of a search


@dataclass(frozen=True, slots=True)
class Break:
    """`what` is a word of `KINDS`, or `block`, `seq` or `step` with the number that it is about."""

    what: str
    number: int = -1

    def types(self) -> tuple[type[ev.Event], ...]:
        """Types of the events that can meet it."""
        if self.what == "step":
            return ()
        return _OF_BLOCKS if self.what == "block" else _OF_SEQS if self.what == "seq" else (KINDS[self.what],)

    def met_by(self, event: ev.Event, workload: Workload) -> bool:
        """Whether `event` is one to stop at; a step is no event and is never met."""
        if not isinstance(event, self.types()):
            return False
        if self.what == "block":
            return bool(about_block(event, self.number, str))
        if self.what == "seq":
            return self.number in _seqs_of(event, workload)
        return not isinstance(event, ev.CompactionPlanned) or len(event.src) > 0

    def words(self, workload: Workload) -> str:
        """As a user writes it: `evict`, `block 12`, `seq r4`, `step 57`."""
        if self.what == "seq":
            return f"seq {workload.seq_name(self.number)}"
        return self.what if self.number < 0 else f"{self.what} {self.number}"


def _seqs_of(event: ev.Event, workload: Workload) -> set[int]:
    """The sequences that an event is about."""
    named: set[int] = set()
    for field in ("seq", "parent", "for_seq"):
        named.add(getattr(event, field, -1))
    for field in ("seqs", "children"):
        named.update(getattr(event, field, ev.EMPTY).tolist())
    requests = getattr(event, "requests", ev.EMPTY).tolist() if isinstance(event, ev.RequestsArrived) else []
    if isinstance(event, ev.RequestRejected | ev.RequestCancelled):
        requests.append(event.request)
    for request in requests:
        named.update(np.flatnonzero(workload.request_of_seq == request).tolist())
    return named


def search(
    timeline: Timeline, breaks: Sequence[Break], start: int, stop: int, backwards: bool = False
) -> Iterator[tuple[int, Break] | None]:
    """Look among the events start … stop − 1 for the first (last) that meets one of `breaks`.

    Yields None between chunks, so that a screen can breathe, and at last (position right after it, the break); it ends
    without one where nothing is found. A step is met at its first event.
    """
    workload = timeline.header.workload
    found: tuple[int, Break] | None = None
    for at in breaks:
        if at.what == "step":
            first = timeline.first_event_of_step(at.number)
            place = first + 1
            inside = start < place <= stop and timeline.step_of(first) == at.number
            if inside and (found is None or (place > found[0]) == backwards):
                found = place, at
    if found is not None:
        start, stop = (found[0], stop) if backwards else (start, found[0])
    types = tuple({kind for at in breaks for kind in at.types()})
    bounds = [(low, min(stop, low + _CHUNK)) for low in range(start, stop, _CHUNK)] if types else []
    for low, high in reversed(bounds) if backwards else bounds:
        met = None
        for index, _, event in timeline.events_of_kinds(types, low, high):
            reason = next((at for at in breaks if at.met_by(event, workload)), None)
            if reason is not None:
                met = index + 1, reason
                if not backwards:
                    break
        if met is not None:
            yield met
            return
        yield None
    if found is not None:
        yield found
