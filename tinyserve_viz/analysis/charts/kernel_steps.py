"""The kernels of a few steps one after another, as they ran: which launch fills which part of a step."""

from __future__ import annotations

import numpy as np

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series
from tinyserve_viz.analysis.charts.kernel_time import title_of
from tinyserve_viz.analysis.charts.source import RunSource, provenance_of

KIND = "kernel-steps"
SUMMARY = "the kernels of the eight busiest neighbouring steps, one after another"

_STEPS = 8


def draw(source: RunSource) -> Chart:
    """The chart of a recording."""
    names, spent, _, _, provenance = source.kernels
    totals = spent.sum(axis=1)
    sums = np.convolve(totals, np.ones(min(_STEPS, len(totals))), mode="valid")
    first = int(sums.argmax())
    steps = range(first, min(len(totals), first + _STEPS))
    kernels = [i for i in range(len(names)) if spent[steps, i].any()]
    row = {kernel: place for place, kernel in enumerate(kernels)}
    starts, rows, lengths, edges, now = [], [], [], [0.0], 0.0
    for step in steps:
        for kernel in kernels:
            length = float(spent[step, kernel])
            if length:
                starts.append(now / 1e3)
                rows.append(row[kernel])
                lengths.append(length / 1e3)
                now += length
        edges.append(now / 1e3)
    spans = series("kernels", "spans", starts, rows, 5, z=lengths)
    borders = series("ends of steps", "marks", edges, [0], 6)
    panel = Panel(
        f"steps {steps[0]:,} to {steps[-1]:,}, all calls of a kernel in a step drawn as one",
        Axis("kernel time", "ms"),
        Axis("", categories=tuple(names[i] for i in kernels)),
        (spans, borders),
    )
    title = title_of("Kernels of the busiest steps", provenance)
    return Chart(KIND, title, (panel,), source.caption(provenance_of(provenance)))
