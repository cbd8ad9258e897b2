// Arithmetic that steers, the same bits as tinyserve_viz/kernels/decision_math.py: every multiply and add rounded by
// itself, sums in one order, exp2 and log2 as fixed polynomials. Files that include it are built with -fmad=false.
#pragma once

#include "common.cuh"

constexpr float LOG2_E = 0x1.715476p+0f;

__device__ __forceinline__ float positive_nan() { return __int_as_float(0x7fc00000); }

// A sum of -0 is +0.
__device__ __forceinline__ float positive_zero(float value) { return __fadd_rn(value, 0.0f); }

// Finish a sum whose lanes hold their elements l, l + 32, … already added in order.
__device__ __forceinline__ float lane_sum(float lane) { return positive_zero(warp_reduce_sum(lane)); }

// A per-mille integer as fp32: one conversion, one division.
__device__ __forceinline__ float permille(int value) { return __fdiv_rn(__int2float_rn(value), 1000.0f); }

__device__ __forceinline__ float power_of_two(int n) { return __int_as_float((n + 127) << 23); }

// One value for the query heads of a KV head, taken in head order: 0 max, 1 mean, 2 sum; a NaN in any head gives NaN.
struct GroupReduction {
    int mode;
    int heads;
    float value;

    __device__ GroupReduction(int mode) : mode(mode), heads(0), value(0.0f) {}

    __device__ void add(float next) {
        if (heads++ == 0) value = next;
        else if (mode == 0) value = isnan(value) || isnan(next) ? positive_nan() : fmaxf(value, next);
        else value = __fadd_rn(value, next);
    }

    __device__ float result() const {
        const float total = positive_zero(value);
        return mode == 1 ? __fdiv_rn(total, __int2float_rn(heads)) : total;
    }
};

// 2**x, relative error below 2**-23 for normal results; exact at integers.
__device__ __forceinline__ float decision_exp2(float x) {
    if (isnan(x)) return positive_nan();
    if (x >= 128.0f) return INFINITY;
    if (x < -150.0f) return 0.0f;
    const float whole = rintf(x);
    const float f = __fsub_rn(x, whole);
    float power = 0x1.444004p-13f;
    power = __fadd_rn(__fmul_rn(power, f), 0x1.5f0896p-10f);
    power = __fadd_rn(__fmul_rn(power, f), 0x1.3b2a1cp-7f);
    power = __fadd_rn(__fmul_rn(power, f), 0x1.c6af6cp-5f);
    power = __fadd_rn(__fmul_rn(power, f), 0x1.ebfbe0p-3f);
    power = __fadd_rn(__fmul_rn(power, f), 0x1.62e430p-1f);
    power = __fadd_rn(__fmul_rn(power, f), 1.0f);
    const int n = (int)whole;
    const int half_of_n = n >> 1;  // two factors, because 2**n itself may lie outside the normal range
    return __fmul_rn(__fmul_rn(power, power_of_two(half_of_n)), power_of_two(n - half_of_n));
}

// log2(x); exact at powers of two, subnormals are exact inputs.
__device__ __forceinline__ float decision_log2(float x) {
    if (isnan(x) || x < 0.0f) return positive_nan();
    if (x == 0.0f) return -INFINITY;
    if (x == INFINITY) return INFINITY;
    const bool tiny = x < 0x1p-126f;
    const int bits = __float_as_int(__fmul_rn(x, tiny ? 0x1p24f : 1.0f));
    int exponent = (bits - 0x3f3504f3) >> 23;  // the mantissa then lies in [sqrt(1/2), sqrt(2))
    const float m = __int_as_float(bits - (exponent << 23));
    const float s = __fdiv_rn(__fsub_rn(m, 1.0f), __fadd_rn(m, 1.0f));
    const float square = __fmul_rn(s, s);
    float series = 0x1.5ce796p-2f;
    series = __fadd_rn(__fmul_rn(series, square), 0x1.a58d94p-2f);
    series = __fadd_rn(__fmul_rn(series, square), 0x1.277780p-1f);
    series = __fadd_rn(__fmul_rn(series, square), 0x1.ec709ep-1f);
    series = __fadd_rn(__fmul_rn(series, square), 0x1.715476p+1f);
    exponent -= tiny ? 24 : 0;
    return __fadd_rn(__int2float_rn(exponent), __fmul_rn(s, series));
}
