// Score blocks by their boxes and choose the best of a row: what block_scoring, cache_selection and the fused form of
// query_aware_paged_attention share, so that they decide alike.
#pragma once

#include "decision_math.cuh"
#include "ring.cuh"

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

// The same choice for rows of up to SELECT_BLOCKS blocks: one histogram over equal steps of the row's own range (few
// threads then meet in a bin, and rounding keeps the order), an exact ranking of the few blocks in the bin where the
// budget ends, and a bit per block to write the list from. False, and nothing written, where that bin holds too many:
// then select_best has to.
#ifndef SELECT_TOGETHER
#define SELECT_TOGETHER 4
#endif
constexpr int SELECT_BLOCKS = 8192, SELECT_BINS = 2048, SELECT_CANDIDATES = 512;
constexpr int SELECT_WORDS = SELECT_BLOCKS / 32;

struct SelectMemory {
    int histogram[SELECT_BINS];
    unsigned chosen[SELECT_WORDS];  // a bit per block
    uint2 candidate[SELECT_CANDIDATES];
    float warp_low[WARP_SIZE], warp_high[WARP_SIZE];
    int warp_sum[WARP_SIZE];
    int bucket, above, candidates;
};

// A row's scores in shared memory, so that every thread finds those of a pass together: THREADS apart, SELECT_TOGETHER at
// a time.
template <int THREADS>
struct Scores {
    float* score;  // [SELECT_BLOCKS], 16-byte aligned

    // Ask for the scores of `blocks` blocks; have() waits for them. They may be another thread block's of this launch.
    __device__ __forceinline__ void ask(const float* from, int64_t blocks) {
        const int count = (int)min(blocks, (int64_t)SELECT_BLOCKS);
        const int vectors = ((unsigned long long)from & 15) == 0 ? count / 4 : 0;
#pragma unroll 4
        for (int i = threadIdx.x; i < vectors; i += THREADS) copy_ahead(shared_address(score + 4 * i), from + 4 * i);
        close_copies();
#pragma unroll 1
        for (int i = 4 * vectors + threadIdx.x; i < count; i += THREADS) score[i] = __ldcg(from + i);
    }

    template <typename ScoreOf>
    __device__ __forceinline__ void put(ScoreOf score_of, int64_t blocks) {
        const int count = (int)min(blocks, (int64_t)SELECT_BLOCKS);
#pragma unroll 1
        for (int i = threadIdx.x; i < count; i += THREADS) score[i] = score_of(i);
    }

    __device__ __forceinline__ void have() {
        await_copies<0>();
        __syncthreads();
    }

    // visit(block, score) for each block below `blocks`, by whole warps with 32 blocks that follow each other, so that
    // what lies behind may be visited too.
    template <typename Visit>
    __device__ __forceinline__ void each(int blocks, Visit visit) {
        constexpr int TOGETHER = SELECT_TOGETHER;
#pragma unroll 1
        for (int start = 0; start < blocks; start += TOGETHER * THREADS) {
            float held[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                held[i] = score[min(start + i * THREADS + (int)threadIdx.x, SELECT_BLOCKS - 1)];
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; ++i) {
                const int block = start + i * THREADS + (int)threadIdx.x;
                if (start + i * THREADS < blocks) visit(block, held[i]);
            }
        }
    }
};

// Sum of the values of the threads before this one, of THREADS.
template <int THREADS>
__device__ __forceinline__ int sum_before(int value, int* warp_sum) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    int upto = value;
#pragma unroll
    for (int width = 1; width < WARP_SIZE; width *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, upto, width);
        if (lane >= width) upto += before;
    }
    if (lane == WARP_SIZE - 1) warp_sum[warp] = upto;
    __syncthreads();
    int earlier = lane < warp ? warp_sum[lane] : 0;  // no more warps than lanes
#pragma unroll
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) earlier += __shfl_xor_sync(FULL_WARP, earlier, width);
    return earlier + upto - value;
}

