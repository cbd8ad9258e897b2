"""The totals of a recorded KV-event stream, summed from its events; what it does not tell is named, not filled."""

from __future__ import annotations

from typing import Any

from tinyserve_viz.core import events as ev
from tinyserve_viz.core.stream import StreamState
from tinyserve_viz.recording.header import Header

UNTOLD = ("requests", "block ids", "references", "hits", "blocks that are not cached", "frees", "preemptions")
_GAPS_LISTED = 20


class StreamMetrics:
    """Sums over all events so far. `add` is a sink."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self._events = {"BlockStored": 0, "BlockRemoved": 0, "AllBlocksCleared": 0}
        self._unknown: dict[str, int] = {}
        self._gaps: list[tuple[int, int]] = []
        self._num_gaps = 0
        self._first_sequence = self._last_sequence = -1
        self._copies: dict[tuple[int, int], int] = {}
        self._most_copies = 0
        self._time_us = self._weighted_us = self._cached = self._cached_before = 0
        self.batches = self.peak = 0

    def add(self, _step: int, event: ev.Event) -> None:
        """Take the next event."""
        match event:
            case ev.StreamStored():
                self._events["BlockStored"] += 1
                for content in event.hashes.tolist():
                    copies = self._copies[event.place, content] = self._copies.get((event.place, content), 0) + 1
                    self._most_copies = max(self._most_copies, copies)
                self._cached += len(event.blocks)
                self.peak = max(self.peak, self._cached)
            case ev.StreamRemoved():
                self._events["BlockRemoved"] += event.told
                for content, block in zip(event.hashes.tolist(), event.blocks.tolist(), strict=True):
                    if block >= 0:
                        self._cached -= 1
                        self._copies[event.place, content] -= 1
                        if not self._copies[event.place, content]:
                            del self._copies[event.place, content]
            case ev.StreamCleared():
                self._events["AllBlocksCleared"] += 1
                self._copies.clear()
                self._cached = 0
            case ev.StreamUnknown():
                self._unknown[event.name] = self._unknown.get(event.name, 0) + 1
            case ev.StreamGap():
                self._num_gaps += 1
                if len(self._gaps) < _GAPS_LISTED:
                    self._gaps.append((event.first, event.missing))
            case ev.StreamBatchEnded():
                if not self.batches:
                    self._first_sequence = event.sequence
                self._weighted_us += self._cached_before * max(0, event.time_us - self._time_us)
                self._cached_before = event.cached
                self._time_us = max(self._time_us, event.time_us)
                self._last_sequence = event.sequence
                self.batches += 1
            case _:
                pass

    def as_dict(self, state: StreamState) -> dict[str, Any]:
        """The sections `stream` and `blocks` of the summary."""
        stream = self._header.stream or {}
        counts = {"BlockStored": state.num_stored, "BlockRemoved": state.num_removed + state.num_unmatched}
        counts["AllBlocksCleared"] = state.num_cleared
        places = [[*place, int((state.place == number).sum())] for number, place in enumerate(stream["places"])]
        given = self._header.engine.num_blocks if stream["given"] else None
        return {
            "stream": {
                "batches": self.batches,
                "first_sequence": self._first_sequence,
                "last_sequence": self._last_sequence,
                "rank": stream["rank"],
                "first_time_s": stream["first_time_s"],
                "duration_s": self._time_us / 1e6,
                "gaps": {
                    "number": self._num_gaps,
                    "missing_batches": state.num_missing,
                    "first": [{"sequence": first, "missing": missing} for first, missing in self._gaps],
                },
                "events": {name: {"events": n, "blocks": counts[name]} for name, n in self._events.items()},
                "unknown_events": self._unknown,
                "untold": list(UNTOLD),
            },
            "blocks": {
                "num_blocks": given,
                "block_size": self._header.engine.block_size,
                "cached": state.num_cached_free,
                "distinct_hashes": len(self._copies),
                "most_copies": self._most_copies,
                "peak_cached": self.peak,
                "mean_cached": self._weighted_us / self._time_us if self._time_us else None,
                "evictions": state.num_removed,
                "removed_but_never_stored": state.num_unmatched,
                "cleared": state.num_cleared,
                "places": [{"medium": medium, "group": group, "cached": number} for medium, group, number in places],
            },
        }
