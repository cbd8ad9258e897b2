"""Arithmetic that steers, the same bits on every machine: sums in one order, exp2 and log2 as fixed polynomials.

Everything is IEEE fp32 with every multiply and add rounded by itself (`__fmul_rn`, `__fadd_rn`; no fused multiply-add,
no flush to zero), so `common.cuh` can repeat it line by line. No `np.exp2`, no `np.log2`, no `np.sum` of floats here:
their last bit depends on the library, and a last bit can choose another block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
LANES = 32
_DOTS_AT_ONCE = 2048  # 256 KiB of lanes: they stay in a core's L2 cache

# 2**f - 1 = f·(c0 + f·(c1 + …)) on [-1/2, 1/2], Chebyshev fit, largest relative error of the polynomial 3e-9.
EXP2_COEFFICIENTS = tuple(
    np.float32(float.fromhex(digits))
    for digits in (
        "0x1.62e430p-1",
        "0x1.ebfbe0p-3",
        "0x1.c6af6cp-5",
        "0x1.3b2a1cp-7",
        "0x1.5f0896p-10",
        "0x1.444004p-13",
    )
)
# log2(m) = s·(c0 + s²·(c1 + …)) with s = (m - 1)/(m + 1) and m in [sqrt(1/2), sqrt(2)), relative error 1e-8.
LOG2_COEFFICIENTS = tuple(
    np.float32(float.fromhex(digits))
    for digits in ("0x1.715476p+1", "0x1.ec709ep-1", "0x1.277780p-1", "0x1.a58d94p-2", "0x1.5ce796p-2")
)
LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
_BELOW_128 = np.nextafter(np.float32(128), np.float32(0))
_SQRT_HALF_BITS = 0x3F3504F3  # fp32 nearest to sqrt(1/2): mantissas from here up keep their exponent


def lane_sum(values: F32) -> F32:
    """Sum over the last axis in the order of a warp: [..., n] -> [...].

    Lane l of 32 adds elements l, l + 32, … in order; then the lanes add by the xor butterfly 16, 8, 4, 2, 1. A sum of
    -0 is +0. The loop runs over rows of 32, each addition over all the rest at once.
    """
    length = values.shape[-1]
    rows = max(1, -(-length // LANES))
    if length != rows * LANES:
        padded = np.zeros((*values.shape[:-1], rows * LANES), np.float32)
        padded[..., :length] = values
        values = padded
    by_row = values.reshape(*values.shape[:-1], rows, LANES)
    lanes = by_row[..., 0, :]
    for row in range(1, rows):
        lanes = lanes + by_row[..., row, :]
    for width in (16, 8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    total: F32 = lanes[..., 0] + np.float32(0)
    return total


def lane_dots(left: F32, right: F32) -> F32:
    """Dot products [m][n] of `right` [m][d] with `left` [n][d]: lane_sum(left[n] · right[m]), to the last bit.

    Lanes run across memory, so that every operation is over all of `left` at once.
    """
    (num, length), rows = left.shape, max(1, -(-left.shape[1] // LANES))
    across, factors = np.zeros((rows * LANES, num), np.float32), np.zeros((len(right), rows * LANES), np.float32)
    across[:length], factors[:, :length] = left.T, right
    by_row, by_factor = across.reshape(rows, LANES, num), factors.reshape(-1, rows, LANES, 1)
    dots: F32 = np.empty((len(right), num), np.float32)
    for first in range(0, num, _DOTS_AT_ONCE):
        some = by_row[:, :, first : first + _DOTS_AT_ONCE]
        lanes, product = np.empty_like(some[0]), np.empty_like(some[0])
        for factor, dot in zip(by_factor, dots[:, first : first + _DOTS_AT_ONCE], strict=True):
            np.multiply(some[0], factor[0], out=lanes)
            for row in range(1, rows):
                lanes += np.multiply(some[row], factor[row], out=product)
            for width in (16, 8, 4, 2):
                lanes[:width] += lanes[width : 2 * width]
            np.add(lanes[0], lanes[1], out=dot)
    dots += np.float32(0)
    return dots


def head_sum(values: F32, axis: int) -> F32:
    """Sum over an axis of heads, in head order."""
    heads = np.moveaxis(values, axis, 0)
    total = heads[0]
    for head in heads[1:]:
        total = total + head
    positive: F32 = total + np.float32(0)
    return positive


def reduce_group(values: F32, reduction: int, axis: int) -> F32:
    """One value for the query heads of a KV head: 0 max, 1 mean, 2 sum, in head order; a NaN in any head gives NaN."""
    if reduction == 0:
        largest: F32 = np.max(values, axis=axis) + np.float32(0)
        return largest
    total = head_sum(values, axis)
    reduced: F32 = total / np.float32(values.shape[axis]) if reduction == 1 else total
    return reduced


def permille(value: int) -> np.float32:
    """A per-mille integer as fp32: one conversion, one division, each rounded to nearest."""
    return np.float32(np.float32(value) / np.float32(1000))


def decision_exp2(x: Any) -> F32:
    """2**x in fp32, relative error below 2**-23 for normal results; exact at integers.

    x >= 128 gives +inf, x < -150 gives 0, NaN gives NaN. Results below 2**-126 are subnormal, rounded once more.
    """
    x = np.asarray(x, np.float32)
    inside = np.clip(np.where(np.isnan(x), np.float32(0), x), np.float32(-151), _BELOW_128)
    whole = np.rint(inside)
    f = inside - whole  # exact, in [-1/2, 1/2]
    power: F32 = np.full_like(f, EXP2_COEFFICIENTS[5])
    for coefficient in EXP2_COEFFICIENTS[4::-1]:
        power = power * f + coefficient
    power = power * f + np.float32(1)
    n = whole.astype(np.int32)
    half = n >> 1  # two factors, because 2**n itself may lie outside the normal range
    scaled = power * _power_of_two(half) * _power_of_two(n - half)
    scaled = np.where(x >= np.float32(128), np.float32(np.inf), scaled)
    scaled = np.where(x < np.float32(-150), np.float32(0), scaled)
    result: F32 = np.where(np.isnan(x), np.float32(np.nan), scaled).astype(np.float32)
    return result


def decision_log2(x: Any) -> F32:
    """log2(x) in fp32, error below 2**-23 of max(1, |log2(x)|), relative error below 2**-21; exact at powers of two.

    0 (of either sign) gives -inf, negative numbers and NaN give NaN, +inf gives +inf; subnormals are exact inputs.
    """
    x = np.asarray(x, np.float32)
    positive = np.where((x > 0) & (x < np.float32(np.inf)), x, np.float32(1))
    tiny = positive < np.float32(2.0**-126)
    normal = positive * np.where(tiny, np.float32(2.0**24), np.float32(1))
    bits = np.asarray(normal, np.float32).view(np.int32)
    # Exponent such that the mantissa lies in [sqrt(1/2), sqrt(2)): near 1 the result is then exact to its last bits.
    exponent = (bits - np.int32(_SQRT_HALF_BITS)) >> 23
    m = np.asarray(bits - (exponent << 23), np.int32).view(np.float32)
    s = (m - np.float32(1)) / (m + np.float32(1))
    square = s * s
    series: F32 = np.full_like(square, LOG2_COEFFICIENTS[4])
    for coefficient in LOG2_COEFFICIENTS[3::-1]:
        series = series * square + coefficient
    exponent = exponent - np.where(tiny, np.int32(24), np.int32(0))
    value = exponent.astype(np.float32) + s * series
    value = np.where(x == np.float32(np.inf), np.float32(np.inf), value)
    value = np.where(x == np.float32(0), np.float32(-np.inf), value)
    result: F32 = np.where((x < np.float32(0)) | np.isnan(x), np.float32(np.nan), value).astype(np.float32)
    return result


def _power_of_two(n: NDArray[np.int32]) -> F32:
    return np.asarray((n + np.int32(127)) << 23, np.int32).view(np.float32)
