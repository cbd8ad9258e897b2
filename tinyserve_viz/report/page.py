"""Charts as one HTML file that needs nothing else: pictures as SVG, captions as text, the numbers to take along."""

from __future__ import annotations

import base64
import csv
import html
import io
import re

import numpy as np

from tinyserve_viz.analysis.charts.chart import Chart, Panel
from tinyserve_viz.report.figure import picture

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="tinyserve-viz">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 70em; margin: 1.5em auto;
  padding: 0 1em; }}
figure {{ margin: 0 0 2.5em; break-inside: avoid; }}
figure svg {{ width: 100%; height: auto; }}
figcaption, details, .none {{ font-size: 13px; color: #444; }}
figcaption ul {{ margin: .3em 0; padding-left: 1.2em; }}
a {{ color: #0072b2; }}
@media print {{ details {{ display: none; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def as_page(title: str, charts: list[Chart], left_out: list[str], size: tuple[float, float] | None = None) -> str:
    """All `charts` on a page, then a line for each reason in `left_out`; `size` of a picture in inches."""
    figures = [_figure(chart, size) for chart in charts]
    if left_out:
        lines = "".join(f"<li>{html.escape(reason)}</li>" for reason in left_out)
        figures.append(f'<section class="none"><h2>Not drawn</h2><ul>{lines}</ul></section>')
    return _PAGE.format(title=html.escape(title), body="\n".join(figures))


def _figure(chart: Chart, size: tuple[float, float] | None) -> str:
    caption = "".join(f"<li>{html.escape(part)}</li>" for part in chart.caption)
    links = ", ".join(_link(chart, place, panel) for place, panel in enumerate(chart.panels))
    return (
        f'<figure id="{html.escape(chart.kind)}">{_inline(chart, size)}\n'
        f"<figcaption><details><summary>The numbers drawn, and where they come from</summary>"
        f"<p>CSV: {links}</p><ul>{caption}</ul></details></figcaption></figure>"
    )


def _inline(chart: Chart, size: tuple[float, float] | None) -> str:
    """The SVG element alone, with names of its own: several pictures stand in one page."""
    svg = picture(chart, "svg", size).decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.kind}-", svg)
    label = html.escape(chart.title, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _link(chart: Chart, place: int, panel: Panel) -> str:
    data = base64.b64encode(panel_csv(panel).encode()).decode()
    name = f"{chart.kind}-{place + 1}.csv"
    source = f"data:text/csv;charset=utf-8;base64,{data}"
    return f'<a download="{html.escape(name)}" href="{source}">{html.escape(panel.title)}</a>'


def panel_csv(panel: Panel) -> str:
    """What a panel draws as CSV: one row a number, with the texts of its axes as names of the columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = panel.y.categories
    writer.writerow(["series", panel.x.text or "x", panel.y.text or "row", panel.scale or "length"])
    for series in panel.series:
        x, y, z = series.x, series.y, series.z
        if series.style == "heat":
            bins = len(x) - 1
            x, y = np.tile(x[:-1], len(names)), np.repeat(np.arange(len(names)), bins)
        elif series.style == "marks":
            x, y = series.x, np.zeros(len(series.x))
        elif series.style == "level":
            x = np.full(len(y), np.nan)
        z = z if len(z) else np.full(len(y), np.nan)
        for row in zip(x.tolist(), y.tolist(), z.tolist(), strict=True):
            values = ["" if np.isnan(value) else f"{value:.10g}" for value in row]
            if names:
                values[1] = names[int(row[1])]
            writer.writerow([series.name, *values])
    return out.getvalue()
