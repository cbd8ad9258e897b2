"""GB/s against the useful bytes of a call, under the bandwidth that a plain copy reached in the same process."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.bench import BenchSource
from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.core.errors import TinyserveError

KIND = "roofline"
SUMMARY = "GB/s against useful bytes of a call, with the copy and read lines (bench files)"


def draw(source: BenchSource) -> Chart:
    """The chart of a bench file: a panel for each operation.

    Raises:
        TinyserveError: no row has bytes.
    """
    rows = [row for row in source.rows if row.bytes and row.gbs]
    if not rows:
        raise TinyserveError(f"{source.name}: no row has bytes and GB/s")
    panels = []
    for op in dict.fromkeys(row.op for row in rows):
        own = [row for row in rows if row.op == op]
        found = []
        for place, impl in enumerate(dict.fromkeys(row.impl for row in own)):
            points = sorted((float(row.bytes or 0), float(row.gbs or 0)) for row in own if row.impl == impl)
            x, y = np.array(points).T
            found.append(series(impl, "points", x / 2**20, y, (5, 6, 3, 1, 7, 2)[place % 6]))
        for place, name in enumerate(name for name in ("copy", "read", "write") if name in source.file.peaks):
            peak = source.file.peaks[name]
            found.append(series(f"{name} {peak:,.0f} GB/s", "level", [], [peak], 0, dashed=bool(place)))
        x_axis, y_axis = Axis("useful bytes a call", "MiB", log=True), Axis("bandwidth", "GB/s", log=True)
        panels.append(Panel(op, x_axis, y_axis, tuple(found)))
    return Chart(KIND, "Bandwidth against size", tuple(panels), source.caption())
