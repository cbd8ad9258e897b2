"""Charts as pictures: PNG, SVG and PDF by matplotlib, legible in black-and-white print and to the colour-blind."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyserve_viz.analysis.charts.chart import Chart, Panel, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito 2008, https://jfly.uni-koeln.de/color/: black, orange, sky blue, bluish green, yellow, blue, vermilion,
# reddish purple; and a grey for what is not there.
PALETTE = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#B8B8B8")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "----", "||||", "oo")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")

WIDTH = 8.5  # inches, when nothing else is asked for
DPI = 150
_PANEL_HEIGHT = 2.35
_CAPTION_POINTS = 6.5
_LEGEND_CHARS = 25
_MARK_POINTS = 6
_FEWEST_ROWS = 3  # room that a plot with fewer rows gets too, so that a bar stays a bar
_LINEAR_HEAT = 20  # greatest over least value up to which a heat map is linear

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a picture is the same everywhere
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.35,
    "text.parse_math": False,  # a trace may be named cost$of$x
    "svg.hashsalt": "tinyserve-viz",
    "pdf.fonttype": 42,
}


def default_size(chart: Chart) -> tuple[float, float]:
    """Inches that give every panel room: rows with names need more the more there are."""
    height = 1.15
    for panel in chart.panels:
        height += max(_PANEL_HEIGHT, 0.75 + 0.21 * len(panel.y.categories)) if panel.y.categories else _PANEL_HEIGHT
    return WIDTH, height


def picture(chart: Chart, form: str, size: tuple[float, float] | None = None, dpi: int = DPI) -> bytes:
    """`chart` as the bytes of a `png`, `svg` or `pdf`; `size` in inches. The same chart gives the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in another script shows as boxes
        warnings.filterwarnings("ignore", "Data has no positive values")  # an empty logarithmic plot is drawn as one
        figure = _draw(chart, size or default_size(chart))
        out = io.BytesIO()
        figure.savefig(out, format=form, dpi=dpi, metadata=_METADATA[form](chart))
    return out.getvalue()


_METADATA: dict[str, Callable[[Chart], dict[str, Any]]] = {
    "png": lambda chart: {"Title": chart.title, "Description": " · ".join(chart.caption), "Software": None},
    "svg": lambda chart: {"Title": chart.title, "Description": " · ".join(chart.caption), "Date": None},
    "pdf": lambda chart: {"Title": chart.title, "Subject": " · ".join(chart.caption), "CreationDate": None},
}


def _draw(chart: Chart, size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=size, layout="constrained")
    per_line = max(30, int(width * 72 / (_CAPTION_POINTS * 0.56)) - 4)
    caption = "\u00a0· ".join(chart.caption)  # the dot stays at the end of its line
    lines = textwrap.wrap(caption, per_line, break_on_hyphens=False)
    line_height = _CAPTION_POINTS * 1.35 / 72
    bottom = min(0.6, (0.1 + line_height * len(lines)) / height)
    top = min(0.3, 0.34 / height)
    figure.get_layout_engine().set(rect=(0.005, bottom, 0.99, 1 - bottom - top), h_pad=0.05, hspace=0.02)  # type: ignore[union-attr,call-arg]
    figure.text(0.1 / width, 1 - 0.09 / height, chart.title, va="top", size=11, weight="bold")
    text = "\n".join(lines)
    figure.text(0.1 / width, 0.07 / height, text, va="bottom", size=_CAPTION_POINTS, color="#333333", linespacing=1.25)
    ratios = [max(1.0, (0.75 + 0.21 * len(panel.y.categories)) / _PANEL_HEIGHT) for panel in chart.panels]
    rows = figure.subplots(len(chart.panels), 1, squeeze=False, height_ratios=ratios)
    for axes, panel in zip(rows[:, 0], chart.panels, strict=True):
        _draw_panel(figure, axes, panel)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in rows[:, 0]:  # the last bits of what the layout's solver finds differ from run to run
        axes.set_position([round(value, 4) for value in axes.get_position().bounds])
    return figure


