// Copy runs of memory in pieces, a thread block a piece, which it holds in registers between reading and writing: so a
// launch that follows a check can read before it knows whether it may write.
// The bulk copy engine of Hopper instead of registers: the same time (docs/measurements/kernels-h100.md).
#pragma once

#include "common.cuh"

constexpr int PIECE_BYTES = 16384, COPY_THREADS = 256;  // definition: fused_block_copy.py PIECE_BYTES, COPY_THREADS

// Thread blocks of a copying launch per multiprocessor, for all threads that it can have; else as the compiler likes.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 900
constexpr int LEAST_COPIERS = 2048 / COPY_THREADS;
#else
constexpr int LEAST_COPIERS = 1;
#endif

// Pieces of a run of K or of V; one more of each operation is its box.
__device__ __forceinline__ int pieces_of(int64_t count) {
    return (int)max((count * (int)sizeof(half) + PIECE_BYTES - 1) / PIECE_BYTES, (int64_t)1);
}

// Up to PIECE_BYTES from one place to another: `fetch`, then `put`. 16 bytes at a time where both addresses allow it, so
// that all of it is in registers; what is left is read by `put`.
struct Piece {
    static constexpr int HELD = PIECE_BYTES / 16 / COPY_THREADS;
    const half* source = nullptr;
    half* target = nullptr;
    int count = 0;
    uint4 held[HELD];

    __device__ __forceinline__ int vectors() const {
        return (((unsigned long long)source | (unsigned long long)target) & 15) == 0 ? count / 8 : 0;
    }

    __device__ __forceinline__ void fetch() {
        const int wide = vectors();
#pragma unroll
        for (int k = 0; k < HELD; ++k) {
            const int i = threadIdx.x + k * COPY_THREADS;
            if (i < wide) held[k] = reinterpret_cast<const uint4*>(source)[i];
        }
    }

    __device__ __forceinline__ void put() {
        const int wide = vectors();
#pragma unroll
        for (int k = 0; k < HELD; ++k) {
            const int i = threadIdx.x + k * COPY_THREADS;
            if (i < wide) reinterpret_cast<uint4*>(target)[i] = held[k];
        }
        for (int i = 8 * wide + threadIdx.x; i < count; i += COPY_THREADS) target[i] = source[i];
    }
};

// Piece `number` of a run of `count`; pieces begin at multiples of 16 bytes.
__device__ __forceinline__ Piece piece_of(const half* source, half* target, int64_t count, int number) {
    constexpr int PIECE = PIECE_BYTES / (int)sizeof(half);
    const int64_t start = (int64_t)number * PIECE;
    Piece piece;
    piece.source = source + start;
    piece.target = target + start;
    piece.count = (int)max(min(count - start, (int64_t)PIECE), (int64_t)0);
    return piece;
}

// What is behind the first piece of a run.
__device__ __forceinline__ void put_rest(const half* source, half* target, int64_t count) {
    for (int number = 1; number < pieces_of(count); ++number) {
        Piece piece = piece_of(source, target, count, number);
        piece.fetch();
        piece.put();
    }
}
