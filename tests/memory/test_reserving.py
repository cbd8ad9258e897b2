"""The baseline allocators: how much they reserve, and where."""

from __future__ import annotations

import numpy as np
import pytest

from tests.memory.test_eviction import empty_state
from tinyserve_viz.memory.reserving import ReservingManager


@pytest.mark.parametrize(
    ("kind", "prompt", "output", "slots"),
    [
        ("contiguous", 100, 7, 4096),
        ("pow2", 100, 0, 100),
        ("pow2", 100, 1, 101),
        ("pow2", 100, 2, 102),
        ("pow2", 100, 5, 108),
        ("pow2", 100, 8, 108),
        ("pow2", 100, 9, 116),
        ("exact", 100, 9, 109),
    ],
)
def test_each_kind_reserves_what_it_says(kind: str, prompt: int, output: int, slots: int) -> None:
    assert ReservingManager(kind, 4096).slots_for(prompt, output) == slots


def test_the_first_hole_that_is_long_enough_is_taken() -> None:
    state = empty_state()  # 12 blocks of 16: 192 slots
    state.reserved_start = np.array([20, 60, 130], dtype=np.int64)
    state.reserved_len = np.array([10, 50, 40], dtype=np.int64)
    manager = ReservingManager("exact", 0)
    where = {length: manager.reserve(state, 0, [0], length) for length in (20, 21, 30, 31)}
    found = [(event.start, event.holes_passed) for events in where.values() if events for event in events]
    assert found == [(0, 0), (30, 1), (30, 1)]
    assert where[31] is None  # holes of 20, 30, 20 and 22 slots


def test_several_ranges_are_found_one_after_the_other_or_not_at_all() -> None:
    state = empty_state()
    state.reserved_start = np.array([20, 60, 130], dtype=np.int64)
    state.reserved_len = np.array([10, 50, 40], dtype=np.int64)
    manager = ReservingManager("exact", 0)
    events = manager.reserve(state, 0, [0, 1, 2, 3], 15)
    assert events is not None
    assert [(event.seq, event.start) for event in events] == [(0, 0), (1, 30), (2, 45), (3, 110)]
    assert manager.reserve(state, 0, [0, 1, 2], 21) is None  # 30 and 22 are long enough, no third hole
