"""Speed-up over a baseline of the same shape, beside the most that the bytes saved allow."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.bench import BenchRow, BenchSource
from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.core.errors import TinyserveError

KIND = "speed-up"
SUMMARY = "speed-up over each operation's baseline, with the ceiling that the bytes allow (bench files)"


def _pairs(rows: list[BenchRow], named: bool) -> list[tuple[BenchRow, BenchRow]]:
    """(row, its baseline of the same operation and shape): the named one, or where none are named the first."""
    found = []
    for row in rows:
        same = [other for other in rows if other.shape == row.shape and other is not row]
        wanted = row.baseline if named else next(iter(other.impl for other in rows if other.shape == row.shape))
        found += [(row, other) for other in same if other.impl == wanted][:1]
    return found


def draw(source: BenchSource) -> Chart:
    """The chart of a bench file: a panel for each operation with rows that have a baseline.

    A row's `baseline` names the implementation to compare with; in a file that names none it is the first of its shape.

    Raises:
        TinyserveError: there is no such operation.
    """
    panels = []
    named = any(row.baseline for row in source.rows)
    for op in dict.fromkeys(row.op for row in source.rows):
        pairs = _pairs([row for row in source.rows if row.op == op and row.us], named)
        if not pairs:
            continue
        speed = np.array([(base.us or 0.0) / (row.us or 1.0) for row, base in pairs])
        ceilings = np.array([base.bytes / row.bytes if base.bytes and row.bytes else np.nan for row, base in pairs])
        places, known = np.arange(len(pairs)), ~np.isnan(ceilings)
        found = [series("measured speed-up", "bars", speed, places, 5)]
        if known.any():
            found.append(series("byte ceiling", "points", ceilings[known], places[known], 6))
        bases = list(dict.fromkeys(base.impl for _, base in pairs))
        over = "" if len(bases) == 1 else " over {}"
        names = tuple(
            f"{row.impl}{over.format(base.impl)}, {row.shape} – {ratio:.3g}×"
            for (row, base), ratio in zip(pairs, speed.tolist(), strict=True)
        )
        title = f"{op}, over {bases[0]}" if len(bases) == 1 else f"{op}, over its baselines"
        panels.append(Panel(title, Axis("speed-up", "×"), Axis("", categories=names), tuple(found)))
    if not panels:
        raise TinyserveError(f"{source.name}: no operation has two implementations of one shape to compare")
    ceiling = "byte ceiling: useful bytes of the baseline over those of the row; a bar beyond it needs an explanation"
    return Chart(KIND, "Speed-up, and the most that the bytes allow", tuple(panels), (*source.caption(), ceiling))
