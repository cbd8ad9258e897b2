"""Speed-up over a baseline of the same shape, beside the most that the bytes saved allow."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.bench import BenchRow, BenchSource
from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.core.errors import TinyserveError

KIND = "speed-up"
SUMMARY = "speed-up over each operation's baseline, with the ceiling that the bytes allow (bench files)"


def _baseline(rows: list[BenchRow]) -> BenchRow:
    named = next((row.baseline for row in rows if row.baseline), rows[0].impl)
    return next((row for row in rows if row.impl == named), rows[0])


def draw(source: BenchSource) -> Chart:
    """The chart of a bench file: a panel for each operation that has two implementations of one shape.

    A row's `baseline` names the implementation to compare with; without one it is the first in the file.

    Raises:
        TinyserveError: there is no such operation.
    """
    panels = []
    for op in dict.fromkeys(row.op for row in source.rows):
        names, speed, ceilings = [], [], []
        base = ""
        for shape in dict.fromkeys(row.shape for row in source.rows if row.op == op):
            rows = [row for row in source.rows if row.op == op and row.shape == shape]
            first = _baseline(rows)
            base = first.impl
            for row in rows:
                if row is not first and row.us and first.us:
                    names.append(f"{row.impl}, {shape} – {first.us / row.us:.2f}×")
                    speed.append(first.us / row.us)
                    ceilings.append(first.bytes / row.bytes if first.bytes and row.bytes else np.nan)
        if not speed:
            continue
        places = np.arange(len(speed))
        known = ~np.isnan(np.array(ceilings))
        found = [series("measured speed-up", "bars", speed, places, 5)]
        if known.any():
            found.append(series("byte ceiling", "points", np.array(ceilings)[known], places[known], 6))
        panels.append(
            Panel(f"{op}, over {base}", Axis("speed-up", "×"), Axis("", categories=tuple(names)), tuple(found))
        )
    if not panels:
        raise TinyserveError(f"{source.name}: no operation has two implementations of one shape to compare")
    ceiling = "byte ceiling: useful bytes of the baseline over those of the row; a bar beyond it needs an explanation"
    return Chart(KIND, "Speed-up, and the most that the bytes allow", tuple(panels), (*source.caption(), ceiling))
