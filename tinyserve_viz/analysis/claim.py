"""A published claim beside our numbers: who says what, what is wrong or open about it, what we count or measure.

`●` measured on a device, `◐` counted or modelled, `○` claimed by someone else; the three never mix in one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MEASURED, COUNTED, CLAIMED, NOT_MEASURED = "●", "◐", "○", "–"
MARKS = {MEASURED: "measured", COUNTED: "counted or modelled", CLAIMED: "claimed", NOT_MEASURED: "not measured"}


@dataclass(frozen=True, slots=True)
class Number:
    """One number of ours: `definition` says what is divided by what; `on` the trace, content or device; for a mark –
    there is no value and `definition` says why."""

    name: str
    value: float | int | None
    unit: str
    mark: str
    definition: str
    on: str = ""

    def shown(self) -> str:
        """The value with its unit."""
        if self.value is None:
            return MARKS[NOT_MEASURED]
        if self.unit == "points":
            return f"{100 * self.value:+.2f} points"
        if self.unit == "%":
            return f"{100 * self.value:.2f} %"
        if isinstance(self.value, int):
            return f"{self.value:,} {self.unit}".rstrip()
        digits = 4 if abs(self.value) < 1 else 2
        return f"{self.value:,.{digits}f} {self.unit}".rstrip()


@dataclass(frozen=True, slots=True)
class Claim:
    """What was published: `says` in short, `source`, and what is wrong or undefined about it."""

    name: str
    says: str
    source: str
    wrong: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Our numbers for one claim, and a verdict in words that follows from them."""

    claim: Claim
    numbers: tuple[Number, ...]
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the marks in words."""
        c = self.claim
        numbers = [
            {
                "name": n.name,
                "value": n.value,
                "unit": "share" if n.unit in ("%", "points") else n.unit,
                "mark": n.mark,
                "provenance": MARKS[n.mark],
                "definition": n.definition,
                "on": n.on,
            }
            for n in self.numbers
        ]
        return {
            "name": c.name,
            "says": c.says,
            "source": c.source,
            "wrong_or_undefined": c.wrong,
            "numbers": numbers,
            "verdict": self.verdict,
        }


def counted(name: str, value: float | int, unit: str, definition: str, on: str = "") -> Number:
    """A number with the mark ◐."""
    return Number(name, value, unit, COUNTED, definition, on)


def not_measured(name: str, why: str) -> Number:
    """What cannot be measured here, and why."""
    return Number(name, None, "", NOT_MEASURED, why)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval of the mean (Student's t) over 2 … 10 seeds."""
    n = len(values)
    mean = sum(values) / n
    spread = (sum((value - mean) ** 2 for value in values) / (n - 1)) ** 0.5
    return mean, _T95[n - 2] * spread / n**0.5


_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # two-sided, 1 … 9 degrees of freedom
