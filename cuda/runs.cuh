// Copy runs of memory in pieces, a thread block a piece, past the caches: neither side is read again soon.
// The bulk copy engine of Hopper (five stages of 8 KB in shared memory) was tried in its place: 239 µs against 215 µs for
// 4,096 blocks of 64 KiB (docs/measurements/kernels-h100.md).
#pragma once

#include "common.cuh"

constexpr int PIECE_BYTES = 16384;  // definition: fused_block_copy.py PIECE_BYTES

// Pieces of a run of K or of V; one more of each operation is its box.
__device__ __forceinline__ int pieces_of(int64_t count) {
    return (int)max((count * (int)sizeof(half) + PIECE_BYTES - 1) / PIECE_BYTES, (int64_t)1);
}

__device__ __forceinline__ uint4 load_once(const uint4* from) { return *from; }
__device__ __forceinline__ void store_once(uint4* to, uint4 value) { *to = value; }

// All of a run by one thread block: four times 16 bytes in flight in each thread where both addresses allow it.
__device__ __forceinline__ void copy_run(const half* source, half* target, int count) {
    constexpr int IN_FLIGHT = 4;
    const bool wide = (((unsigned long long)source | (unsigned long long)target) & 15) == 0;
    const int vectors = wide ? count / 8 : 0, threads = blockDim.x;
    const uint4* const from = reinterpret_cast<const uint4*>(source);
    uint4* const to = reinterpret_cast<uint4*>(target);
    int i = threadIdx.x;
    for (; i + (IN_FLIGHT - 1) * threads < vectors; i += IN_FLIGHT * threads) {
        uint4 held[IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) held[k] = load_once(from + i + k * threads);
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) store_once(to + i + k * threads, held[k]);
    }
    for (; i < vectors; i += threads) store_once(to + i, load_once(from + i));
    for (int k = vectors * 8 + threadIdx.x; k < count; k += threads) target[k] = source[k];
}

// Piece `piece` of a run of `count`; pieces begin at multiples of 16 bytes.
__device__ __forceinline__ void copy_piece(const half* source, half* target, int64_t count, int piece) {
    constexpr int PIECE = PIECE_BYTES / (int)sizeof(half);
    const int64_t start = (int64_t)piece * PIECE;
    if (start < count) copy_run(source + start, target + start, (int)min(count - start, (int64_t)PIECE));
}
