// Copy a run of memory by one thread block, past the caches: neither side is read again soon.
// The bulk copy engine of Hopper (five stages of 8 KB in shared memory) was tried in its place: 239 µs against 215 µs for
// 4,096 blocks of 64 KiB (docs/measurements/kernels-h100.md).
#pragma once

#include "common.cuh"

// Eight times 16 bytes in flight in each thread where both addresses allow it.
__device__ __forceinline__ void copy_run(const half* source, half* target, int64_t count) {
    constexpr int IN_FLIGHT = 8;
    const bool wide = (((unsigned long long)source | (unsigned long long)target) & 15) == 0;
    const int64_t vectors = wide ? count / 8 : 0, threads = blockDim.x;
    const uint4* from = reinterpret_cast<const uint4*>(source);
    uint4* to = reinterpret_cast<uint4*>(target);
    int64_t i = threadIdx.x;
    for (; i + (IN_FLIGHT - 1) * threads < vectors; i += IN_FLIGHT * threads) {
        uint4 held[IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) held[k] = __ldcs(from + i + k * threads);
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) __stcs(to + i + k * threads, held[k]);
    }
    for (; i < vectors; i += threads) to[i] = from[i];
    for (int64_t k = vectors * 8 + threadIdx.x; k < count; k += threads) target[k] = source[k];
}
