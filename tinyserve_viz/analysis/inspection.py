"""What a view may ask for: box scores, true attention mass and the work list worked out again; exports and charts.

The recording holds what was chosen; the content is a pure function of the header. Whoever starts a view gives it an
`Inspector`, because views know neither the engine nor the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core.events import F32, I32


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a query saw, float32 [num_kv_heads][blocks]: `score` of every block's box (scaled, so that it bounds the
    largest logit in the block) and `mass`, the true share of the attention (mean over the query heads)."""

    score: F32
    mass: F32


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """How a row's score is made and read, per mille: weights of complexity, requirement and history; the score above
    which its priority is high (medium: half of it); complexities above which its requirement is medium and high."""

    complexity: int
    requirement: int
    history: int
    threshold: int
    medium: int
    high: int


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Tokens that each worker attends over, int64: `before` one worker a sequence, `after` by the work list; each with
    its imbalance, the longest over the mean, in per mille."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    imbalance_before: int
    imbalance_after: int


class Inspector(Protocol):
    """Works out again what no event holds."""

    rule: ScoreRule
    window: int  # steps after which protection levels are adapted
    why_not: str  # why no scores can be made at all, or ""

    def scores(self, seq: int, context: int, layer: int) -> Scores | None:
        """What the query of the last of `context` tokens of `seq` saw; None where that would take too long."""
        ...

    def shares(self, lengths: I32, kept: I32 | None) -> Shares:
        """The work of a step over sequences of `lengths` tokens, or over their `kept` blocks."""
        ...


class Exporter(Protocol):
    """Writes and draws what a whole recording holds; its calls take time and raise TinyserveError."""

    def save(self, name: str, step: int) -> str:
        """Write the export that the file's name says, tables of one moment at `step`; returns what was written."""
        ...

    def chart(self, kind: str) -> Callable[[int, int], list[str]]:
        """Read the chart of that kind; what is returned draws it in so many columns and lines a panel."""
        ...
