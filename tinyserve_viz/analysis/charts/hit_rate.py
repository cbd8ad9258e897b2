"""Prefix-cache hit rate over time: of all prompt tokens so far, and of the latest admissions."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series, thinned
from tinyserve_viz.analysis.charts.memory import TIME
from tinyserve_viz.analysis.charts.source import NothingToPlot, RunSource

KIND = "hit-rate"
SUMMARY = "prefix-cache token hit rate over time, so far and in a window of admissions"


def draw(source: RunSource) -> Chart:
    """The chart of a recording.

    Raises:
        NothingToPlot: no prompt token was ever admitted, or the allocator has no prefix cache.
    """
    steps, _, tokens = source.admissions
    first = tokens.sum(axis=1) > 0  # a re-admission moves tokens between classes and adds none
    if not first.any():
        raise NothingToPlot(f"{source.name}: nothing was admitted to a prefix cache")
    time, hits, total = source.time_of(steps), tokens[:, 0], tokens.sum(axis=1)
    window = max(5, min(100, int(first.sum()) // 10))
    so_far = 100 * np.cumsum(hits) / np.maximum(1, np.cumsum(total))
    hit_first, total_first = hits[first].astype(np.float64), total[first].astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(hit_first)]), np.concatenate([[0.0], np.cumsum(total_first)])
    ends = np.arange(1, len(hit_first) + 1)
    starts = np.maximum(0, ends - window)
    latest = 100 * (sums[0][ends] - sums[0][starts]) / (sums[1][ends] - sums[1][starts])
    width, (time_all, so_far) = thinned(time, so_far)
    _, (time_first, latest) = thinned(time[first], latest)
    rate = 100 * int(hits.sum()) / int(total.sum())
    lines = (
        series(f"of the latest {window} admissions", "hold", time_first, latest, 1),
        series("of all prompt tokens so far", "hold", time_all, so_far, 5),
    )
    panel = Panel(
        f"{int(hits.sum()):,} of {int(total.sum()):,} prompt tokens hit ({rate:.2f} %)",
        TIME,
        Axis("token hit rate", "%", limits=(0, 100)),
        lines,
    )
    mean = () if width == 1 else (f"each point is the mean of {width:,} admissions",)
    return Chart(KIND, "Prefix-cache hit rate over time", (panel,), (*source.caption(), *mean))
