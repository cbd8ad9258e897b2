"""What the choices of a replay were worth, summed from its events: mass kept, hit rates by name, bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyserve_viz.core import events as ev

NEAR_CHANCE = 0.3  # skill below it; on iid keys in blocks of 16 the box score has .25, on captured ones over .5
REGION_KINDS = (
    "hot request, hot block",
    "hot request, cold block",
    "cold request, cold block",
    "cold request, hot block",
)


class Mean:
    """Count, sum, least and greatest of the numbers added."""

    __slots__ = ("count", "greatest", "least", "total")

    def __init__(self) -> None:
        self.count, self.total, self.least, self.greatest = 0, 0.0, np.inf, -np.inf

    def add(self, values: NDArray[Any]) -> None:
        """Take an array."""
        if len(values):
            self.count += len(values)
            self.total += float(values.sum(dtype=np.float64))
            self.least = min(self.least, float(values.min()))
            self.greatest = max(self.greatest, float(values.max()))

    @property
    def mean(self) -> float | None:
        """None when nothing was added."""
        return self.total / self.count if self.count else None


class QualityTotals:
    """Sums over all `BlocksSelected`; every mean is over (step, layer, sequence, head), bytes over (step, layer)."""

    def __init__(self) -> None:
        self.policy: str | None = None
        self.rows = self.tokens_read = self.tokens_held = 0
        self.retained, self.errors, self.oracle = Mean(), Mean(), Mean()
        self.recall, self.chance, self.reuse, self.next_recall = Mean(), Mean(), Mean(), Mean()
        self.slack_least, self.slack_mean = Mean(), Mean()
        self.bound_broken = 0
        self.bytes = dict.fromkeys(("read", "to_choose", "dense"), 0)
        self._resident_of_step = 0
        self.resident = Mean()

    def add(self, event: ev.BlocksSelected) -> None:
        """Take the choices of one layer; layer 0 begins a step."""
        self.policy = event.policy
        self.rows += len(event.seqs)
        self.tokens_read += event.tokens_read
        self.tokens_held += event.tokens_held
        self.retained.add(event.retained)
        self.errors.add(event.output_errors)
        self.oracle.add(event.oracle_retained)
        self.recall.add(event.recalls)
        self.chance.add(event.chances)
        self.reuse.add(event.reuses[event.reuses >= 0])
        self.next_recall.add(event.next_recalls[event.next_recalls >= 0])
        self.slack_least.add(event.slack_least)
        self.slack_mean.add(event.slack_mean)
        self.bound_broken += int((event.slack_least < 0).sum())
        self.bytes["read"] += event.bytes_read
        self.bytes["to_choose"] += event.bytes_to_choose
        self.bytes["dense"] += event.bytes_dense
        if event.layer == 0:
            self._close_step()
        self._resident_of_step += event.bytes_resident

    def _close_step(self) -> None:
        if self._resident_of_step > 0:
            self.resident.add(np.array([self._resident_of_step], dtype=np.float64))
        self._resident_of_step = 0

    def as_dict(self, prefix_hit: float | None, hot_region_hit: float | None) -> dict[str, Any]:
        """The keys of the section `selection` that say how good the choices were (docs/selection.md)."""
        self._close_step()
        recall, chance = self.recall.mean, self.chance.mean
        return {
            "rows": self.rows,
            "retained_mass": None
            if self.retained.mean is None
            else {"mean": self.retained.mean, "min": self.retained.least, "oracle_mean": self.oracle.mean},
            "output_error": None
            if self.errors.mean is None
            else {"mean": self.errors.mean, "max": self.errors.greatest},
            "hit_rates": {
                "prefix_hit": prefix_hit,
                "selection_recall": recall,
                "temporal_reuse": self.reuse.mean,
                "next_step_recall": self.next_recall.mean,
                "hot_region_hit": hot_region_hit,
            },
            "chance_recall": chance,
            "skill": None if recall is None or chance is None else skill(recall, chance),
            "bound": None
            if self.slack_least.mean is None
            else {
                "least_slack": self.slack_least.least,
                "mean_slack": self.slack_mean.mean,
                "broken": self.bound_broken,
                "checked": self.slack_least.count,
            },
            "bytes": {
                **self.bytes,
                "resident_mean": self.resident.mean,
                "resident_peak": None if self.resident.mean is None else self.resident.greatest,
            },
            "read_share": self.tokens_read / self.tokens_held if self.tokens_held else None,
            "read_and_choose_share": (self.bytes["read"] + self.bytes["to_choose"]) / self.bytes["dense"]
            if self.bytes["dense"]
            else None,
            "resident_share": 1.0,  # a choice is what is read; no block is given back for not being chosen
        }


def skill(recall: float, chance: float) -> float:
    """How far a recall stands between a draw by lot (0) and the oracle (1); 1 where nothing can be missed."""
    return 1.0 if chance >= 1 else (recall - chance) / (1 - chance)


def near_chance(recall: float, chance: float) -> bool:
    """Whether a choice found hardly more of the oracle's than a draw by lot would."""
    return chance < 1 and skill(recall, chance) < NEAR_CHANCE


