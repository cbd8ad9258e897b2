"""Who runs and who waits over time, with marks where requests were preempted, rejected or lost cached blocks."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, Series, series, thinned, thinning_note
from tinyserve_viz.analysis.charts.memory import TIME
from tinyserve_viz.analysis.charts.source import RunSource
from tinyserve_viz.core import events as ev

KIND = "queue"
SUMMARY = "running and waiting sequences over time, with preemptions, evictions and rejections marked"

MARKED: tuple[tuple[type[ev.Event], str, int], ...] = (
    (ev.SequencePreempted, "preemption", 6),
    (ev.BlocksEvicted, "eviction", 3),
    (ev.RequestRejected, "rejection", 7),
)
_PLACES = 1200  # along the axis; marks that fall together are one


def marks(source: RunSource) -> tuple[Series, ...]:
    """One row of ticks for each kind of event that happened."""
    found: list[Series] = []
    for kind, name, color in MARKED:
        steps = source.timeline.steps_of_kind(kind)
        if steps:
            places = np.round(source.time_of(steps) * (_PLACES / max(source.seconds[-1], 1e-9)))
            times = np.unique(places) * (source.seconds[-1] / _PLACES)
            found.append(series(f"{name} ({len(steps):,} events)", "marks", times, [len(found)], color))
    return tuple(found)


def queue_panel(source: RunSource) -> tuple[int, Panel]:
    """Running and waiting sequences with the marks; and how many steps a point sums up."""
    seconds, steps = source.course
    width, (time, running, waiting) = thinned(seconds, steps["num_running"], steps["num_waiting"])
    lines = (series("running", "step", time, running, 5), series("waiting", "step", time, waiting, 6, dashed=True))
    return width, Panel("sequences", TIME, Axis("sequences"), (*lines, *marks(source)))


def work_panel(source: RunSource) -> Panel:
    """Tokens that every step computed."""
    seconds, steps = source.course
    _, (time, prefill, decode) = thinned(seconds, steps["num_prefill_tokens"], steps["num_decoding"])
    areas = (series("decode", "area", time, decode, 5), series("prefill", "area", time, prefill, 1))
    return Panel("tokens computed in a step", TIME, Axis("tokens a step"), areas)


def draw(source: RunSource) -> Chart:
    """The chart of a recording."""
    width, panel = queue_panel(source)
    title = "Running and waiting sequences"
    return Chart(KIND, title, (panel, work_panel(source)), (*source.caption(), *thinning_note(width)))
