"""A recorded KV-event stream over the server's time: blocks cached, and what each batch stored and evicted."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, Series, series, thinned, thinning_note
from tinyserve_viz.core import events as ev
from tinyserve_viz.recording.timeline import Timeline

KIND = "occupancy"
SUMMARY = "of a KV-event stream: cached blocks over time with gaps marked, blocks stored and evicted by each batch"

TIME = Axis("server's clock since the first batch", "s")


class StreamSource:
    """The batches of a recorded stream as columns, and when gaps were found."""

    def __init__(self, timeline: Timeline) -> None:
        self.header, self.name, self.digest = timeline.header, timeline.path.name, timeline.digest
        ended = [event for _, _, event in timeline.events_of_kind(ev.StreamBatchEnded)]
        rows = [(e.time_us, e.cached, e.stored, e.removed + e.cleared) for e in ended]  # type: ignore[attr-defined]
        columns = np.array(rows, dtype=np.float64).reshape(-1, 4)
        self.seconds = columns[:, 0] / 1e6
        self.cached, self.stored, self.evicted = columns[:, 1], columns[:, 2], columns[:, 3]
        self.gaps = self._times(timeline, ev.StreamGap)
        self.unknown = self._times(timeline, ev.StreamUnknown)

    def _times(self, timeline: Timeline, kind: type[ev.Event]) -> list[float]:
        steps = [step for _, step, _ in timeline.events_of_kind(kind)]
        return [float(self.seconds[min(step, len(self.seconds) - 1)]) for step in steps if len(self.seconds)]


def draw(source: StreamSource) -> Chart:
    """The chart of a recorded stream."""
    width, (time, cached, stored, evicted) = thinned(source.seconds, source.cached, source.stored, source.evicted)
    marks: list[Series] = []
    for name, times, color in (("gap", source.gaps, 6), ("event of unknown type", source.unknown, 7)):
        if times:
            marks.append(series(f"{name} ({len(times):,})", "marks", np.unique(times), [len(marks)], color))
    stream = source.header.stream or {}
    pool = [series("pool, as given", "level", [], [source.header.engine.num_blocks], 8)] if stream["given"] else []
    blocks = Panel(
        f"prefix cache (at most {int(source.cached.max(initial=0)):,} blocks)",
        TIME,
        Axis("cached", "blocks"),
        (series("cached", "hold", time, cached, 5), *pool, *marks),
    )
    changes = Panel(
        "what a batch changed",
        TIME,
        Axis("blocks", "a batch"),
        (
            series("stored", "step", time, stored, 5),
            series("evicted or cleared", "step", time, evicted, 6, dashed=True),
        ),
    )
    caption = (
        f"◐ {source.name}: KV-event stream {source.header.origin['trace']['name']}, {len(source.seconds):,} batches",
        "requests, block ids, references and hits are not in such a stream",
        f"tinyserve-viz {source.header.origin['tool']}, digest {(source.digest or 'incomplete')[:12]}",
        *thinning_note(width, "batches"),
    )
    return Chart(KIND, "What a server's prefix cache held", (blocks, changes), caption)
