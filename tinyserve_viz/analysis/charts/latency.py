"""Latencies of the sequences in simulated time, as cumulative distributions with their percentiles."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.analysis.charts.source import NothingToPlot, RunSource

KIND = "latency"
SUMMARY = "distributions of TTFT, TPOT and E2E in simulated time, with p50, p90, p99"

_KINDS = (
    ("ttft", "TTFT: arrival to the end of prefill", "s", 1e6, 5),
    ("tpot", "TPOT: time per token after that", "ms", 1e3, 3),
    ("e2e", "E2E: arrival to the last token", "s", 1e6, 6),
)
PERCENTILES = (50, 90, 99)
_POINTS = 600


def draw(source: RunSource) -> Chart:
    """The chart of a recording.

    Raises:
        NothingToPlot: no sequence finished.
    """
    panels = []
    for key, title, unit, scale, color in _KINDS:
        values = np.sort(source.latencies_us[key][~np.isnan(source.latencies_us[key])]) / scale
        if not len(values):
            continue
        marks = np.percentile(values, PERCENTILES, method="inverted_cdf")
        shares = 100 * np.arange(1, len(values) + 1) / len(values)
        chosen = np.unique(np.linspace(0, len(values) - 1, _POINTS).astype(np.int64))
        words = ", ".join(f"p{p} {mark:,.4g}" for p, mark in zip(PERCENTILES, marks, strict=True))
        lines = (
            series(f"{len(values):,} sequences", "hold", values[chosen], shares[chosen], color),
            series(f"{words} {unit}", "points", marks, PERCENTILES, 0),
        )
        panels.append(Panel(title, Axis(key.upper(), unit), Axis("sequences", "% at or below", limits=(0, 101)), lines))
    if not panels:
        raise NothingToPlot(f"{source.name}: no sequence finished in it")
    caption = (*source.caption(), "percentile: the smallest value with at least that share at or below")
    return Chart(KIND, "Latency in simulated time", tuple(panels), caption)
