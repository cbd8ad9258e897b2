"""How much attention mass the selected blocks kept against how much of the K/V was read."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series, thinned, thinning_note
from tinyserve_viz.analysis.charts.source import NothingToPlot, RunSource
from tinyserve_viz.core import events as ev

KIND = "selection"
SUMMARY = "attention mass kept by the selected blocks against the share of K/V read"

_MOST = 3000


def draw(source: RunSource) -> Chart:
    """The chart of a recording.

    Raises:
        NothingToPlot: no selection was made, or attention did not run on it.
    """
    rows = [
        (step, 100 * event.tokens_read / event.tokens_held, 100 * event.retained.mean(), 100 * event.retained.min())
        for _, step, event in source.events(ev.BlocksSelected)
        if len(event.retained) and event.tokens_held
    ]
    if not rows:
        raise NothingToPlot(f"{source.name}: no selection with attention in it; replay with --kernels all")
    step, read, mean, least = np.array(rows, dtype=np.float64).T
    chosen = np.unique(np.linspace(0, len(step) - 1, _MOST).astype(np.int64))
    points = (
        series("mean over sequences and heads", "points", read[chosen], mean[chosen], 5),
        series("worst head", "points", read[chosen], least[chosen], 6),
        series("blocks drawn at random, expected", "line", [0, 100], [0, 100], 0, dashed=True),
    )
    width, (at, mean_, least_, read_) = thinned(step, mean, least, read)
    over = (
        series("mass kept, mean", "line", at, mean_, 5),
        series("mass kept, worst head", "line", at, least_, 6),
        series("K/V read", "line", at, read_, 0, dashed=True),
    )
    share, mass = Axis("K/V tokens read", "% of those held", limits=(0, 100)), Axis("mass kept", "%", limits=(0, 100))
    chose = "" if len(chosen) == len(step) else f", {len(chosen):,} of them drawn"
    panels = (
        Panel(f"each point one step and layer ({len(step):,}{chose})", share, mass, points),
        Panel("over the replay", Axis("engine step"), Axis("share", "%", limits=(0, 100)), over),
    )
    definition = "mass kept = exp(lse of the selected − lse of all), per query head"
    caption = (*source.caption("observed"), definition, *thinning_note(width, "selections"))
    return Chart(KIND, "Selection quality against K/V read", panels, caption)