def verdict(policy: str, content_kind: str, recall: float | None, chance: float | None) -> str:
    """What the recall of the oracle's choice is worth, in words."""
    if recall is None or chance is None:
        return "not compared with true attention"
    found = f"{policy} found {100 * recall:.0f} % of the oracle's choice, a draw by lot finds {100 * chance:.0f} %"
    if near_chance(recall, chance):
        found += ": near chance"
    if content_kind == "iid":
        found += "; the content is iid, no block says anything about its tokens: this says nothing of real attention"
    return found


def requests_by_region(event: ev.BlocksPlaced) -> NDArray[np.int64]:
    """How many of the placed blocks are of each of `REGION_KINDS`, int64 [4].

    A block in its request's own region (reason 0 or 1) tells what the request was, one in the other region too.
    """
    own, cold_block = event.reasons < 2, event.regions == 1
    hot_request = own != cold_block
    kinds = np.where(hot_request, np.where(cold_block, 1, 0), np.where(cold_block, 2, 3))
    return np.bincount(kinds, minlength=4)


class HotRegionTotals:
    """Sums over all `BlocksPlaced`: what the hot region gave, kept out, lost and how its size went."""

    def __init__(self) -> None:
        self.kinds = np.zeros(4, dtype=np.int64)
        self.evicted_hot = self.evicted_cold = self.spared_by_region = self.spared_by_level = 0
        self.evicted_by_level = np.zeros(5, dtype=np.int64)
        self.sizes: list[int] = []
        self.grown = self.shrunk = 0

    def add(self, event: ev.BlocksPlaced) -> None:
        """Take a placement or a change of size."""
        self.kinds += requests_by_region(event)
        evicted = (event.reasons == 1) | (event.reasons == 3)
        self.evicted_hot += int((evicted & (event.regions == 0)).sum())
        self.evicted_cold += int((evicted & (event.regions == 1)).sum())
        self.spared_by_region += event.spared_by_region
        self.spared_by_level += event.spared_by_level
        if len(event.levels):
            self.evicted_by_level += np.bincount(event.levels[evicted], minlength=5)
        if self.sizes and event.hot_size != self.sizes[-1]:
            self.grown += event.hot_size > self.sizes[-1]
            self.shrunk += event.hot_size < self.sizes[-1]
        if not self.sizes or event.hot_size != self.sizes[-1]:
            self.sizes.append(event.hot_size)

    @property
    def hit_rate(self) -> float | None:
        """Share of the hot requests that got a block of the hot region."""
        hot = int(self.kinds[0] + self.kinds[1])
        return int(self.kinds[0]) / hot if hot else None

    def as_dict(self) -> dict[str, Any] | None:
        """The section `selection.hot_region`; None under another eviction policy."""
        if not self.sizes:
            return None
        hot_hits, hot_misses, kept_out, intruded = self.kinds.tolist()
        return {
            "hot_hits": hot_hits,
            "hot_misses": hot_misses,
            "cold_kept_out": kept_out,
            "cold_intruded": intruded,
            "evicted_in_hot": self.evicted_hot,
            "evicted_in_cold": self.evicted_cold,
            "evicted_by_level": self.evicted_by_level.tolist(),
            "spared_by_region": self.spared_by_region,
            "spared_by_level": self.spared_by_level,
            "size": {
                "first": self.sizes[0],
                "last": self.sizes[-1],
                "min": min(self.sizes),
                "max": max(self.sizes),
                "grown": self.grown,
                "shrunk": self.shrunk,
            },
        }
