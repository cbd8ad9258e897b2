"""Why prompt tokens were not found in the prefix cache: every one has exactly one cause."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.analysis.charts.source import NothingToPlot, RunSource
from tinyserve_viz.core.workload import MISS_CAUSES

KIND = "misses"
SUMMARY = "prompt tokens by what became of them: hit, or missed and why"

MEANINGS = {
    "hit": "found",
    "capped": "last prompt token, always recomputed",
    "tail": "in no full block, or no hash known",
    "cold": "block never cached before",
    "orphaned": "block cached, an ancestor not",
    "preempted": "lost by its own preemption",
    "evicted": "cached before, evicted since",
}


def draw(source: RunSource) -> Chart:
    """The chart of a recording.

    Raises:
        NothingToPlot: no prompt token was ever admitted, or the allocator has no prefix cache.
    """
    _, _, tokens = source.admissions
    sums = tokens.sum(axis=0)
    total = int(sums.sum())
    if not total:
        raise NothingToPlot(f"{source.name}: nothing was admitted to a prefix cache")
    names = tuple(
        f"{name}: {MEANINGS[name]} – {count:,} ({100 * count / total:.1f} %)"
        for name, count in zip(MISS_CAUSES, sums.tolist(), strict=True)
    )
    places = np.arange(len(names))
    bars = (
        series("hit", "bars", sums[:1], places[:1], 3),
        series("missed", "bars", sums[1:], places[1:], 6),
    )
    panel = Panel(f"{total:,} prompt tokens", Axis("prompt tokens"), Axis("", categories=names), bars)
    return Chart(KIND, "Prompt tokens: hits, and misses by cause", (panel,), source.caption())
