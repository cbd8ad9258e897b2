"""Two replays of one trace under different settings: the first decision that differs, with both reasons in words.

Compared is what was decided: who was admitted, preempted, written, which blocks were allocated, evicted, copied, freed,
selected and moved, and in which step. The name of the policy, the keys that it ranked by and who would have been next
are its reasons, not its decision, so LRU and FIFO that evict the same block have decided the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.analysis.sentences import sentence
from tinyserve_viz.core import events as ev
from tinyserve_viz.recording.codec import encode_value
from tinyserve_viz.recording.timeline import Timeline

DECIDED: dict[type[ev.Event], tuple[str, ...]] = {
    ev.RequestRejected: ("request",),
    ev.RequestCancelled: ("request",),
    ev.SequenceAdmitted: ("seq", "hits"),
    ev.SequencePreempted: ("seq",),
    ev.BlocksEvicted: ("blocks",),
    ev.BlocksAllocated: ("seqs", "first_logical", "blocks"),
    ev.BlocksCopied: ("seqs", "logical", "src", "dst"),
    ev.TokensWritten: ("decode_seqs", "prefill_seqs", "prefill_counts"),
    ev.SequencesForked: ("parent", "children", "num_tokens", "running"),
    ev.SequenceSeated: ("seq",),
    ev.BlocksFreed: ("seqs", "blocks"),
    ev.SequencesFinished: ("seqs",),
    ev.RangeReserved: ("seq", "start", "length"),
    ev.RangesFreed: ("seqs",),
    ev.BlocksSelected: ("layer", "seqs", "num_heads", "counts", "selected"),
    ev.LevelsAdapted: ("blocks", "levels"),
    ev.CompactionPlanned: ("src", "dst"),
}
"""The fields of each event that are the decision; events of other types follow from these, or explain them."""

_KEY_BYTES = 8


class DecisionKeys:
    """A hash of every decision of a replay, 8 bytes each, with the number of its event. `add` is a sink."""

    def __init__(self) -> None:
        self._keys = bytearray()
        self._places: list[int] = []
        self._num_events = 0

    def add(self, step: int, event: ev.Event) -> None:
        """Take the next event."""
        names = DECIDED.get(type(event))
        if names is not None and not _moves_nothing(event):
            values: list[Any] = [step, type(event).__name__, *(getattr(event, name) for name in names)]
            self._keys += hashlib.blake2b(encode_value(values), digest_size=_KEY_BYTES).digest()
            self._places.append(self._num_events)
        self._num_events += 1

    @classmethod
    def of(cls, events: Iterable[tuple[int, ev.Event]]) -> DecisionKeys:
        """The keys of a recording's events."""
        keys = cls()
        for step, event in events:
            keys.add(step, event)
        return keys

    @property
    def keys(self) -> NDArray[np.uint64]:
        """uint64 [number of decisions]."""
        return np.frombuffer(bytes(self._keys), dtype=np.uint64)

    def event_of(self, decision: int) -> int:
        """Number of the event of a decision; one past the last event when the replay made fewer."""
        return self._places[decision] if decision < len(self._places) else self._num_events


def _moves_nothing(event: ev.Event) -> bool:
    """A compaction that was weighed and dropped has decided what a replay without compaction decides."""
    return isinstance(event, ev.CompactionPlanned) and not len(event.src)


def first_difference(ours: DecisionKeys, theirs: DecisionKeys) -> int | None:
    """Number of the first decision that is not the same in both, None when all are."""
    a, b = ours.keys, theirs.keys
    common = min(len(a), len(b))
    different = np.flatnonzero(a[:common] != b[:common])
    if len(different):
        return int(different[0])
    return None if len(a) == len(b) else common


@dataclass(frozen=True, slots=True)
class Decision:
    """One side of a difference; `kind` is the event's type, `text` its sentence."""

    step: int
    index: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class DifferingDecision:
    """`num_same` decisions were the same; then one replay did `ours`, the other `theirs` (None: it was over)."""

    num_same: int
    ours: Decision | None
    theirs: Decision | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        sides = {
            name: None if side is None else {field.name: getattr(side, field.name) for field in fields(side)}
            for name, side in (("ours", self.ours), ("theirs", self.theirs))
        }
        return {"num_same_decisions": self.num_same, **sides}


def explain(num_same: int, ours: Timeline, our_event: int, theirs: Timeline, their_event: int) -> DifferingDecision:
    """Both decisions in words, each made on the state before it."""
    return DifferingDecision(num_same, _decision(ours, our_event), _decision(theirs, their_event))


def compare_recordings(ours: Timeline, theirs: Timeline) -> DifferingDecision | None:
    """The first decision in which two recordings of one trace differ, None when all are the same."""
    keys = [DecisionKeys.of(timeline.events()) for timeline in (ours, theirs)]
    place = first_difference(*keys)
    if place is None:
        return None
    return explain(place, ours, keys[0].event_of(place), theirs, keys[1].event_of(place))


def _decision(timeline: Timeline, index: int) -> Decision | None:
    if index >= timeline.num_events:
        return None
    step, event = timeline.event(index)
    return Decision(step, index, type(event).__name__, sentence(event, timeline.seek(index)))
