"""Every eviction policy against a model that ranks the cached-free blocks from their history alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyserve_viz.core.events import EMPTY
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.memory.policies.eviction import EVICTION

NUM = 12


def empty_state() -> CacheState:
    i32, i64 = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int64)
    one = np.ones(1, dtype=np.int32)
    workload = Workload(
        ("r",),
        i64,
        one * 16,
        one,
        one,
        one * -1,
        one * -1,
        i64 - 1,
        i32,
        NUM,
        EMPTY,
        np.zeros(2, dtype=np.int64),
        i32,
        i32,
    )
    return CacheState(workload, NUM, 16)


def filled(released: list[int], inserted: list[int], uses: list[int], bits: list[int], hand: int) -> CacheState:
    """A state whose blocks `released`, in this order, are cached and free; the others are in use."""
    state = empty_state()
    state.free.remove(np.arange(NUM, dtype=np.int32))
    state.ref[:] = 1
    state.inserted[:] = inserted
    state.uses[:] = uses
    state.clock_bit[:] = bits
    state.clock_hand = hand
    for step, block in enumerate(released):
        state.ref[block] = 0
        state.hash[block] = block
        state.last_use[block] = step
    state.cached.push_back(np.array(released, dtype=np.int32))
    return state


def clock_by_hand(released: list[int], bits: list[int], hand: int, count: int) -> tuple[list[int], set[int]]:
    bits, victims, cleared, at = list(bits), [], set(), hand
    while len(victims) < count:
        if at in released and at not in victims:
            if bits[at]:
                bits[at] = 0
                cleared.add(at)
            else:
                victims.append(at)
        at = (at + 1) % NUM
    return victims, cleared


@st.composite
def pools(draw: st.DrawFn) -> tuple[CacheState, list[int], list[int], list[int], list[int], int, int]:
    released = draw(st.permutations(range(NUM)))[: draw(st.integers(1, NUM))]
    inserted = draw(st.permutations(range(NUM)))
    uses = draw(st.lists(st.integers(1, 3), min_size=NUM, max_size=NUM))
    bits = draw(st.lists(st.integers(0, 1), min_size=NUM, max_size=NUM))
    hand, count = draw(st.integers(0, NUM - 1)), draw(st.integers(1, len(released)))
    return filled(released, inserted, uses, bits, hand), released, inserted, uses, bits, hand, count


@settings(max_examples=150)
@given(pools())
def test_the_victims_are_those_of_the_model(
    pool: tuple[CacheState, list[int], list[int], list[int], list[int], int, int],
) -> None:
    state, released, inserted, uses, bits, hand, count = pool
    ranked = {
        "lru": released,
        "fifo": sorted(released, key=lambda block: inserted[block]),
        "lfu": sorted(released, key=lambda block: (uses[block], inserted[block])),
    }
    for policy, order in ranked.items():
        event = EVICTION[policy](state, count)
        assert event.rule == policy
        assert event.blocks.tolist() == order[:count]
        assert event.hashes.tolist() == order[:count]
        assert event.runner_up == (order[count] if len(order) > count else -1)
        assert (np.diff(event.keys) >= 0).all()
        assert event.hand == hand
    victims, cleared = clock_by_hand(released, bits, hand, count)
    event = EVICTION["clock"](state, count)
    assert event.blocks.tolist() == victims
    assert set(event.cleared.tolist()) == cleared
    assert event.hand == (victims[-1] + 1) % NUM


@pytest.mark.parametrize("policy", sorted(EVICTION))
def test_choosing_changes_nothing(policy: str) -> None:
    state = filled([3, 1, 7], list(range(NUM)), [1] * NUM, [0, 1] * 6, 2)
    before = state.copy()
    EVICTION[policy](state, 2)
    assert state.equals(before)
