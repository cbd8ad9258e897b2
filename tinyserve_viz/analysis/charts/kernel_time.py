"""Time per kernel and step, the longest kernels by name and the rest together."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series, thinned, thinning_note
from tinyserve_viz.analysis.charts.source import F64, RunSource, provenance_of
from tinyserve_viz.analysis.sentences import provenance_title

KIND = "kernel-time"
SUMMARY = "time per kernel in every step, stacked"

_NAMED = 6
COLORS = (5, 6, 3, 1, 2, 7, 8)


def title_of(what: str, provenance: str) -> str:
    """`what`, or with the words that keep a reference's wall time from being read as a kernel time."""
    return what if provenance == "measured" else f"{what} – {provenance_title(provenance)}, wall time"


def longest_first(names: list[str], spent: F64, most: int) -> tuple[list[str], F64]:
    """Columns of `spent` [steps × kernels], the greatest totals first, all after `most` added into one."""
    order = np.argsort(-spent.sum(axis=0), kind="stable")
    kept, rest = order[:most], order[most:]
    found, columns = [names[i] for i in kept], [spent[:, i] for i in kept]
    if len(rest):
        found.append(f"{len(rest)} others")
        columns.append(spent[:, rest].sum(axis=1))
    return found, np.column_stack(columns)


def draw(source: RunSource) -> Chart:
    """The chart of a recording."""
    names, spent, _, _, provenance = source.kernels
    shown, columns = longest_first(names, spent / 1e3, _NAMED)
    width, (step, *values) = thinned(np.arange(len(spent)), *columns.T)
    areas = tuple(
        series(f"{name} ({column.sum():,.1f} ms)", "area", step, value, color)
        for name, column, value, color in zip(shown, columns.T, values, COLORS, strict=False)
    )
    panel = Panel("stacked, totals in the legend", Axis("engine step"), Axis("time a step", "ms"), areas)
    caption = (*source.caption(provenance_of(provenance)), *thinning_note(width))
    return Chart(KIND, title_of("Time per kernel and step", provenance), (panel,), caption)
