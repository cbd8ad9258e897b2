// Score blocks by their boxes and choose the best of a row: what block_scoring, cache_selection and the fused form of
// query_aware_paged_attention share, so that they decide alike.
#pragma once

#include "decision_math.cuh"

// Upper bound of q·k over a box, by one warp: lane l adds channels l, l + 32, … in order. The products are exact.
__device__ __forceinline__ float box_score(const half* query, const half* low, const half* high, int64_t head_dim) {
    float sum = 0.0f;
    for (int64_t d = threadIdx.x % WARP_SIZE; d < head_dim; d += WARP_SIZE) {
        const float q = __half2float(query[d]);
        const float product = q > 0.0f   ? __fmul_rn(q, __half2float(high[d]))
                              : q < 0.0f ? __fmul_rn(q, __half2float(low[d]))
                                         : __fmul_rn(q, 0.0f);
        sum = __fadd_rn(sum, product);
    }
    return lane_sum(sum);
}

// Blocks that the paper's budget keeps of a sequence of `blocks`: a share, or with `budget_blocks` that number.
__device__ __forceinline__ int64_t paper_budget(int64_t blocks, int ratio_permille, int sinks, int recent,
                                                int budget_blocks) {
    const int64_t always = min(blocks, (int64_t)sinks + recent);
    const int64_t share = max((int64_t)1, budget_blocks ? budget_blocks : blocks * ratio_permille / 1000);
    return min(blocks, max(always, share));
}

// Order-preserving key of a block's score: the largest for what is always kept; a NaN counts as -inf.
__device__ __forceinline__ unsigned selection_key(float score, int64_t block, int64_t blocks, int sinks, int recent) {
    if (block < sinks || block >= blocks - recent) return 0xffffffffu;
    const float value = isnan(score) ? -INFINITY : score + 0.0f;  // -0 becomes +0
    const unsigned bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Write the `budget` blocks of the largest keys among `blocks` into `selected` [max_selected], ascending, then -1; ties
// to the lower block. The whole thread block calls it. A radix select finds the smallest key that is kept, 8 bits at a
// time; then a scan in block order places what lies above it and the first ones that equal it.
template <typename KeyOf>
__device__ void select_best(KeyOf key_of, int64_t blocks, int64_t budget, int* selected, int64_t max_selected) {
    __shared__ int histogram[256];
    __shared__ unsigned bucket;
    __shared__ int64_t still;
    unsigned prefix = 0;
    int64_t wanted = budget;  // of the keys that agree with the prefix
    for (int shift = 24; shift >= 0 && budget > 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
        __syncthreads();
        for (int64_t start = 0; start < blocks; start += blockDim.x) {
            const int64_t block = start + threadIdx.x;
            const unsigned key = block < blocks ? key_of(block) : 0;
            const bool agrees = block < blocks && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8));
            // Neighbours often share a bucket (scores share an exponent): one addition for all lanes that do.
            const unsigned bin = agrees ? key >> shift & 255 : 256;
            const unsigned same = __match_any_sync(FULL_WARP, bin);
            if (agrees && __ffs(same) - 1 == threadIdx.x % WARP_SIZE) atomicAdd(&histogram[bin], __popc(same));
        }
        __syncthreads();
        if (threadIdx.x < WARP_SIZE) {
            // Lane l holds buckets 255 - 8·l down to 248 - 8·l; the one in which the count is reached finds the bucket.
            int own = 0;
            for (int i = 0; i < 8; ++i) own += histogram[255 - 8 * (int)threadIdx.x - i];
            int upto = own;
            for (int width = 1; width < WARP_SIZE; width *= 2) {
                const int before = __shfl_up_sync(FULL_WARP, upto, width);
                if (threadIdx.x >= width) upto += before;
            }
            if (upto >= wanted && upto - own < wanted) {
                int64_t left = wanted - (upto - own);
                int at = 255 - 8 * (int)threadIdx.x;
                while (histogram[at] < left) left -= histogram[at--];
                bucket = at;
                still = left;
            }
        }
        __syncthreads();
        prefix |= bucket << shift;
        wanted = still;
        __syncthreads();
    }
    int64_t placed = 0, equal_before = 0;
    for (int64_t start = 0; start < blocks && budget > 0; start += blockDim.x) {
        const int64_t block = start + threadIdx.x;
        const unsigned key = block < blocks ? key_of(block) : 0;
        const bool equal = block < blocks && key == prefix;
        int64_t equals, taken;
        const int64_t rank = equal_before + block_exclusive_scan(equal, &equals);
        const bool take = block < blocks && (key > prefix || (equal && rank < wanted));
        const int64_t place = placed + block_exclusive_scan(take, &taken);
        if (take) selected[place] = (int)block;
        equal_before += equals;
        placed += taken;
    }
    for (int64_t i = budget + threadIdx.x; i < max_selected; i += blockDim.x) selected[i] = -1;
    __syncthreads();
}
