// A batch of operations is checked as a whole before anything is written: the marks per block and the verdict.
// Workspace [num_blocks + 2]: marks, then the verdict (not 0: refused), then the arrivals of the launch that obeys it.
#pragma once

#include "common.cuh"

constexpr int MARK_SOURCE = 1, MARK_TARGET = 2;

__device__ __forceinline__ bool refused(const int* workspace, int64_t num_blocks) { return workspace[num_blocks] != 0; }

// Called by all thread blocks of the last launch that obeys the verdict: leaves the workspace zero.
__device__ __forceinline__ void forget_verdict(int* workspace, int64_t num_blocks) {
    if (last_to_arrive(&workspace[num_blocks + 1]) && threadIdx.x == 0) workspace[num_blocks] = 0;
}

// `threads` threads copy `count` halfs between places that do not overlap, four times 16 bytes in flight in each where
// both addresses allow it.
__device__ __forceinline__ void copy_halfs(const half* source, half* target, int64_t count, int thread, int threads) {
    const bool wide = (((unsigned long long)source | (unsigned long long)target) & 15) == 0;
    const int64_t vectors = wide ? count / 8 : 0;
    const uint4* from = reinterpret_cast<const uint4*>(source);
    uint4* to = reinterpret_cast<uint4*>(target);
    int64_t i = thread;
    for (; i + 3 * (int64_t)threads < vectors; i += 4 * (int64_t)threads) {
        uint4 held[4];
        for (int k = 0; k < 4; ++k) held[k] = from[i + k * (int64_t)threads];
        for (int k = 0; k < 4; ++k) to[i + k * (int64_t)threads] = held[k];
    }
    for (; i < vectors; i += threads) to[i] = from[i];
    for (int64_t k = vectors * 8 + thread; k < count; k += threads) target[k] = source[k];
}
