"""The whole replay on one page: pool, sequences, and which kernel took its time when."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series, thinning_note
from tinyserve_viz.analysis.charts.kernel_time import title_of
from tinyserve_viz.analysis.charts.memory import pool_panel
from tinyserve_viz.analysis.charts.queue import queue_panel
from tinyserve_viz.analysis.charts.source import PROVENANCE, RunSource, provenance_of

KIND = "timeline"
SUMMARY = "the whole replay: pool, sequences, kernel time by kernel (the default)"

_BINS = 150


def kernel_panel(source: RunSource) -> Panel:
    """Rows of kernels over bins of simulated time, how dark by their µs a step."""
    names, spent, _, _, provenance = source.kernels
    order = np.argsort(-spent.sum(axis=0), kind="stable")
    seconds = source.seconds
    spent = spent[: len(seconds)]
    edges = np.linspace(0.0, float(seconds[-1]), min(_BINS, max(1, len(seconds))) + 1)
    place = np.clip(np.searchsorted(edges, seconds, side="left") - 1, 0, len(edges) - 2)
    counts = np.bincount(place, minlength=len(edges) - 1)
    rows = []
    for kernel in order.tolist():
        sums = np.bincount(place, weights=spent[:, kernel], minlength=len(edges) - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            rows.append(np.where(counts > 0, sums / counts, np.nan))
    heat = series("kernels", "heat", edges, np.arange(len(order)), z=np.array(rows))
    words = tuple(names[i] for i in order)
    title = title_of("time of each kernel", provenance)
    return Panel(title, Axis("simulated time", "s"), Axis("", categories=words), (heat,), "µs a step")


def draw(source: RunSource) -> Chart:
    """The chart of a recording; without its lowest panel where no kernels ran."""
    width, pool = pool_panel(source)
    panels = [pool, queue_panel(source)[1]]
    caption = source.caption()
    if source.has_kernels:
        panels.append(kernel_panel(source))
        caption = (*caption, f"kernel times: {PROVENANCE[provenance_of(source.kernels[4])]}")
    name = source.header.origin["trace"]["name"]
    return Chart(KIND, f"Replay of {name}", tuple(panels), (*caption, *thinning_note(width)))
