"""Which selections no other one beats, and the picture of it."""

from __future__ import annotations

from typing import Any

from tinyserve_viz.analysis.pareto import NOT_BY_SHARE, chart, points
from tinyserve_viz.memory.policies.selection import SELECTION


def summary(read: float, kept: float, cost: float | None = None, policy: str = "paper") -> dict[str, Any]:
    mass = {"mean": kept, "min": kept / 2}
    found = {"policy": policy, "ratio": 0.3, "read_share": read, "retained_mass": mass}
    return {"selection": found if cost is None else {**found, "read_and_choose_share": cost}}


def test_a_replay_is_on_the_front_unless_another_reads_no_more_and_keeps_no_less() -> None:
    found = points(
        ["cheap", "good", "worse", "same", "no kernels", "no attention"],
        [
            summary(0.1, 0.5),
            summary(0.3, 0.9),
            summary(0.3, 0.8),
            summary(0.1, 0.5),
            {"selection": None},
            {"selection": {**summary(0.2, 0.5)["selection"], "retained_mass": None}},
        ],
    )
    assert [(point.label, point.on_front) for point in found] == [
        ("cheap", True), ("good", True), ("worse", False), ("same", True)
    ]  # fmt: skip
    assert (found[1].read, found[1].kept, found[1].worst) == (0.3, 0.9, 0.45)


def test_the_chart_has_a_series_a_policy_and_the_front_and_all_bytes_where_they_are_known() -> None:
    kept = points(["a", "b", "c"], [summary(0.1, 0.5), summary(0.3, 0.9), summary(0.4, 0.6, policy="random")])
    (panel,) = chart(kept, ["trace x"]).panels
    assert [(s.name, s.x.tolist(), s.y.tolist()) for s in panel.series] == [
        ("paper", [10.0, 30.0], [50.0, 90.0]), ("random", [40.0], [60.0]), ("best", [10.0, 30.0], [50.0, 90.0])
    ]  # fmt: skip
    counted = points(["a", "b"], [summary(0.1, 0.5, 0.2), summary(0.3, 0.9, 0.15)])
    _, costs = chart(counted, []).panels
    assert costs.series[0].x.tolist() == [20.0, 15.0]
    assert [s.name for s in costs.series] == ["paper"]  # one of them beats the other: no front to draw


def test_selections_with_a_budget_of_their_own_are_those_of_the_policies() -> None:
    assert set(NOT_BY_SHARE) == {policy.name for policy in SELECTION if policy.budget != "paper"}