// `undefined` is set where a score is NaN.
template <int THREADS>
__device__ bool select_best_at_once(Scores<THREADS> scores, int64_t blocks, int64_t budget, int* selected, int64_t max_selected,
                                    int sinks, int recent, bool& undefined, SelectMemory& memory) {
    if (blocks > SELECT_BLOCKS || budget == 0 || sinks < 0 || recent < 0) return false;
    constexpr int WARPS = THREADS / WARP_SIZE;
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int count = uniform((int)blocks), wanted = uniform((int)(budget - min(blocks, (int64_t)sinks + recent)));
    const auto always = [&](int block) { return block < sinks || block >= count - recent; };
    float low = INFINITY, high = -INFINITY;
    for (int i = threadIdx.x; i < SELECT_BINS; i += THREADS) memory.histogram[i] = 0;
    if (threadIdx.x == 0) memory.candidates = 0;
    scores.each(count, [&](int block, float score) {
        undefined |= isnan(score) && block < count;
        if (block < count && !always(block) && fabsf(score) < INFINITY) {
            low = fminf(low, score);
            high = fmaxf(high, score);
        }
    });
    low = -warp_reduce_max(-low);
    high = warp_reduce_max(high);
    if (lane == 0) memory.warp_low[warp] = low;
    if (lane == 0) memory.warp_high[warp] = high;
    __syncthreads();
    low = -warp_reduce_max(-memory.warp_low[lane % WARPS]);
    high = warp_reduce_max(memory.warp_high[lane % WARPS]);
    const float width = high - low;
    const bool apart = width > 0.0f && width < INFINITY;
    if (wanted > 0 && !apart) return false;
    const float step = wanted > 0 ? (SELECT_BINS - 3) / width : 0.0f;
    if (isinf(step)) return false;
    const auto bin_of = [&](float value) {  // infinite ones have a bin of their own; NaN is -inf
        const int bin = 1 + min((int)((value - low) * step), SELECT_BINS - 3);
        return fabsf(value) < INFINITY ? bin : value > 0.0f ? SELECT_BINS - 1 : 0;
    };
    if (wanted > 0) {
        scores.each(count, [&](int block, float score) {
            if (block < count && !always(block)) atomicAdd(&memory.histogram[bin_of(score)], 1);
        });
        __syncthreads();
        // Thread t has bins OWN·t … OWN·t + OWN - 1 from the top.
        constexpr int OWN = (SELECT_BINS + THREADS - 1) / THREADS;
        const int top = SELECT_BINS - 1 - OWN * (int)threadIdx.x;
        int own = 0;
#pragma unroll
        for (int i = 0; i < OWN; ++i) own += top - i >= 0 ? memory.histogram[top - i] : 0;
        int before = sum_before<THREADS>(own, memory.warp_sum);
        if (before < wanted && before + own >= wanted) {
            int at = top;
#pragma unroll 1
            while (before + memory.histogram[at] < wanted) before += memory.histogram[at--];
            memory.bucket = at;
            memory.above = before;
        }
        __syncthreads();
        if (memory.histogram[memory.bucket] > min(SELECT_CANDIDATES, THREADS)) return false;
    }
    const int bucket = wanted > 0 ? memory.bucket : SELECT_BINS;
    for (int i = threadIdx.x; i < SELECT_WORDS; i += THREADS) memory.chosen[i] = 0;
    __syncthreads();
    scores.each(count, [&](int block, float score) {
        bool take = block < count;
        if (take && !always(block)) {
            const int bin = bin_of(score);
            take = bin > bucket;
            if (bin == bucket) {
                memory.candidate[atomicAdd(&memory.candidates, 1)] = {selection_key(score, 0, 2, 0, 0), (unsigned)block};
            }
        }
        const unsigned word = __ballot_sync(FULL_WARP, take);
        if (lane == 0 && word) memory.chosen[block / 32] = word;
    });
    __syncthreads();
    if (threadIdx.x < memory.candidates) {
        const uint2 own = memory.candidate[threadIdx.x];
        int better = 0;
#pragma unroll 2
        for (int i = 0; i < memory.candidates; ++i) {
            const uint2 other = memory.candidate[i];
            better += other.x > own.x || (other.x == own.x && other.y < own.y);
        }
        if (better < wanted - memory.above) atomicOr(&memory.chosen[own.y / 32], 1u << own.y % 32);
    }
    __syncthreads();
    static_assert(SELECT_WORDS <= THREADS, "a word per thread");
    unsigned word = threadIdx.x < SELECT_WORDS ? memory.chosen[threadIdx.x] : 0;
    int place = sum_before<THREADS>(__popc(word), memory.warp_sum);
#pragma unroll 1
    for (; word; word &= word - 1) selected[place++] = (int)threadIdx.x * 32 + __ffs(word) - 1;
#pragma unroll 1
    for (int i = (int)budget + (int)threadIdx.x; i < max_selected; i += THREADS) selected[i] = -1;
    __syncthreads();
    return true;
}
