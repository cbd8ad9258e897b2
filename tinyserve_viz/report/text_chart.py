"""Charts as text: lines and points by plotext, rows with names as bars; no colour, so they go into any log."""

from __future__ import annotations

import textwrap

import numpy as np

from tinyserve_viz.analysis.charts.chart import F64, Axis, Chart, Panel, Series

WIDTH, PANEL_LINES = 100, 16
SMALLEST = (40, 8)
_SIGNS = "●○x+◆□*·"
_FILLS = "█▒░▚#+:"
_SHADES = " ·░▒▓█"
_FEW = 20
_MOST_NAMES = 0.5  # of the width, for names beside rows


def as_text(chart: Chart, size: tuple[int, int] | None = None) -> str:
    """`chart` in `size` = (columns, lines a panel)."""
    width, lines = size or (WIDTH, PANEL_LINES)
    parts = [chart.title]
    for panel in chart.panels:
        named = bool(panel.y.categories)
        parts += ["", panel.title, *(_rows(panel, width) if named else _plot(panel, width, lines))]
    parts += ["", *textwrap.wrap(" · ".join(chart.caption), width, break_on_hyphens=False)]
    return "\n".join(line.rstrip() for line in parts) + "\n"


def _plot(panel: Panel, width: int, lines: int) -> list[str]:
    import plotext

    drawn = [series for series in panel.series if series.style != "marks" and _known(panel, series).any()]
    figure = plotext.figure
    figure.clear()
    plotext.terminal.limit(False, False)  # a log may be wider than the terminal
    figure.theme("colorless")
    figure.plot_size(width, lines)
    x_range, y_range = _range(panel, drawn, panel.x, 0), _range(panel, drawn, panel.y, 1)
    for name, axis, ends, ticks in (("x", panel.x, x_range, 6), ("y", panel.y, y_range, 5)):
        places, words = _ticks(axis, ends, ticks)
        figure.ruler(name).lim(*ends)
        figure.ruler(name).ticks(places, words)
    legend = []
    areas = [series for series in drawn if series.style == "area"]
    tops = np.cumsum([np.nan_to_num(series.y) for series in areas], axis=0) if areas else None
    for place in reversed(range(len(areas))):  # the highest first: what lies below is drawn over it
        assert tops is not None
        x, y = _held(areas[place].x, tops[place], before=True)
        figure.draw(figure.signal(x.tolist(), y.tolist(), marker=_FILLS[place % len(_FILLS)]).lines().fillx())
    legend += [f"{_FILLS[place % len(_FILLS)]} {series.name}" for place, series in enumerate(areas)]
    signs = [series for series in drawn if series.style != "area"]
    for place, series in sorted(enumerate(signs), key=_over):
        sign = _SIGNS[place % len(_SIGNS)]
        _draw(figure, panel, series, sign, x_range)
    legend += [f"{_SIGNS[place % len(_SIGNS)]} {series.name}" for place, series in enumerate(signs)]
    rows = figure.build().string(colorless=True).splitlines()
    found = [f"{panel.y.text}", *rows, panel.x.text.center(width)]
    found += [_strip(series, x_range, rows, width) for series in panel.series if series.style == "marks"]
    found += textwrap.wrap("   ".join(entry.replace(" ", "\x00") for entry in legend), width)
    return [line.replace("\x00", " ") for line in found]


def _over(item: tuple[int, Series]) -> tuple[bool, int]:
    """Order of drawing: the first series on top of the later ones, few points on top of all."""
    place, series = item
    return series.style == "points" and len(series.x) < _FEW, -place


def _draw(figure: object, panel: Panel, series: Series, sign: str, x_range: tuple[float, float]) -> None:
    x, y = series.x, series.y
    if series.style == "level":
        x, y = np.array(x_range), np.repeat(series.y[:1], 2)
    else:
        keep = _known(panel, series)
        x, y = _place(panel.x, x[keep]), y[keep]
    y = _place(panel.y, y)
    if series.style in ("step", "hold"):
        x, y = _held(x, y, before=series.style == "step")
    signal = figure.signal(x.tolist(), y.tolist(), marker=sign)  # type: ignore[attr-defined]
    if series.style != "points":
        signal.lines()
    figure.draw(signal)  # type: ignore[attr-defined]