def _draw_panel(figure: Figure, axes: Axes, panel: Panel) -> None:
    marks = [series for series in panel.series if series.style == "marks"]
    axes.set_title(panel.title, loc="left", pad=5 + _MARK_POINTS * len(marks))
    axes.set_xlabel(panel.x.text)
    axes.set_ylabel(panel.y.text)
    for name, axis in (("x", panel.x), ("y", panel.y)):
        if axis.log:
            getattr(axes, f"set_{name}scale")("log")
            getattr(axes, f"{name}axis").set_major_formatter(_plain)
            getattr(axes, f"{name}axis").set_minor_formatter(_nothing_written)
        elif not axis.categories:
            getattr(axes, f"{name}axis").set_major_formatter(_plain)
    below: Any = None
    for place, series in enumerate(panel.series):
        if series.style == "area":
            below = _area(axes, series, place, below)
        else:
            _DRAW[series.style](axes, series, place)
    _limits(axes, panel)
    if panel.y.categories:
        axes.set_yticks(range(len(panel.y.categories)), panel.y.categories)
        axes.set_ylim(max(_FEWEST_ROWS, len(panel.y.categories)) - 0.5, -0.5)
    for name, axis in (("x", panel.x), ("y", panel.y)):
        low, high = getattr(axes, f"get_{name}lim")()
        if axis.log and high < 40 * low:
            getattr(axes, f"{name}axis").set_minor_formatter(_twos_and_fives)
    heat = next((series for series in panel.series if series.style == "heat"), None)
    if heat is not None:
        _heat(figure, axes, heat, panel)
    elif not panel.y.categories or len(panel.series) > 1:
        axes.grid(True, axis="x" if panel.y.categories else "both", color="#DDDDDD", linewidth=0.5, zorder=0)
        _legend(axes)
    else:
        axes.grid(True, axis="x", color="#DDDDDD", linewidth=0.5, zorder=0)
    axes.set_axisbelow(True)


def _plain(value: float, _place: float = 0) -> str:
    """The number at a tick, never as a power of ten."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _twos_and_fives(value: float, _place: float = 0) -> str:
    """Ticks between the powers of ten of a short logarithmic axis."""
    return _plain(float(f"{value:.3g}")) if f"{value:e}"[0] in "25" else ""


def _nothing_written(_value: float, _place: float = 0) -> str:
    return ""


def _limits(axes: Axes, panel: Panel) -> None:
    if panel.x.limits:
        axes.set_xlim(*panel.x.limits)
    elif not panel.x.log:
        axes.margins(x=0.01)
        if any(series.style == "bars" for series in panel.series):
            axes.set_xlim(left=0)
    if panel.y.limits:
        axes.set_ylim(*panel.y.limits)
    elif not panel.y.log and not panel.y.categories:
        axes.set_ylim(bottom=0)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        wrapped = [textwrap.fill(label, _LEGEND_CHARS, break_long_words=False) for label in labels]
        beside = (1.005, 1.03)
        axes.legend(handles, wrapped, loc="upper left", bbox_to_anchor=beside, handlelength=2.4, labelspacing=0.6)


def _line(axes: Axes, series: Series, place: int, drawstyle: Any = "default") -> None:
    dash = _DASHES[1] if series.dashed else _DASHES[place % len(_DASHES)] if place else _DASHES[0]
    width = 1.1 if place else 1.5
    axes.plot(
        series.x, series.y, label=series.name, color=PALETTE[series.color], linestyle=dash, linewidth=width,
        drawstyle=drawstyle, zorder=3,
    )  # fmt: skip


def _step(axes: Axes, series: Series, place: int) -> None:
    """A step's numbers stand at its end and hold since the end of the step before."""
    _line(axes, series, place, "steps-pre")


