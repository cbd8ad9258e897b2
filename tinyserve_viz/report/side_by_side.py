"""Replays side by side as a table for a reader: a row a replay, a column a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyserve_viz.analysis.first_decision import DifferingDecision
from tinyserve_viz.analysis.sentences import count
from tinyserve_viz.analysis.side_by_side import Metric, measured_in_any, value_of


def shown(value: Any, metric: Metric) -> str:
    """A value as its metric is written; `–` where there is none."""
    if value is None:
        return "–"
    if metric.form == "percent":
        return f"{100 * value:.2f} %"
    if metric.form == "share":
        return f"{value:.4f}"
    return f"{value:,.1f} s" if metric.form == "seconds" else f"{value:,}"


def difference_shown(ours: Any, theirs: Any, metric: Metric) -> str:
    """theirs − ours with its sign; shares in percent points; `–` where one was not measured."""
    if ours is None or theirs is None:
        return "–"
    if metric.form == "percent":
        return f"{100 * (theirs - ours):+.2f} pp"
    if metric.form == "share":
        return f"{theirs - ours:+.4f}"
    return f"{theirs - ours:+,.1f} s" if metric.form == "seconds" else f"{theirs - ours:+,}"


def as_table(labels: Sequence[str], summaries: Sequence[dict[str, Any]], difference: bool = False) -> list[str]:
    """Lines of the table, its columns as wide as they need to be; what is the same in all replays stands below it.

    With `difference` a last row has what the second of two replays has more than the first.
    """
    if difference:
        labels = [*labels, "difference"]
    columns, same = [["", *labels]], []
    for metric in measured_in_any(summaries):
        cells = [shown(value_of(summary, metric), metric) for summary in summaries]
        if len(set(cells)) == 1:
            same.append(f"{metric.name} {cells[0]}")
        else:
            if difference:
                ours, theirs = (value_of(summary, metric) for summary in summaries)
                cells.append(difference_shown(ours, theirs, metric))
            columns.append([metric.name, *cells])
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        first = f"{row[0]:<{widths[0]}}"
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *cells]).rstrip())
    return [*lines, f"the same in all: {', '.join(same)}"] if same else lines


def difference_lines(found: DifferingDecision | None, ours: str, theirs: str) -> list[str]:
    """The first decision that differs, one line a side."""
    if found is None:
        return [f"{theirs}: every decision is that of {ours}"]
    lines = [f"{theirs} parts from {ours} after {count(found.num_same, 'equal decision')}:"]
    width = max(len(ours), len(theirs))
    for label, side in ((ours, found.ours), (theirs, found.theirs)):
        text = "is over" if side is None else f"step {side.step}: {side.text}"
        lines.append(f"  {label:<{width}}  {text}")
    return lines
