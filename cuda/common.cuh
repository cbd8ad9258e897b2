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

// A launch may start before the one before it has ended (tinyserve_viz/kernels/cuda_launch.py). It waits here until that
// one has, and what it wrote is there; before, it may use only what that one does not write, or as a guess at what to fetch.
__device__ __forceinline__ void follow_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the thread blocks of the next launch come in once all of this one have been here, and not only when all have ended.
// Pays where the next launch has many that are alike: a few large ones would crowd on the multiprocessors that are free first.
__device__ __forceinline__ void start_next_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

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

// The same of integers, in any order.
__device__ __forceinline__ int warp_total(int value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(FULL_WARP, value);
#else
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) value += __shfl_xor_sync(FULL_WARP, value, width);
    return value;
#endif
}

__device__ __forceinline__ int warp_largest(int value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(FULL_WARP, value);
#else
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) value = max(value, __shfl_xor_sync(FULL_WARP, value, width));
    return value;
#endif
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

// Sum of the values of the threads before this one in a thread block of up to 1024 threads, in thread order, and the
// sum of all in `total`. Every thread must call it.
__device__ __forceinline__ int64_t block_exclusive_scan(int64_t value, int64_t* total) {
    __shared__ int64_t warp_sum[WARP_SIZE];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const auto inclusive = [&](int64_t sum) {
        for (int width = 1; width < WARP_SIZE; width *= 2) {
            const int64_t before = __shfl_up_sync(FULL_WARP, sum, width);
            if (lane >= width) sum += before;
        }
        return sum;
    };
    const int64_t sum = inclusive(value);
    __syncthreads();  // warp_sum may still be read from the call before
    if (lane == WARP_SIZE - 1) warp_sum[warp] = sum;
    __syncthreads();
    const int64_t sums = inclusive(lane < blockDim.x / WARP_SIZE ? warp_sum[lane] : 0);  // every warp scans them all
    *total = __shfl_sync(FULL_WARP, sums, WARP_SIZE - 1);
    const int64_t earlier = __shfl_sync(FULL_WARP, sums, max(warp - 1, 0));
    return (warp ? earlier : 0) + sum - value;
}

// Threads before this one whose flag is set, in thread order, and of all threads in `total`. Every thread must call it.
__device__ __forceinline__ int block_rank(bool flag, int* total) {
    __shared__ int warp_count[WARP_SIZE];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const unsigned set = __ballot_sync(FULL_WARP, flag);
    __syncthreads();  // warp_count may still be read from the call before
    if (lane == 0) warp_count[warp] = __popc(set);
    __syncthreads();
    int sum = lane < blockDim.x / WARP_SIZE ? warp_count[lane] : 0;
    for (int width = 1; width < WARP_SIZE; width *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, sum, width);
        if (lane >= width) sum += before;
    }
    *total = __shfl_sync(FULL_WARP, sum, WARP_SIZE - 1);
    const int earlier = __shfl_sync(FULL_WARP, sum, max(warp - 1, 0));
    return (warp ? earlier : 0) + __popc(set & ((1u << lane) - 1));
}

// Largest value of the thread block, in every thread.
__device__ __forceinline__ int64_t block_max(int64_t value) {
    __shared__ int64_t warp_max[WARP_SIZE];
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
        value = max(value, __shfl_xor_sync(FULL_WARP, value, width));
    }
    __syncthreads();
    if (threadIdx.x % WARP_SIZE == 0) warp_max[threadIdx.x / WARP_SIZE] = value;
    __syncthreads();
    for (int i = 0; i < blockDim.x / WARP_SIZE; ++i) value = max(value, warp_max[i]);
    return value;
}

// Sum over the thread block, in every thread.
__device__ __forceinline__ int64_t block_sum(int64_t value) {
    int64_t total;
    block_exclusive_scan(value, &total);
    return total;
}

// Sums of counts[0 .. upto) and of counts[0 .. num_counts), each below 2**31, in every thread of the thread block.
__device__ __forceinline__ void sums_before(const int* counts, int64_t upto, int64_t num_counts, int* before, int* all) {
    unsigned long long own = 0;
    for (int64_t i = threadIdx.x; i < num_counts; i += blockDim.x) {
        const unsigned long long count = (unsigned)counts[i];
        own += count | (i < upto ? count << 32 : 0);
    }
    const unsigned long long sums = (unsigned long long)block_sum((int64_t)own);
    *before = (int)(sums >> 32);
    *all = (int)(sums & 0xffffffffu);
}

// True in every thread of the last thread block of the grid to get here; `arrivals` is zero before and after.
__device__ __forceinline__ bool last_to_arrive(int* arrivals) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const int blocks = gridDim.x * gridDim.y * gridDim.z;
        last = atomicAdd(arrivals, 1) == blocks - 1;
        if (last) *arrivals = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}