def _hold(axes: Axes, series: Series, place: int) -> None:
    _line(axes, series, place, "steps-post")


def _area(axes: Axes, series: Series, place: int, below: Any) -> Any:
    low = np.zeros_like(series.y) if below is None else below
    high = low + np.nan_to_num(series.y)
    axes.fill_between(
        series.x, low, high, step="pre", label=series.name, facecolor=PALETTE[series.color], edgecolor="#5a5a5a",
        hatch=_HATCHES[place % len(_HATCHES)], linewidth=0.2, zorder=2,
    )  # fmt: skip
    return high


def _points(axes: Axes, series: Series, place: int) -> None:
    few = len(series.x) <= 300
    axes.plot(
        series.x, series.y, label=series.name, color=PALETTE[series.color], linestyle="", zorder=4,
        marker=_MARKERS[place % len(_MARKERS)], markersize=4.5 if few else 2.0, alpha=0.9 if few else 0.45,
        markeredgewidth=0.5, markeredgecolor="#FFFFFF" if few else "none",
    )  # fmt: skip


def _bars(axes: Axes, series: Series, place: int) -> None:
    hatch = _HATCHES[place % len(_HATCHES)]
    axes.barh(
        series.y, series.x, 0.72, label=series.name, color=PALETTE[series.color], hatch=hatch, edgecolor="#5a5a5a",
        linewidth=0.3, zorder=2,
    )  # fmt: skip


def _spans(axes: Axes, series: Series, _place: int) -> None:
    axes.barh(
        series.y, series.z, 0.72, left=series.x, label=series.name, color=PALETTE[series.color], edgecolor="white",
        linewidth=0.2, zorder=2,
    )  # fmt: skip


def _level(axes: Axes, series: Series, place: int) -> None:
    dash = _DASHES[1] if series.dashed else _DASHES[0]
    color = PALETTE[series.color]
    axes.axhline(series.y[0], color=color, linestyle=dash, linewidth=1, label=series.name, zorder=1 + 0.01 * place)


def _marks(axes: Axes, series: Series, _place: int) -> None:
    """Ticks just above the axes, one row a series."""
    from matplotlib.transforms import offset_copy

    height = 4 + _MARK_POINTS * float(series.y[0])
    above = offset_copy(axes.get_xaxis_transform(), axes.get_figure(root=True), y=height, units="points")
    axes.plot(
        series.x, np.ones_like(series.x), label=series.name, color=PALETTE[series.color], linestyle="", marker="|",
        markersize=_MARK_POINTS - 1, markeredgewidth=0.9, transform=above, clip_on=False,
    )  # fmt: skip


def _heat(figure: Figure, axes: Axes, series: Series, panel: Panel) -> None:
    from matplotlib.colors import LogNorm

    rows = len(panel.y.categories)
    values = series.z.reshape(rows, -1)
    edges = np.arange(rows + 1) - 0.5
    shown = np.ma.masked_invalid(np.where(values > 0, values, np.nan))  # 0: the kernel did not run, as white as a pause
    norm = LogNorm() if shown.count() and shown.max() > _LINEAR_HEAT * shown.min() else None
    mesh = axes.pcolormesh(series.x, edges, shown, cmap="cividis_r", norm=norm, rasterized=True)
    beside = axes.inset_axes((1.012, 0.0, 0.018, 1.0))
    figure.colorbar(mesh, cax=beside, label=panel.scale, format=_plain if norm else None)
    beside.yaxis.set_minor_formatter(_nothing_written)


def _nothing(axes: Axes, series: Series, place: int) -> None:
    """Drawn once the limits are known."""


_DRAW: dict[str, Callable[[Axes, Series, int], None]] = {
    "line": _line,
    "step": _step,
    "hold": _hold,
    "points": _points,
    "bars": _bars,
    "spans": _spans,
    "level": _level,
    "marks": _marks,
    "heat": _nothing,
}
