"""Prefix-cache curves against a cache that keeps a plain list and looks at everything every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyserve_viz.analysis.curve import POLICIES, CurvePoint, References, hit_curve


def references(blocks: list[int], tokens: list[int] | None = None) -> References:
    weights = [10] * len(blocks) if tokens is None else tokens
    return References(
        np.array(blocks, dtype=np.int32), np.array(weights, dtype=np.int64), max(blocks, default=-1) + 1, sum(weights)
    )


def plain_cache(policy: str, blocks: list[int], tokens: list[int], capacity: int) -> tuple[int, int]:
    """(hits, tokens in them), by the definition of each policy; `pool` is in order of insertion, oldest first."""
    pool: list[int] = []
    last_use: dict[int, int] = {}
    uses: dict[int, int] = {}
    hits = hit_tokens = 0
    for now, block in enumerate(blocks):
        if block in pool:
            hits += 1
            hit_tokens += tokens[now]
            uses[block] += 1
        else:
            if len(pool) == capacity:
                pool.remove(_victim(policy, pool, last_use, uses, blocks[now:]))
            pool.append(block)
            uses[block] = 0
        last_use[block] = now
    return hits, hit_tokens


def _victim(policy: str, pool: list[int], last_use: dict[int, int], uses: dict[int, int], future: list[int]) -> int:
    if policy == "lru":
        return min(pool, key=last_use.__getitem__)
    if policy == "lfu":
        return min(pool, key=uses.__getitem__)  # of equals the first, which was inserted earliest
    if policy == "belady":
        return max(pool, key=lambda block: future.index(block) if block in future else len(future))
    while policy == "clock" and uses[pool[0]]:
        uses[pool[0]] = 0
        pool.append(pool.pop(0))
    return pool[0]


@pytest.mark.parametrize("policy", POLICIES)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 16)), max_size=80), st.data())
def test_a_curve_equals_one_plain_cache_per_capacity(
    policy: str, stream: list[tuple[int, int]], data: st.DataObject
) -> None:
    blocks, tokens = [block for block, _ in stream], [weight for _, weight in stream]
    capacities = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    points = hit_curve(references(blocks, tokens), policy, capacities)
    assert [(point.hits, point.hit_tokens) for point in points] == [
        plain_cache(policy, blocks, tokens, capacity) for capacity in capacities
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_long_skewed_streams_agree_too(policy: str) -> None:
    random = np.random.default_rng(3)
    blocks = np.minimum(random.zipf(1.3, 1500), 200).astype(int).tolist()
    capacities = [1, 2, 7, 31, 64, 150]
    points = hit_curve(references(blocks), policy, capacities)
    assert [point.hits for point in points] == [
        plain_cache(policy, blocks, [10] * len(blocks), capacity)[0] for capacity in capacities
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pool_without_end_hits_all_but_first_references(policy: str) -> None:
    (point,) = hit_curve(references([0, 1, 0, 2, 1, 0], [4, 4, 4, 4, 3, 4]), policy, [None])
    assert point == CurvePoint(policy, None, 3, 11, 3 / 6, 11 / 23)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stream_without_references_has_rates_of_zero(policy: str) -> None:
    empty = References(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64), 0, 500)
    assert hit_curve(empty, policy, [5, None]) == [
        CurvePoint(policy, 5, 0, 0, 0.0, 0.0),
        CurvePoint(policy, None, 0, 0, 0.0, 0.0),
    ]


@given(st.lists(st.integers(0, 9), max_size=60))
def test_no_policy_hits_more_often_than_belady(blocks: list[int]) -> None:
    best = [point.hits for point in hit_curve(references(blocks), "belady", [1, 2, 4])]
    for policy in POLICIES:
        assert all(
            point.hits <= most
            for point, most in zip(hit_curve(references(blocks), policy, [1, 2, 4]), best, strict=True)
        )
