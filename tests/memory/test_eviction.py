"""Every eviction policy against a model that ranks the cached-free blocks from their history alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyserve_viz.analysis.sentences import BELADY_SHIFT
from tinyserve_viz.core.events import EMPTY
from tinyserve_viz.core.state import RUNNING, CacheState
from tinyserve_viz.core.workload import Workload
from tinyserve_viz.memory.policies.eviction import EVICTION, belady

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


def asked_for(*requests: list[int]) -> Workload:
    """A workload whose requests ask for these contents, in this order."""
    num = len(requests)
    ones, minus, zeros = np.ones(num, dtype=np.int32), np.full(num, -1, dtype=np.int32), np.zeros(num, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in requests])]).astype(np.int64)
    flat = np.array([content for r in requests for content in r], dtype=np.int32)
    seqs = np.arange(num, dtype=np.int32)
    names = tuple(f"r{i}" for i in range(num))
    columns = (zeros, ones * 16, ones, ones, minus, minus, zeros - 1, ones * 0)
    return Workload(names, *columns, NUM, flat, offsets, seqs, seqs)


def test_belady_gives_up_what_is_asked_for_again_last_and_ties_in_the_order_of_release() -> None:
    workload = asked_for([0, 1], [2, 3], [1, 4], [0], [3])
    state = CacheState(workload, NUM, 16)
    state.status[:2] = RUNNING  # r0 and r1 were admitted; r2 asks for 1, r3 for 0, r4 for 3, nobody for 2
    state.cached.push_back(np.array([5, 6, 7, 8], dtype=np.int32))
    state.hash[[5, 6, 7, 8]] = [1, 0, 2, 3]
    state.num_cached_free = 4
    event = belady.policy_for(workload)(state, 3)
    assert event.blocks.tolist() == [7, 8, 6]
    assert (event.keys >> belady.NEXT_SHIFT).tolist() == [0, 1, 2]
    assert (event.runner_up, event.runner_up_key >> belady.NEXT_SHIFT) == (5, 3)
    state.hash[[5, 6, 7, 8]] = [2, 2, 3, 2]
    assert belady.policy_for(workload)(state, 4).blocks.tolist() == [5, 6, 8, 7]


@given(st.lists(st.lists(st.integers(0, NUM - 1), max_size=5, unique=True), min_size=1, max_size=8), st.data())
def test_the_next_request_is_that_of_a_scan_wherever_one_asks(requests: list[list[int]], data: st.DataObject) -> None:
    future = belady.Future(asked_for(*requests))
    for position in data.draw(st.lists(st.integers(0, len(requests)), min_size=1, max_size=5)):
        later = [
            next((r for r in range(position, len(requests)) if content in requests[r]), len(requests))
            for content in range(NUM)
        ]
        assert future.next_request(position).tolist() == later


def test_the_sentence_reads_the_keys_of_belady_as_they_are_made() -> None:
    assert BELADY_SHIFT == belady.NEXT_SHIFT
