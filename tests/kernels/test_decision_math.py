"""The arithmetic that steers, against exact rationals, 40-digit decimals and float64."""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinyserve_viz.kernels.decision_math import (
    decision_exp2,
    decision_log2,
    head_sum,
    lane_dots,
    lane_sum,
    permille,
    reduce_group,
)
from tinyserve_viz.kernels.oracles import decisions as oracle

F = np.float32


def round_to_fp32(value: Fraction) -> np.float32:
    """The fp32 nearest to a rational, ties to even, found by comparing exact distances."""
    guess = F(float(value))
    near = [np.nextafter(guess, F(-np.inf)), guess, np.nextafter(guess, F(np.inf))]
    return min(near, key=lambda x: (abs(Fraction(float(x)) - value), int(np.asarray(x).view(np.uint32)) & 1))


def exact_warp_sum(values: list[float]) -> np.float32:
    """The contract's order with every addition done exactly and then rounded."""

    def add(a: np.float32, b: np.float32) -> np.float32:
        return round_to_fp32(Fraction(float(a)) + Fraction(float(b)))

    lanes = [F(0)] * 32
    for i, value in enumerate(values):
        lanes[i % 32] = add(lanes[i % 32], F(value))
    for distance in (16, 8, 4, 2, 1):
        lanes = [add(lanes[i], lanes[i ^ distance]) for i in range(32)]
    return lanes[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False), min_size=0, max_size=100))
def test_a_lane_sum_is_the_warp_order_with_each_addition_rounded_once(values: list[float]) -> None:
    assert lane_sum(np.array(values, F)) == exact_warp_sum(values)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 80, 96, 100, 127, 128, 256, 1025])
def test_a_lane_sum_of_an_array_is_that_of_each_row(length: int) -> None:
    values = np.random.default_rng(length).standard_normal((3, 4, length)).astype(F) * F(1e3)
    expected = [[oracle.warp_sum(row) for row in plane] for plane in values]
    assert np.array_equal(lane_sum(values), np.array(expected, F))


@pytest.mark.parametrize("shape", [(0, 1, 64), (1, 0, 7), (3, 2, 32), (5, 3, 100), (2049, 2, 64)])
def test_lane_dots_are_lane_sums_of_products_to_the_last_bit(shape: tuple[int, int, int]) -> None:
    n, m, d = shape
    rng = np.random.default_rng(n + d)
    left, right = ((rng.standard_normal((rows, d)) * 10.0 ** rng.integers(-4, 4)).astype(F) for rows in (n, m))
    left[:1, :2] = [np.inf, -0.0]
    with np.errstate(all="ignore"):
        expected = lane_sum(left * right[:, None])
        assert np.array_equal(lane_dots(left, right).view(np.uint32), expected.view(np.uint32))


def test_the_order_of_a_lane_sum_is_not_that_of_a_plain_sum() -> None:
    values = np.zeros(64, F)
    values[[0, 1, 32]] = [2.0**24, 1, -(2.0**24)]
    assert lane_sum(values) == 1  # lane 0 cancels before the 1 arrives
    assert F(2.0**24) + F(1) - F(2.0**24) == 0


def test_a_sum_of_negative_zeros_is_positive_zero() -> None:
    minus = np.full((2, 40), -0.0, F)
    for total in (lane_sum(minus), head_sum(minus, 0), reduce_group(minus, 0, 0), reduce_group(minus, 1, 0)):
        assert not np.signbit(total).any()


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_a_group_is_reduced_in_head_order(reduction: int) -> None:
    values = (np.random.default_rng(3).standard_normal((7, 5)) * 1e6).astype(F)
    values[2, 3] = np.nan
    expected = np.array([oracle.group_value(list(values[:, i]), reduction) for i in range(5)], F)
    assert np.array_equal(reduce_group(values, reduction, axis=0), expected, equal_nan=True)


def test_per_mille_integers_become_the_nearest_quotient() -> None:
    for value in (0, 1, 200, 300, 333, 500, 999, 1000, 12345):
        assert permille(value) == round_to_fp32(Fraction(value, 1000))


def every_mantissa(exponent: int, step: int = 1) -> NDArray[np.float32]:
    bits = np.arange(0x3F800000, 0x40000000, step, dtype=np.int32)
    return np.ldexp(bits.view(F), exponent).astype(F)


