"""Fragmentation over time: what is lost inside blocks, how the free blocks are scattered, the span of live ones."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series, thinned
from tinyserve_viz.analysis.charts.memory import TIME
from tinyserve_viz.analysis.charts.source import RunSource

KIND = "fragmentation"
SUMMARY = "internal and external fragmentation, span of the live blocks, runs of free blocks, over time"

_LINEAR_TO = 100  # blocks; runs and the longest run fit one linear axis up to here


def draw(source: RunSource) -> Chart:
    """The chart of a recording."""
    steps, columns = source.fragmentation
    time = source.time_of(steps)
    width, (time, internal, external, ratio, runs, longest) = thinned(time, *columns.values())
    shares = (
        series("internal: unfilled share of used slots", "hold", time, 100 * internal, 5),
        series("external: 1 − longest free run ⁄ free", "hold", time, 100 * external, 6),
    )
    span = (series("(highest used id + 1) ⁄ used", "hold", time, ratio, 7),)
    log = bool(np.nanmax(longest, initial=0) > _LINEAR_TO)
    free = (
        series("runs of free blocks", "hold", time, runs, 2),
        series("longest free run (blocks)", "hold", time, longest, 3, dashed=True),
    )
    looked = f"looked at after {len(steps):,} of {source.num_steps:,} steps"
    mean = () if width == 1 else (f"each point is the mean of {width} of them",)
    return Chart(
        KIND,
        "Fragmentation over time",
        (
            Panel("lost inside blocks, scattered outside", TIME, Axis("share", "%", limits=(0, 100)), shares),
            Panel("span of the used blocks (1 = compact)", TIME, Axis("span", "× used"), span),
            Panel("free blocks", TIME, Axis("number", log=log), free),
        ),
        (*source.caption(), looked, *mean, *(("0 is below a logarithmic axis",) if log else ())),
    )
