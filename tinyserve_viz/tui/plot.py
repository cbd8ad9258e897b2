"""Line plots by plotext as lines of styled text, with the place where we are marked on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from rich.text import Text

from tinyserve_viz.tui import look

SMALLEST = (24, 5)  # what plotext draws legibly: three labels beside, two below
_AXIS = "┤├│└┘┬─┴┼"


def thinned(values: Sequence[float], places: int) -> tuple[list[float], list[float]]:
    """(x, y) of at most `places` points: the highest value of each run of neighbours, so that no peak is lost."""
    if len(values) <= places:
        return [float(x) for x in range(len(values))], [float(value) for value in values]
    array = np.asarray(values, dtype=np.float64)
    starts = np.linspace(0, len(array), places, endpoint=False).astype(np.int64)
    return starts.astype(np.float64).tolist(), np.maximum.reduceat(array, starts).tolist()


def plotted(
    points: tuple[Sequence[float], Sequence[float]],
    ends: tuple[int, int],
    top: float,
    width: int,
    height: int,
    here: float | None = None,
    style: look.Style = look.GOOD,
    unit: str = "",
) -> list[Text]:
    """A line through `points` over steps `ends[0]` … `ends[1]`, from 0 to `top`; `here` marks a step by a line."""
    first, last = ends[0], max(ends[0] + 1, ends[1])
    rows = _rows(tuple(points[0]), tuple(points[1]), first, last, top, width, height, unit)
    return _styled(rows, None if here is None else (here - first) / (last - first), style)


@lru_cache(maxsize=16)
def _rows(
    xs: tuple[float, ...],
    ys: tuple[float, ...],
    first: int,
    last: int,
    top: float,
    width: int,
    height: int,
    unit: str,
) -> tuple[str, ...]:
    """What plotext draws; it takes 15 ms, and most frames differ only in where they stand on it."""
    import plotext  # here, because importing it takes 0.2 s, which the first frame would wait for

    plotext.terminal.limit(False, False)  # a picture may be larger than the terminal it is drawn from
    figure = plotext.figure
    figure.clear()
    figure.theme("clear")
    figure.plot_size(width, height)
    for axis in ("x", "y"):
        figure.axes(False, axis=axis, side=1)
    figure.ruler("x").lim(first, last)
    figure.ruler("x").ticks([first, last], [f"{first:,}", f"{last:,}"])
    top = top or 1.0
    digits = 0 if top >= 10 or top == int(top) else 1 if top >= 1 else 3
    figure.ruler("y").lim(0, top)
    figure.ruler("y").ticks([0, top], [f"0{unit}", f"{top:,.{digits}f}{unit}"])
    signal = figure.signal(list(xs), list(ys), marker="braille")
    signal.lines()
    signal.fillx()
    figure.draw(signal)
    return tuple(figure.build().string(colorless=True).splitlines())


def _styled(rows: Sequence[str], here: float | None, style: look.Style) -> list[Text]:
    left = next((place + 1 for row in rows for place, sign in enumerate(row) if sign in "┤│"), 0)
    column = -1 if here is None or not 0 <= here <= 1 else left + round(here * (max(map(len, rows)) - left - 1))
    found = []
    for number, row in enumerate(rows):
        text = look.line()
        inside = number < len(rows) - 2
        for place, sign in enumerate(row.ljust(column + 1) if inside else row):
            if inside and place == column:
                text.append("│" if sign == " " else sign, look.KEY)
            else:
                text.append(sign, style if place >= left and inside and sign not in _AXIS else look.DIM)
        found.append(text)
    return found
