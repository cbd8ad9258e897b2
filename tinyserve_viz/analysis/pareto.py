"""What selections keep against what they read: which of several replays no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
