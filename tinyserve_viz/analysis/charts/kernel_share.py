"""What share of all kernel time each kernel took."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.analysis.charts.kernel_time import title_of
from tinyserve_viz.analysis.charts.source import RunSource, provenance_of

KIND = "kernel-share"
SUMMARY = "share of each kernel in all kernel time"


def draw(source: RunSource) -> Chart:
    """The chart of a recording."""
    names, spent, calls, _, provenance = source.kernels
    totals, number = spent.sum(axis=0), calls.sum(axis=0)
    order = np.argsort(-totals, kind="stable")
    shares = 100 * totals[order] / max(totals.sum(), 1e-12)
    words = tuple(
        f"{names[i]} – {share:.1f} %, {int(number[i]):,} calls" for i, share in zip(order.tolist(), shares, strict=True)
    )
    bars = (series("share", "bars", shares, np.arange(len(words)), 5),)
    panel = Panel(
        f"{totals.sum() / 1e3:,.1f} ms in {int(number.sum()):,} calls",
        Axis("share of the time of all kernels", "%"),
        Axis("", categories=words),
        bars,
    )
    title = title_of("Share of each kernel", provenance)
    return Chart(KIND, title, (panel,), source.caption(provenance_of(provenance)))
