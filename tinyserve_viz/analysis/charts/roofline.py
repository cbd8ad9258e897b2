"""GB/s against the useful bytes of a call, under the bandwidth that a plain copy reached in the same process."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.bench import BenchRow, BenchSource
from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.core.errors import TinyserveError

KIND = "roofline"
SUMMARY = "GB/s against useful bytes of a call, with the copy and read lines (bench files)"

_OWN_PANEL = 4  # rows of an operation that get a panel of their own


def draw(source: BenchSource) -> Chart:
    """The chart of a bench file: a panel for each operation with several sizes, one for all others.

    Raises:
        TinyserveError: no row has bytes.
    """
    rows = [row for row in source.rows if row.bytes and row.gbs]
    if not rows:
        raise TinyserveError(f"{source.name}: no row has bytes and GB/s")
    by_op = {op: [row for row in rows if row.op == op] for op in dict.fromkeys(row.op for row in rows)}
    large = [op for op, own in by_op.items() if len(own) >= _OWN_PANEL] or list(by_op)[:1]
    panels = [_panel(source, op, [(row.impl, row) for row in by_op[op]]) for op in large]
    rest = [(op, row) for op, own in by_op.items() if op not in large for row in own]
    if rest:
        panels.append(_panel(source, "other operations" if large else "operations", rest))
    return Chart(KIND, "Bandwidth against size", tuple(panels), source.caption())


def _panel(source: BenchSource, title: str, named: list[tuple[str, BenchRow]]) -> Panel:
    found = []
    for place, name in enumerate(dict.fromkeys(name for name, _ in named)):
        points = sorted((float(row.bytes or 0), float(row.gbs or 0)) for own, row in named if own == name)
        x, y = np.array(points).T
        found.append(series(name, "points", x / 2**20, y, (5, 6, 3, 1, 7, 2)[place % 6]))
    for place, name in enumerate(name for name in ("copy", "read", "write") if name in source.file.peaks):
        peak = source.file.peaks[name]
        found.append(series(f"{name} {peak:,.0f} GB/s", "level", [], [peak], 0, dashed=bool(place)))
    x_axis, y_axis = Axis("useful bytes a call", "MiB", log=True), Axis("bandwidth", "GB/s", log=True)
    return Panel(title, x_axis, y_axis, tuple(found))
