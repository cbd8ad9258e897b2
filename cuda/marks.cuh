// A batch of operations is checked as a whole before anything is written: the marks per block and the verdict.
// Workspace [num_blocks + 2]: marks, then the verdict (status bits; not 0: refused), then the arrivals of the last launch.
#pragma once

#include "common.cuh"

constexpr int MARK_SOURCE = 1, MARK_TARGET = 2;

__device__ __forceinline__ bool refused(const int* workspace, int64_t num_blocks) { return workspace[num_blocks] != 0; }

// Called by all thread blocks of the last launch: reports the verdict and takes it back. An id outside comes first.
__device__ __forceinline__ void report_verdict(int* workspace, int64_t num_blocks, int* status) {
    if (!last_to_arrive(&workspace[num_blocks + 1]) || threadIdx.x != 0) return;
    const int verdict = workspace[num_blocks];
    if (verdict) atomicOr(status, verdict & STATUS_RANGE ? STATUS_RANGE : STATUS_CONFLICT);
    workspace[num_blocks] = 0;
}

// `threads` threads copy `count` halfs between places that do not overlap, eight times 16 bytes in flight in each where
// both addresses allow it, past the caches: neither side is read again soon.
__device__ __forceinline__ void copy_halfs(const half* source, half* target, int64_t count, int thread, int threads) {
    constexpr int IN_FLIGHT = 8;
    const bool wide = (((unsigned long long)source | (unsigned long long)target) & 15) == 0;
    const int64_t vectors = wide ? count / 8 : 0;
    const uint4* from = reinterpret_cast<const uint4*>(source);
    uint4* to = reinterpret_cast<uint4*>(target);
    int64_t i = thread;
    for (; i + (IN_FLIGHT - 1) * (int64_t)threads < vectors; i += IN_FLIGHT * (int64_t)threads) {
        uint4 held[IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) held[k] = __ldcs(from + i + k * (int64_t)threads);
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) __stcs(to + i + k * (int64_t)threads, held[k]);
    }
    for (; i < vectors; i += threads) to[i] = from[i];
    for (int64_t k = vectors * 8 + thread; k < count; k += threads) target[k] = source[k];
}