def test_exp2_errs_by_less_than_one_part_in_2_to_the_23() -> None:
    x = np.concatenate([np.linspace(-126, 128, 400_003, endpoint=False), np.linspace(-0.5, 0.5, 200_001)]).astype(F)
    x = x[x < 128]
    truth = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(decision_exp2(x) - truth) / truth) < 2.0**-23


def test_log2_errs_by_less_than_2_to_the_23_of_its_size_or_of_one() -> None:
    for exponent in (-126, -100, -2, -1, 0, 1, 7, 127):
        x = every_mantissa(exponent, step=31)
        truth = np.log2(x.astype(np.float64))
        error = np.abs(decision_log2(x) - truth)
        assert np.max(error / np.maximum(1, np.abs(truth))) < 2.0**-23, exponent
        assert np.max(error[truth != 0] / np.abs(truth[truth != 0])) < 2.0**-21, exponent


@pytest.mark.parametrize(
    "x", [-149.5, -126.25, -33.3, -1.0009765625, -0.5, -(2.0**-20), 2.0**-24, 0.3, 0.5, 1.75, 96.1, 127.99]
)
def test_exp2_against_forty_digits(x: float) -> None:
    with localcontext() as context:
        context.prec = 40
        truth = (Decimal(float(F(x))) * Decimal(2).ln()).exp()
        error = abs(Decimal(float(decision_exp2(x))) - truth)
        assert error <= max(truth * Decimal(2) ** -23, Decimal(2) ** -149)


@pytest.mark.parametrize(
    "x", [1e-45, 3e-40, 1.2e-38, 0.1, 0.70710677, 0.7071068, 0.9999999, 1.0000001, 1.4142135, 1.4142137, 3, 1e38]
)
def test_log2_against_forty_digits(x: float) -> None:
    with localcontext() as context:
        context.prec = 40
        truth = Decimal(float(F(x))).ln() / Decimal(2).ln()
        error = abs(Decimal(float(decision_log2(x))) - truth)
        assert error <= max(Decimal(1), abs(truth)) * Decimal(2) ** -23
        assert error <= abs(truth) * Decimal(2) ** -21


def test_exp2_and_log2_are_exact_at_powers_of_two() -> None:
    n = np.arange(-149, 128)
    powers = np.ldexp(F(1), n).astype(F)
    assert np.array_equal(decision_exp2(n.astype(F)), powers)
    assert np.array_equal(decision_log2(powers), n.astype(F))


def test_exp2_at_and_beyond_its_limits() -> None:
    x = np.array([128, np.inf, 3e38, -150.0001, -np.inf, -3e38, -0.0, 0.0], F)
    assert decision_exp2(x).tolist() == [np.inf, np.inf, np.inf, 0, 0, 0, 1, 1]
    assert np.isnan(decision_exp2(np.nan))
    assert decision_exp2(np.nextafter(F(128), F(0))) < np.inf
    assert decision_exp2(-150) == 0  # half of the smallest subnormal, to even
    assert decision_exp2(-149.9) == F(1e-45)


def test_exp2_is_rounded_once_more_among_subnormals_and_no_worse() -> None:
    x = np.linspace(-150, -126, 100_001).astype(F)
    assert np.max(np.abs(decision_exp2(x) - np.exp2(x.astype(np.float64)))) <= 2.0**-149


def test_log2_at_and_beyond_its_limits() -> None:
    with np.errstate(all="ignore"):
        assert decision_log2(np.array([0.0, -0.0, np.inf, 1e-45], F)).tolist() == [-np.inf, -np.inf, np.inf, -149]
        assert np.isnan(decision_log2(np.array([-1, -np.inf, np.nan, -1e-45], F))).all()


def test_exp2_is_monotone_where_a_step_is_larger_than_its_error() -> None:
    x = np.arange(-20, 20, 2.0**-10, dtype=F)
    assert (np.diff(decision_exp2(x)) > 0).all()


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32))
def test_array_and_scalar_forms_of_the_polynomials_give_the_same_bits(x: float) -> None:
    with np.errstate(all="ignore"):
        for array, scalar in ((decision_exp2, oracle.exp2), (decision_log2, oracle.log2)):
            assert np.array_equal(array(x), scalar(x), equal_nan=True)
