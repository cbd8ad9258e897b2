// What every kernel shares: integer types, status bits, 64-bit addresses of pools and boxes, warp helpers, wide loads.
// The address functions are those of tinyserve_viz/kernels/layout.py: a layout changes in both or in neither.
// No host headers, so that nvcc and NVRTC both take the files as they are.
#pragma once

#include <cuda_fp16.h>

typedef long int int64_t;
typedef signed char int8_t;
typedef unsigned char uint8_t;

// Bits that a kernel ORs into its status word; tinyserve_viz/kernels/definition.py says what each means.
enum Status {
    STATUS_UNMAPPED = 1,
    STATUS_RANGE = 2,
    STATUS_SHARED_WRITE = 4,
    STATUS_DOUBLE_FREE = 8,
    STATUS_ALREADY_MAPPED = 16,
    STATUS_OOM = 32,
    STATUS_CONFLICT = 64,
    STATUS_NOT_A_NUMBER = 128,
};

constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int WARP_SIZE = 32;

// Element of a K or V pool [num_blocks][block_size][num_kv_heads][head_dim].
__device__ __forceinline__ int64_t pool_offset(int64_t block, int64_t slot, int64_t kv_head, int64_t channel,
                                               int64_t block_size, int64_t num_kv_heads, int64_t head_dim) {
    return ((block * block_size + slot) * num_kv_heads + kv_head) * head_dim + channel;
}

// Element of the boxes [num_blocks][num_kv_heads][2][head_dim]; bound 0 is the minimum, 1 the maximum.
__device__ __forceinline__ int64_t box_offset(int64_t block, int64_t kv_head, int64_t bound, int64_t channel,
                                              int64_t num_kv_heads, int64_t head_dim) {
    return ((block * num_kv_heads + kv_head) * 2 + bound) * head_dim + channel;
}

// The maximum over the lanes of a full warp, in every lane. A NaN in any lane is ignored, as fmaxf does.
__device__ __forceinline__ float warp_reduce_max(float value) {
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, width));
    return value;
}

// The sum over the lanes of a full warp, in every lane, by the xor butterfly 16, 8, 4, 2, 1: the order of decisions.
__device__ __forceinline__ float warp_reduce_sum(float value) {
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
        value = __fadd_rn(value, __shfl_xor_sync(FULL_WARP, value, width));
    }
    return value;
}

// `threads` threads copy `count` halfs to shared memory, 16 bytes at a time where both addresses allow it.
__device__ __forceinline__ void coalesced_load(const half* source, half* target, int count, int thread, int threads) {
    const bool wide = (((unsigned long long)source | (unsigned long long)target) & 15) == 0;
    const int vectors = wide ? count / 8 : 0;
    for (int i = thread; i < vectors; i += threads) {
        reinterpret_cast<uint4*>(target)[i] = reinterpret_cast<const uint4*>(source)[i];
    }
    for (int i = vectors * 8 + thread; i < count; i += threads) target[i] = source[i];
}
