"""A chart as data: series with their axes and units, and a caption that says where every number comes from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

F64 = NDArray[np.float64]

STYLES = ("line", "step", "hold", "area", "points", "bars", "spans", "heat", "level", "marks")


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis counts, its unit (empty: a plain number), and the names of its places where it has names."""

    label: str
    unit: str = ""
    log: bool = False
    categories: tuple[str, ...] = ()
    limits: tuple[float, float] | None = None

    @property
    def text(self) -> str:
        """`pool use (blocks)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One named row of numbers. What `x`, `y` and `z` hold depends on `style`:

    `line`, `points`: y over x · `step`: y since the x before (an engine step's numbers, at its end) · `hold`: y until
    the next x (counts, distributions) · `area`: as `step`, stacked on the areas before it · `bars`: length `x` of the
    bar at category `y` · `spans`: from `x` on for `z` at category `y` · `heat`: `z` [categories × bins], flat, over the
    bin edges `x` · `level`: a horizontal line at `y[0]` · `marks`: ticks at `x` in the row `y[0]` under the plot.
    """

    name: str
    style: str
    x: F64
    y: F64
    z: F64 = field(default_factory=lambda: np.zeros(0))
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One plot: its series over common axes. `scale` names what a `heat` shows, with its unit."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    scale: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Chart:
    """A picture of one or more panels, one above the other, and the parts of its caption."""

    kind: str
    title: str
    panels: tuple[Panel, ...]
    caption: tuple[str, ...]


def series(
    name: str, style: str, x: ArrayLike, y: ArrayLike, color: int = 0, z: ArrayLike = (), dashed: bool = False
) -> Series:
    """A `Series` from whatever holds numbers."""
    assert style in STYLES, style
    columns = [np.asarray(values, dtype=np.float64).ravel() for values in (x, y, z)]
    return Series(name, style, columns[0], columns[1], columns[2], color, dashed)


MOST_POINTS = 1200


def thinned(*columns: ArrayLike, most: int = MOST_POINTS) -> tuple[int, list[F64]]:
    """`columns` with at most `most` rows, each the mean of so many neighbours (NaN left out); and that number."""
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    length = len(arrays[0])
    width = -(-length // most) if length else 1
    if width == 1:
        return 1, arrays
    starts = np.arange(0, length, width)
    found = []
    for values in arrays:
        known = ~np.isnan(values)
        counts = np.add.reduceat(known.astype(np.int64), starts)
        sums = np.add.reduceat(np.where(known, values, 0.0), starts)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.where(counts > 0, sums / counts, np.nan))
    return width, found


def thinning_note(width: int, what: str = "steps or pauses") -> tuple[str, ...]:
    """The part of a caption that says how much a point sums up."""
    return () if width == 1 else (f"each point is the mean of {width:,} {what}",)
