"""Frames of a recording at any position: a frame depends on its position alone, so a step back shows what was there.

States on the way are kept (`_KEEP_BYTES` of them), so a step back copies a near one and goes forwards from there; where
none is near, `Timeline.seek` starts from a snapshot in the file.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from tinyserve_viz.analysis.frame import Frame, Said
from tinyserve_viz.analysis.framing import Wanted, build_frame
from tinyserve_viz.analysis.inspection import Inspector
from tinyserve_viz.analysis.sentences import sentence
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.apply import apply
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.recording.timeline import Timeline

_SAID = 16  # events that a frame has in words
_LOOK_BACK = 160  # events among which the last kernels and selections are looked for
_GRID = 16  # events between kept states: applying so many takes about a millisecond
_NEAR = 1024  # events; going forwards so far is cheaper than reading a snapshot
_KEEP_BYTES = 96 << 20
_PLAINLY = Wanted()


class Player:
    """Builds frames of `timeline`, which may still be growing; `inspector` works out what the events do not hold."""

    def __init__(self, timeline: Timeline, inspector: Inspector | None = None) -> None:
        self.timeline, self._inspector = timeline, inspector
        self._kept: OrderedDict[int, CacheState] = OrderedDict()
        self._state_bytes = 0

    @property
    def num_events(self) -> int:
        """Events known so far."""
        return self.timeline.num_events

    def frame(self, position: int, wanted: Wanted = _PLAINLY) -> Frame:
        """The frame after the first `position` events, clamped to what there is, with what is wanted of it."""
        timeline = self.timeline
        position = max(0, min(position, timeline.num_events))
        recent = list(timeline.events(max(0, position - _LOOK_BACK), position))
        last_steps = _of_last_steps(recent)
        back = _to_selection(last_steps, wanted.layer)
        first = max(0, position - max(_SAID, back))
        state = self._state_at(first)
        said, selected, compacted = [], None, None
        for index, (step, event) in enumerate(recent[len(recent) - (position - first) :], first):
            if index >= position - _SAID:
                said.append(Said(index, step, type(event).__name__, sentence(event, state)))
            if index == position - back and isinstance(event, ev.BlocksSelected):
                selected = step, event, state.ctx[event.seqs]
            if index == position - 1 and isinstance(event, ev.CompactionPlanned) and len(event.src):
                compacted = state.copy()
            apply(state, event)
        return build_frame(
            timeline.header,
            state,
            position,
            timeline.num_events,
            timeline.complete,
            last_steps,
            said,
            wanted,
            selected,
            self._inspector,
            compacted,
        )

    def _state_at(self, position: int) -> CacheState:
        """A state of its own after the first `position` events."""
        near = max((kept for kept in self._kept if kept <= position), default=-1)
        if near < 0 or position - near > _NEAR:
            near = position - position % _GRID
            self._keep(near, self.timeline.seek(near))
        self._kept.move_to_end(near)
        state = self._kept[near].copy()
        while near < position:
            stop = min(position, near + _GRID - near % _GRID)
            self.timeline.advance(state, near, stop)
            near = stop
            if near % _GRID == 0 and position - near < 4 * _GRID and near not in self._kept:
                self._keep(near, state.copy())
        return state

    def _keep(self, position: int, state: CacheState) -> None:
        self._kept[position] = state
        size = max(1, _bytes_of(state))
        while len(self._kept) > max(4, _KEEP_BYTES // size):
            self._kept.popitem(last=False)

    # Positions -----------------------------------------------------------------------------------------------------

    def step_before(self, position: int) -> int:
        """The nearest position before `position` at which a step begins."""
        if position <= 0:
            return 0
        return self.timeline.first_event_of_step(self.timeline.step_of(position - 1))

    def steps_after(self, position: int, steps: int) -> int:
        """Where the `steps`-th step after `position` begins, or the end."""
        if position >= self.num_events:
            return self.num_events
        return self.timeline.first_event_of_step(self.timeline.step_of(position) + steps)


def _of_last_steps(recent: list[tuple[int, ev.Event]]) -> list[tuple[int, ev.Event]]:
    """Those of the last step and the one before it: what a frame may show as the latest kernels and selection."""
    if not recent:
        return recent
    last = recent[-1][0]
    return [(step, event) for step, event in recent if step >= last - 1]


def _to_selection(recent: list[tuple[int, ev.Event]], layer: int) -> int:
    """How many events ago `layer` last selected, 0 where it did not."""
    for back, (_, event) in enumerate(reversed(recent), 1):
        if isinstance(event, ev.BlocksSelected) and event.layer == layer:
            return back
    return 0


def _bytes_of(state: CacheState) -> int:
    arrays = (getattr(state, name) for name in state.names())
    size = sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))
    return size + 2 * (state.free.ring.nbytes + state.free.pos.nbytes)
