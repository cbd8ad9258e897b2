"""Hit rates under their own names, the bound, the two meters and the hot region, summed from events written by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tinyserve_viz.analysis.quality import (
    HotRegionTotals,
    QualityTotals,
    near_chance,
    requests_by_region,
    skill,
    verdict,
)
from tinyserve_viz.core import events as ev


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def f32(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def chosen(**fields: object) -> ev.BlocksSelected:
    """One sequence of four blocks, two choices of two blocks each, two query heads a choice."""
    none = np.zeros(0, dtype=np.float32)
    event = ev.BlocksSelected(
        layer=0, policy="paper", seqs=ids(0), num_heads=2, counts=ids(2, 2), selected=ids(0, 3, 1, 3),
        requirements=ids(1), priorities=np.zeros(1, dtype=np.int8), complexity=f32(0.3), row_scores=f32(0.42),
        retained=f32(0.5, 1.0, 0.75, 0.75), output_errors=none, tokens_read=60, tokens_held=120,
    )  # fmt: skip
    return replace(event, **fields)  # type: ignore[arg-type]


def test_every_hit_rate_has_its_own_name_and_its_own_mean() -> None:
    totals = QualityTotals()
    totals.add(
        chosen(recalls=f32(1.0, 0.5), chances=f32(0.5, 0.5), reuses=f32(-1, -1), next_recalls=f32(-1, -1),
               oracle_retained=f32(0.9, 1.0, 0.9, 0.8), slack_least=f32(0.0, 2.0), slack_mean=f32(1.0, 3.0))
    )  # fmt: skip
    totals.add(
        chosen(recalls=f32(0.5, 0.5), chances=f32(0.5, 0.5), reuses=f32(1.0, 0.5), next_recalls=f32(0.5, 0.0),
               oracle_retained=f32(0.9, 1.0, 0.9, 0.8), slack_least=f32(-0.5, 2.0), slack_mean=f32(1.0, 3.0))
    )  # fmt: skip
    section = totals.as_dict(prefix_hit=0.25, hot_region_hit=None)
    assert section["hit_rates"] == {
        "prefix_hit": 0.25,
        "selection_recall": 0.625,
        "temporal_reuse": 0.75,  # the sequence had no step before its first
        "next_step_recall": 0.25,
        "hot_region_hit": None,
    }
    assert section["chance_recall"] == 0.5
    assert section["skill"] == 0.25
    assert section["retained_mass"] == {"mean": 0.75, "min": 0.5, "oracle_mean": pytest.approx(0.9)}
    assert section["bound"] == {"least_slack": -0.5, "mean_slack": 2.0, "broken": 1, "checked": 4}


def test_bytes_read_and_bytes_resident_are_two_meters() -> None:
    totals = QualityTotals()
    meters = {"bytes_read": 100, "bytes_to_choose": 20, "bytes_dense": 400}
    for layer, resident in ((0, 1000), (1, 1000), (0, 3000), (1, 3000)):  # two steps of two layers
        totals.add(chosen(layer=layer, bytes_resident=resident, **meters))
    section = totals.as_dict(None, None)
    assert section["bytes"] == {
        "read": 400, "to_choose": 80, "dense": 1600, "resident_mean": 4000.0, "resident_peak": 6000.0,
    }  # fmt: skip
    assert section["read_and_choose_share"] == 0.3
    assert section["resident_share"] == 1.0


@pytest.mark.parametrize(
    ("recall", "chance", "expected"), [(0.3, 0.3, 0.0), (1.0, 0.3, 1.0), (0.65, 0.3, 0.5), (1.0, 1.0, 1.0)]
)
def test_skill_is_nothing_for_a_draw_by_lot_and_one_for_the_oracle(
    recall: float, chance: float, expected: float
) -> None:
    assert skill(recall, chance) == pytest.approx(expected)


def test_near_chance_is_said_in_words_and_iid_content_is_named() -> None:
    assert near_chance(0.38, 0.30)  # the box score on iid keys in blocks of 16
    assert not near_chance(0.6, 0.1)
    assert not near_chance(1.0, 1.0)  # everything was kept
    assert verdict("paper", "npz", 0.585, 0.0625) == (
        "paper found 58 % of the oracle's choice, a draw by lot finds 6 %"
    )
    assert verdict("paper", "iid", 0.38, 0.30) == (
        "paper found 38 % of the oracle's choice, a draw by lot finds 30 %: near chance; the content is iid, no block "
        "says anything about its tokens: this says nothing of real attention"
    )
    assert verdict("paper", "topics", None, None) == "not compared with true attention"


def placed(regions: list[int], reasons: list[int], size: int, **more: object) -> ev.BlocksPlaced:
    i8 = [np.array(column, dtype=np.int8) for column in (regions, reasons)]
    blocks = np.arange(len(regions), dtype=np.int32)
    return ev.BlocksPlaced(blocks, i8[0], i8[1], blocks + 1, size, 0, 0, **more)  # type: ignore[arg-type]


def test_a_placement_tells_what_the_request_was_and_where_it_went() -> None:
    # own region: hot in hot (0), cold in cold (1); other region: cold in hot (0), hot in cold (1)
    event = placed([0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 2, 3], 8)
    assert requests_by_region(event).tolist() == [2, 1, 2, 1]


def test_the_hot_region_counts_what_it_gave_kept_out_and_lost() -> None:
    totals = HotRegionTotals()
    assert totals.as_dict() is None
    assert totals.hit_rate is None
    levels = np.array([0, 2, 0, 0, 1, 3], dtype=np.int8)
    totals.add(placed([0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 2, 3], 8, levels=levels, spared_by_region=2, spared_by_level=1))
    totals.add(placed([], [], 10))
    totals.add(placed([], [], 9))
    totals.add(placed([], [], 9))
    assert totals.hit_rate == pytest.approx(2 / 3)
    assert totals.as_dict() == {
        "hot_hits": 2,
        "hot_misses": 1,
        "cold_kept_out": 2,
        "cold_intruded": 1,
        "evicted_in_hot": 2,
        "evicted_in_cold": 1,
        "evicted_by_level": [1, 0, 1, 1, 0],
        "spared_by_region": 2,
        "spared_by_level": 1,
        "size": {"first": 8, "last": 9, "min": 8, "max": 10, "grown": 1, "shrunk": 1},
    }
