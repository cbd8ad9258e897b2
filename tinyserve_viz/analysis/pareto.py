"""What selections keep against what they read: which of several replays no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinyserve_viz.analysis.charts.chart import Axis, Chart, Panel, series

NOT_BY_SHARE = ("seed", "seed-published")  # have a budget of their own


@dataclass(frozen=True, slots=True)
class Point:
    """One replay: `read` K/V tokens read / held, `kept` mean attention mass, `worst` the least of it.

    `cost` is bytes read, those for choosing included, over those of full attention; None where they were not counted.
    `on_front`: no other replay reads as little or less and keeps as much or more.
    """

    label: str
    policy: str
    ratio: float | None
    read: float
    cost: float | None
    kept: float
    worst: float
    on_front: bool


def points(labels: Sequence[str], summaries: Sequence[dict[str, Any]]) -> list[Point]:
    """The replays in which attention ran over a selection, in their order."""
    measured = [
        (label, summary["selection"])
        for label, summary in zip(labels, summaries, strict=True)
        if summary["selection"] is not None and summary["selection"]["retained_mass"] is not None
    ]
    places = [(chosen["read_share"], chosen["retained_mass"]["mean"]) for _, chosen in measured]
    return [
        Point(
            label=label,
            policy=chosen["policy"],
            ratio=chosen["ratio"],
            read=read,
            cost=chosen.get("read_and_choose_share"),
            kept=kept,
            worst=chosen["retained_mass"]["min"],
            on_front=not any(_beats(other, (read, kept)) for other in places),
        )
        for (label, chosen), (read, kept) in zip(measured, places, strict=True)
    ]


def _beats(other: tuple[float, float], this: tuple[float, float]) -> bool:
    return other[0] <= this[0] and other[1] >= this[1] and other != this


def chart(kept: Sequence[Point], facts: Sequence[str]) -> Chart:
    """Mass kept against K/V read, and against all bytes where those were counted; a colour a policy, the front dashed.

    `facts` go into the caption, before what the numbers mean.
    """
    mass = Axis("mass kept, mean", "%", limits=(0, 100))
    panels = [_panel(kept, "K/V tokens read", [point.read for point in kept], Axis("read", "% of those held"), mass)]
    costs = [point.cost for point in kept if point.cost is not None]
    if len(costs) == len(kept):
        axis = Axis("bytes read and to choose", "% of full attention's")
        panels.append(_panel(kept, "all bytes, those for choosing too", costs, axis, mass))
    meaning = (
        "mass kept = exp(lse of the selected − lse of all), mean over steps, layers, sequences and query heads",
        "dashed: no other replay keeps as much and reads as little",
    )
    return Chart("pareto", "What selections keep against what they read", tuple(panels), (*facts, *meaning))


def _panel(kept: Sequence[Point], title: str, cost: Sequence[float], x: Axis, y: Axis) -> Panel:
    drawn = []
    for place, policy in enumerate(dict.fromkeys(point.policy for point in kept)):
        own = [(100 * c, 100 * p.kept) for p, c in zip(kept, cost, strict=True) if p.policy == policy]
        columns = list(zip(*own, strict=True))
        drawn.append(series(policy, "points", columns[0], columns[1], _COLORS[place % len(_COLORS)]))
    places = [(c, p.kept) for p, c in zip(kept, cost, strict=True)]
    front = sorted({place for place in places if not any(_beats(other, place) for other in places)})
    if len(front) > 1:
        columns = list(zip(*front, strict=True))
        low, high = ([100 * value for value in column] for column in columns)
        drawn.append(series("best", "line", low, high, 0, dashed=True))
    return Panel(title, x, y, tuple(drawn))


_COLORS = (5, 6, 3, 1, 7, 2, 8, 4)
