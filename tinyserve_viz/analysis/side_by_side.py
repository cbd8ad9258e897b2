"""What two or more replays came to, side by side: which numbers of a summary are compared, and what each means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a summary, `path` in the object of `replay --json`; `form`: count, percent, seconds or share."""

    name: str
    path: tuple[str, ...]
    form: str
    definition: str


METRICS: tuple[Metric, ...] = (
    Metric("completed", ("requests", "completed"), "count", "requests that wrote all their tokens"),
    Metric("rejected", ("requests", "rejected"), "count", "requests that can never run"),
    Metric("preemptions", ("requests", "preemptions"), "count", "sequences that gave up their blocks"),
    Metric("tokens lost", ("tokens", "lost_to_preemption"), "count", "computed tokens that preemptions threw away"),
    Metric("steps", ("steps",), "count", "engine steps"),
    Metric("simulated", ("virtual_time_s",), "seconds", "simulated time of the whole replay, by its clock"),
    Metric("prefix hit", ("prefix", "token_hit_rate"), "percent", "prompt tokens found in the prefix cache / all"),
    Metric("evictions", ("blocks", "evictions"), "count", "cached blocks given up"),
    Metric("copies", ("blocks", "copies_on_write"), "count", "blocks copied because a shared one was written"),
    Metric("moves", ("blocks", "compaction_moves"), "count", "blocks moved by compaction"),
    Metric("peak blocks", ("blocks", "peak_used"), "count", "most blocks in use at once"),
    Metric("decode use", ("utilization", "decode"), "percent", "Σ tokens / Σ slots reserved, over decoding sequences"),
    Metric("physical use", ("utilization", "physical"), "percent", "Σ distinct tokens / Σ slots of used blocks"),
    Metric("pool in use", ("utilization", "mean"), "percent", "mean share of the pool that is used"),
    Metric("oracle found", ("selection", "hit_rates", "selection_recall"), "percent", "recall of the oracle's choice"),
    Metric("bytes, of full", ("selection", "read_and_choose_share"), "percent", "bytes read and to choose / of full"),
    Metric("K/V read", ("selection", "read_share"), "percent", "tokens read by the selection / tokens held"),
    Metric("mass kept", ("selection", "retained_mass", "mean"), "share", "mean of exp(lse selected − lse of all)"),
    Metric("mass, worst", ("selection", "retained_mass", "min"), "share", "least of the same"),
    Metric("output error", ("selection", "output_error", "mean"), "share", "mean |selected − full| / |full|"),
)


def value_of(summary: dict[str, Any], metric: Metric) -> Any:
    """The metric in a summary, None where it was not measured."""
    found: Any = summary
    for name in metric.path:
        if found is None:
            return None
        found = found.get(name)
    return found


def measured_in_any(summaries: Sequence[dict[str, Any]]) -> tuple[Metric, ...]:
    """The metrics that at least one of the summaries has, without counts that are 0 in all of them."""
    return tuple(
        metric
        for metric in METRICS
        if any(value_of(s, metric) is not None for s in summaries)
        and not (metric.form == "count" and all(value_of(s, metric) in (None, 0) for s in summaries))
    )


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """theirs − ours of every metric that both have, by name, for JSON."""
    pairs = {metric.name: (value_of(ours, metric), value_of(theirs, metric)) for metric in METRICS}
    return {name: b - a for name, (a, b) in pairs.items() if a is not None and b is not None}


def as_dict(summary: dict[str, Any]) -> dict[str, Any]:
    """All metrics of one summary by name, for JSON."""
    return {metric.name: value_of(summary, metric) for metric in METRICS}