def _known(panel: Panel, series: Series) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Where a series can be drawn: numbers, and above 0 on logarithmic axes."""
    if series.style == "level":
        return np.ones(1, dtype=np.bool_)
    known = ~(np.isnan(series.x) | np.isnan(series.y))
    for axis, values in ((panel.x, series.x), (panel.y, series.y)):
        if axis.log:
            known &= values > 0
    return known


def _place(axis: Axis, values: F64) -> F64:
    return np.log10(values) if axis.log else values


def _held(x: F64, y: F64, before: bool) -> tuple[F64, F64]:
    """Corners of a staircase: y since the x before, or until the next x."""
    xs, ys = np.repeat(x, 2), np.repeat(y, 2)
    return (xs[:-1], ys[1:]) if before else (xs[1:], ys[:-1])


def _range(panel: Panel, drawn: list[Series], axis: Axis, which: int) -> tuple[float, float]:
    """Ends of an axis, as its ruler counts (powers of ten where it is logarithmic)."""
    if axis.limits:
        return axis.limits
    values = [np.zeros(0)]
    stack = [np.nan_to_num(series.y) for series in drawn if series.style == "area"]
    if which == 1 and stack:
        values.append(np.sum(stack, axis=0))
    for series in drawn:
        if series.style == "level":
            values.append(series.y if which else np.zeros(0))
        else:
            values.append((series.y if which else series.x)[_known(panel, series)])
    flat = _place(axis, np.concatenate(values))
    if not len(flat):
        return 0.0, 1.0
    low, high = float(flat.min()), float(flat.max())
    if which == 1 and not axis.log:
        low = min(0.0, low)
    return (low, high) if high > low else (low, low + 1.0)


def _ticks(axis: Axis, ends: tuple[float, float], most: int) -> tuple[list[float], list[str]]:
    low, high = ends
    if axis.log:
        decades = range(int(np.floor(low)), int(np.ceil(high)) + 1)
        for factors in ((1, 2, 5), (1,)):
            values = [factor * 10.0**decade for decade in decades for factor in factors]
            places = [float(np.log10(value)) for value in values if low <= np.log10(value) <= high]
            if len(places) <= 2 * most:
                break
        places = places if len(places) > 1 else [low, high]
        return places, [_number(10**place) for place in places]
    raw = (high - low) / most
    scale = 10 ** np.floor(np.log10(raw))
    step = float(next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw * 0.999))
    places = [step * n for n in range(int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9)) + 1)]
    return places, [_number(place) for place in places]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _strip(series: Series, ends: tuple[float, float], rows: list[str], width: int) -> str:
    """A line of ticks under the plot, in the columns of its canvas."""
    left = next((row.index(sign) + 1 for row in rows for sign in "┤│" if sign in row), 0)
    span = max(1, width - left - 2)
    cells = [" "] * (span + 1)
    for place in np.clip((series.x - ends[0]) / (ends[1] - ends[0]) * span, 0, span).astype(np.int64).tolist():
        cells[place] = "╵"
    return " " * left + "".join(cells).rstrip() + f"  {series.name}"


def _rows(panel: Panel, width: int) -> list[str]:
    """Rows with names: bars from 0, spans along an axis, or shades over bins."""
    names = [_short(name, int(width * _MOST_NAMES)) for name in panel.y.categories]
    left = max(len(name) for name in names)
    room = max(10, width - left - 3)
    cells = [[" "] * room for _ in names]
    styles = {series.style for series in panel.series}
    if "heat" in styles:
        return _shaded(panel, names, left, room)
    high = max(float(np.max(s.x + s.z if s.style == "spans" else s.x, initial=0.0)) for s in panel.series)
    high = panel.x.limits[1] if panel.x.limits else high or 1.0
    legend = []
    for place, series in enumerate(s for s in panel.series if s.style in ("bars", "spans", "points")):
        fill = "◆" if series.style == "points" else _FILLS[place % len(_FILLS)]
        starts = series.x if series.style != "bars" else np.zeros_like(series.x)
        ends = series.x if series.style != "spans" else series.x + series.z
        for row, start, end in zip(series.y.astype(int).tolist(), starts.tolist(), ends.tolist(), strict=True):
            first = min(room - 1, int(start / high * (room - 1)))
            last = first + 1 if series.style == "points" else max(first, round(end / high * (room - 1)))
            if series.style == "spans":
                last = max(last, first + 1)
            cells[row][first:last] = fill * (last - first)
        legend.append(f"{fill} {series.name}")
    found = [f"{name:>{left}} ┤{''.join(row).rstrip()}" for name, row in zip(names, cells, strict=True)]
    found += _foot(panel.x, left, room, 0.0, high)
    return found if len(legend) == 1 and "bars" in styles else [*found, "   ".join(legend)]


def _shaded(panel: Panel, names: list[str], left: int, room: int) -> list[str]:
    series = next(series for series in panel.series if series.style == "heat")
    values = series.z.reshape(len(names), -1)
    bins = values.shape[1]
    places = np.minimum(bins - 1, np.arange(room) * bins // room)
    known = values[(values > 0) & ~np.isnan(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)
    edges = np.geomspace(low, high, len(_SHADES)) if high > low else np.array([low])
    found = []
    for name, row in zip(names, values, strict=True):
        shade = np.clip(np.searchsorted(edges, np.nan_to_num(row), side="right"), 0, len(_SHADES) - 1)
        found.append(f"{name:>{left}} ┤{''.join(_SHADES[i] for i in shade[places].tolist()).rstrip()}")
    found += _foot(panel.x, left, room, float(series.x[0]), float(series.x[-1]))
    steps = "  ".join(f"{_SHADES[i + 1]} from {_number(edge)}" for i, edge in enumerate(edges[: len(_SHADES) - 1]))
    return [*found, f"{panel.scale}: {steps}"]


def _foot(axis: Axis, left: int, room: int, low: float, high: float) -> list[str]:
    ends = f"{_number(low)}{_number(high):>{room - len(_number(low))}}"
    return [f"{'':>{left}} └{'─' * room}", f"{'':>{left}}  {ends}", f"{'':>{left}}  {axis.text.center(room)}"]


def _short(name: str, most: int) -> str:
    """`name` in so many columns; the numbers behind a dash stay."""
    if len(name) <= most:
        return name
    words, dash, numbers = name.rpartition(" – ")
    room = most - len(dash) - len(numbers) - 1
    return f"{words[:room]}…{dash}{numbers}" if words and room > 3 else name[: most - 1] + "…"
