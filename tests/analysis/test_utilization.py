"""Utilisation counted from lengths, against a sum over every step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyserve_viz.analysis import utilization as use

LENGTHS = st.lists(st.tuples(st.integers(1, 90), st.integers(0, 40)), min_size=1, max_size=6)


def columns(lengths: list[tuple[int, int]]) -> tuple[use.I64, use.I64]:
    pairs = np.array(lengths, dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


@given(LENGTHS, st.integers(1, 20))
def test_the_closed_form_is_the_sum_over_every_decode_step(lengths: list[tuple[int, int]], block_size: int) -> None:
    prompt, output = columns(lengths)
    contexts = [p + t for p, o in lengths for t in range(1, o + 1)]
    slots = sum(block_size * -(-context // block_size) for context in contexts)
    share = use.paged(prompt, output, block_size)
    assert share == (sum(contexts) / slots if slots else None)
    assert use.mean_length(prompt, output) == (sum(contexts) / len(contexts) if contexts else None)


def test_reserved_slots_count_in_every_step_of_the_request() -> None:
    prompt, output = columns([(10, 2), (4, 1)])
    # contexts 11, 12 and 5; reserves 20 twice and 6 once
    assert use.reserved(prompt, output, np.array([20, 6])) == 28 / 46


@pytest.mark.parametrize(("output", "slots"), [(0, 10), (1, 11), (2, 12), (3, 14), (4, 14), (5, 18), (129, 266)])
def test_pow2_reserves_the_prompt_and_the_next_power_of_two(output: int, slots: int) -> None:
    prompt, outputs = columns([(10, output)])
    assert use.pow2_slots(prompt, outputs).tolist() == [slots]


def test_96_per_cent_needs_a_mean_length_of_180_with_blocks_of_16() -> None:
    assert use.length_needed(0.96, 16) == pytest.approx(180)
    assert use.expected_paged(180, 16) == pytest.approx(0.96)
    assert use.expected_paged(512, 16) == pytest.approx(0.9856, abs=1e-4)
