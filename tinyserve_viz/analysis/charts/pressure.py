"""Memory pressure: preemptions, evicted blocks, copies on write and compaction moves, added up over time."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, Series, series
from tinyserve_viz.analysis.charts.memory import TIME
from tinyserve_viz.analysis.charts.source import NothingToPlot, RunSource
from tinyserve_viz.core import events as ev

KIND = "pressure"
SUMMARY = "preemptions, evictions, rejections, copies on write and compaction moves, added up over time"

_MOST = 1200
_BLOCKS: tuple[tuple[type[ev.Event], str, str, int], ...] = (
    (ev.BlocksEvicted, "evicted", "blocks", 1),
    (ev.BlocksCopied, "copied on write", "dst", 5),
    (ev.CompactionPlanned, "moved by compaction", "src", 3),
)
_ONES: tuple[tuple[type[ev.Event], str, int], ...] = (
    (ev.SequencePreempted, "preemptions", 6),
    (ev.RequestRejected, "rejections", 7),
    (ev.RequestCancelled, "cancellations", 2),
)


def _added_up(source: RunSource, name: str, rows: list[tuple[int, int]], color: int) -> Series | None:
    total = sum(number for _, number in rows)
    if not total:
        return None
    time = source.time_of([step for step, _ in rows])
    sums = np.cumsum([number for _, number in rows])
    if len(time) > _MOST:
        chosen = np.linspace(0, len(time) - 1, _MOST).astype(np.int64)
        time, sums = time[chosen], sums[chosen]
    start, end = min(0.0, float(time[0])), float(source.seconds[-1])
    return series(
        f"{name}: {total:,}",
        "hold",
        np.concatenate([[start], time, [end]]),
        np.concatenate([[0], sums, [total]]),
        color,
    )


def draw(source: RunSource) -> Chart:
    """The chart of a recording.

    Raises:
        NothingToPlot: none of it happened.
    """
    blocks = [
        _added_up(source, name, source.sizes_of(kind, array), color) for kind, name, array, color in _BLOCKS
    ]
    ones = [
        _added_up(source, name, [(step, 1) for step in source.timeline.steps_of_kind(kind)], color)
        for kind, name, color in _ONES
    ]
    panels = []
    for title, label, found in (("blocks", "blocks so far", blocks), ("requests", "events so far", ones)):
        lines = tuple(line for line in found if line is not None)
        if lines:
            panels.append(Panel(title, TIME, Axis(label), lines))
    if not panels:
        raise NothingToPlot(f"{source.name}: no preemption, eviction, rejection, copy or compaction in it")
    return Chart(KIND, "Memory pressure, added up over time", tuple(panels), source.caption())
