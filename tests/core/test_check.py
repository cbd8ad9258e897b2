"""Every kind of damage to a state is found by `check`, under the invariant that it breaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.engine.scenario import Scenario, req
from tinyserve_viz.core import events as ev
from tinyserve_viz.core.check import StepChecker, check
from tinyserve_viz.core.state import CacheState
from tinyserve_viz.engine.replay import Engine

Damage = Callable[[CacheState], None]


def sound_state() -> CacheState:
    """Two samples share two cached blocks and have parted at the third; z left a cached block, others are free."""
    taken: list[CacheState] = []

    def look(engine: Engine, event: ev.Event) -> None:
        if isinstance(event, ev.StepEnded) and event.num_decoding == 2 and not taken:
            taken.append(engine.state.copy())

    Scenario(req("z", 4, 0, [9]), req("a", 10, 3, [1, 2], n=2, at=400_000), num_blocks=8, each=look)
    (state,) = taken
    assert check(state) == []
    return state


def blocks_of(state: CacheState) -> tuple[int, int, int]:
    """(a block in use and cached, a cached block without a reference, a free block)."""
    used = int(np.flatnonzero((state.ref > 0) & (state.hash >= 0))[0])
    idle = int(np.flatnonzero((state.ref == 0) & (state.hash >= 0))[0])
    return used, idle, int(state.free.front(1)[0])


def one_more_used(state: CacheState) -> None:
    state.num_used += 1


def one_more_cached(state: CacheState) -> None:
    state.num_cached_free += 1


def one_more_token(state: CacheState) -> None:
    state.resident_tokens += 1


def one_more_reference(state: CacheState) -> None:
    state.ref[blocks_of(state)[0]] += 1


def another_block_in_a_table(state: CacheState) -> None:
    state.tables[state.slot[1], 0] = state.tables[state.slot[1], 2]


def missing_from_the_free_order(state: CacheState) -> None:
    state.free.remove(state.free.front(1))


def free_and_in_use(state: CacheState) -> None:
    state.free.push_back(np.array([blocks_of(state)[0]], dtype=np.int32))


def missing_from_the_cached_order(state: CacheState) -> None:
    state.cached.remove(state.cached.front(1))


def an_entry_beyond_the_held_blocks(state: CacheState) -> None:
    state.tables[state.slot[1], 3] = 0


def a_hole_in_a_table(state: CacheState) -> None:
    state.tables[state.slot[1], 1] = -1


def ranges_that_overlap(state: CacheState) -> None:
    state.reserved_start[1:3], state.reserved_len[1:3] = (0, 4), (5, 5)


def a_range_beyond_the_pool(state: CacheState) -> None:
    state.reserved_start[1], state.reserved_len[1] = 30, 5


def an_index_without_the_block(state: CacheState) -> None:
    state.block_of_hash[state.hash[blocks_of(state)[1]]] = -1


def an_index_to_another_block(state: CacheState) -> None:
    used, idle, _ = blocks_of(state)
    state.block_of_hash[state.hash[idle]] = used


def a_cached_block_that_is_not_full(state: CacheState) -> None:
    state.fill[blocks_of(state)[1]] = 3


def contents_in_the_wrong_order(state: CacheState) -> None:
    first, second = state.table(1)[:2].tolist()
    state.hash[[first, second]] = state.hash[[second, first]]
    state.block_of_hash[state.hash[[first, second]]] = [first, second]


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        (one_more_used, "I1"),
        (one_more_cached, "I1"),
        (one_more_token, "I1"),
        (one_more_reference, "I2"),
        (another_block_in_a_table, "I2"),
        (missing_from_the_free_order, "I3"),
        (free_and_in_use, "I3"),
        (missing_from_the_cached_order, "I3"),
        (an_entry_beyond_the_held_blocks, "I4"),
        (a_hole_in_a_table, "I4"),
        (ranges_that_overlap, "I4"),
        (a_range_beyond_the_pool, "I4"),
        (an_index_without_the_block, "I7"),
        (an_index_to_another_block, "I7"),
        (a_cached_block_that_is_not_full, "I7"),
        (contents_in_the_wrong_order, "I7"),
    ],
)
def test_damage_is_reported_under_its_invariant(damage: Damage, invariant: str) -> None:
    state = sound_state()
    damage(state)
    assert invariant in {violation.invariant for violation in check(state)}


def test_checking_changes_nothing() -> None:
    state = sound_state()
    before = state.copy()
    check(state)
    assert state.equals(before)


@pytest.mark.parametrize(("damage", "invariant"), [(one_more_reference, "I2"), (one_more_cached, "I1")])
def test_damage_to_a_block_that_a_step_names_is_found_in_that_step(damage: Damage, invariant: str) -> None:
    state = sound_state()
    checker = StepChecker(state, full_every=10**9)
    checker._references[:] = state.ref
    block = blocks_of(state)[0]
    damage(state)
    checker.add(1, ev.BlocksCached(np.array([block], dtype=np.int32), state.hash[[block]]))
    ended = ev.StepEnded(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ev.EMPTY)
    checker.add(1, ended)
    assert invariant in {violation.invariant for violation in checker.violations}


def test_a_write_into_a_shared_block_is_reported() -> None:
    state = sound_state()
    checker = StepChecker(state)
    state.last_written = state.table(1)[:1].copy()
    checker.add(1, ev.TokensWritten(np.array([1], dtype=np.int32), ev.EMPTY, ev.EMPTY))
    assert [violation.invariant for violation in checker.violations] == ["I5"]
