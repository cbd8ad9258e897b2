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

// The same choice for rows of up to SELECT_BLOCKS blocks, with the row's scores in registers: thread t of THREADS holds
// those of blocks t, t + THREADS, …
//
// A histogram over equal steps of the scores' range (few threads then meet in a bin, and rounding keeps the order) tells
// in which bin the budget ends. Where few are wanted, only each thread's best block is counted: as many bests as wanted
// lie in that bin and above it, so all that is wanted does too, and some 20 more. Those candidates have a histogram of
// their own. What lies in the last bin is ranked exactly; a bit per block then gives the list. What cannot be told apart
// by that (too many in a bin, a range that is none) is left to select_best.
constexpr int SELECT_BLOCKS = 8192, SELECT_BINS = 1024, SELECT_CANDIDATES = 512;
constexpr int SELECT_WORDS = SELECT_BLOCKS / 32;

struct SelectMemory {
    int histogram[SELECT_BINS];
    int fine[SELECT_BINS];                      // of the candidates
    unsigned chosen[SELECT_WORDS + WARP_SIZE];  // a bit per block; threads behind the last block have words too
    float2 candidate[SELECT_CANDIDATES];        // its score, its block's bits
    int warp_low[WARP_SIZE], warp_high[WARP_SIZE], warp_sum[WARP_SIZE];
    int bucket, above, candidates, equals;
};

// Ask for the first `count` words of a row, to be in shared memory behind await_copies and a barrier.
template <int THREADS>
__device__ __forceinline__ void ask_row(int* to, const int* from, int count) {
    const int vectors = ((unsigned long long)from & 15) == 0 ? count / 4 : 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < vectors; i += THREADS) copy_ahead(shared_address(to + 4 * i), from + 4 * i);
    close_copies();
#pragma unroll 1
    for (int i = 4 * vectors + threadIdx.x; i < count; i += THREADS) to[i] = __ldcg(from + i);
}

// visit(place, word) for the words that this thread has asked for, behind await_copies.
template <int THREADS, typename Visit>
__device__ __forceinline__ void each_asked(const int* to, const int* from, int count, Visit visit) {
    const int vectors = ((unsigned long long)from & 15) == 0 ? count / 4 : 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < vectors; i += THREADS) {
        const int4 four = reinterpret_cast<const int4*>(to)[i];
        visit(4 * i, four.x);
        visit(4 * i + 1, four.y);
        visit(4 * i + 2, four.z);
        visit(4 * i + 3, four.w);
    }
#pragma unroll 1
    for (int i = 4 * vectors + (int)threadIdx.x; i < count; i += THREADS) visit(i, to[i]);
}

// The sum of values below 2**50 over the lanes of a full warp, in every lane.
__device__ __forceinline__ int64_t warp_total(int64_t value) {
    return ((int64_t)warp_total((int)(value >> 24)) << 24) + warp_total((int)(value & 0xffffff));
}

__device__ __forceinline__ int warp_highest(int value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(FULL_WARP, value);
#else
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
        value = max(value, __shfl_xor_sync(FULL_WARP, value, width));
    }
    return value;
#endif
}

// Sum of the values of the lanes up to this one.
__device__ __forceinline__ int warp_sum_upto(int value) {
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int width = 1; width < WARP_SIZE; width *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, value, width);
        if (lane >= width) value += before;
    }
    return value;
}

// Integers in the order of floats, and back.
__device__ __forceinline__ int in_order(float value) {
    const int bits = __float_as_int(value);
    return bits ^ (bits >> 31 & 0x7fffffff);
}
__device__ __forceinline__ float out_of_order(int key) { return __int_as_float(key ^ (key >> 31 & 0x7fffffff)); }

// The lower `count` bits of a word, none or all where it has not so many.
__device__ __forceinline__ unsigned lower_bits(int count) {
    return count <= 0 ? 0 : count >= 32 ? 0xffffffffu : (1u << count) - 1;
}

// This thread's number, of which the compiler knows nothing: what is made of it is made here, and takes no register before.
__device__ __forceinline__ int thread_again() {
    int thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

template <int THREADS>
struct Choice {
    static constexpr int ITEMS = (SELECT_BLOCKS + THREADS - 1) / THREADS, WARPS = THREADS / WARP_SIZE;
    static constexpr int CANDIDATES = SELECT_CANDIDATES < THREADS ? SELECT_CANDIDATES : THREADS;
    static_assert(SELECT_WORDS <= THREADS, "a word per thread");

    SelectMemory& memory;
    float score[ITEMS];

    __device__ __forceinline__ explicit Choice(SelectMemory& memory) : memory(memory) {}

    // Take the scores of `blocks` blocks, of which there may be more: score_of(block).
    template <typename ScoreOf>
    __device__ __forceinline__ void take(int blocks, ScoreOf score_of) {
        const int there = min(blocks, SELECT_BLOCKS);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int block = i * THREADS + (int)threadIdx.x;
            score[i] = block < there ? score_of(block) : 0.0f;
        }
    }

    // Add the scores of the other heads, `apart` from each other, in head order; a NaN counts as -inf and is told.
    __device__ __forceinline__ void add_heads(const float* scores, int64_t heads, int64_t apart, int blocks,
                                              bool& undefined) {
        const int there = min(blocks, SELECT_BLOCKS);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            undefined |= isnan(score[i]) && i * THREADS + (int)threadIdx.x < there;
            score[i] = fmaxf(score[i], -INFINITY);
        }
        for (int64_t head = 1; head < heads; ++head) {
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) {
                const int block = i * THREADS + (int)threadIdx.x;
                if (block >= there) continue;
                const float next = scores[head * apart + block];
                undefined |= isnan(next);
                score[i] = __fadd_rn(score[i], fmaxf(next, -INFINITY));
            }
        }
    }

    // Set the bits of the `budget` best of `blocks` blocks. `undefined` is set where a score is NaN. False: it cannot.
    __device__ __forceinline__ bool find(int blocks, int budget, int sinks, int recent, bool& undefined) {
        if (blocks > SELECT_BLOCKS || budget == 0 || sinks < 0 || recent < 0) return false;
        const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
        // What lies around [first, behind) is always kept.
        const int count = uniform(blocks), first = min(sinks, count), behind = max(count - recent, first);
        const int wanted = uniform(budget) - (count - (behind - first));
        if (wanted < 0) return false;
        for (int i = threadIdx.x; i < SELECT_BINS; i += THREADS) memory.histogram[i] = memory.fine[i] = 0;
        for (int i = threadIdx.x; i < SELECT_WORDS; i += THREADS) memory.chosen[i] = 0;
        if (threadIdx.x == 0) memory.candidates = memory.equals = 0;
        float best = NAN;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {  // NaN counts as -inf; NaN marks what is not to be chosen among
            const int block = i * THREADS + (int)threadIdx.x;
            if (block < count && isnan(score[i])) undefined = true;
            score[i] = (unsigned)(block - first) < (unsigned)(behind - first) ? fmaxf(score[i], -INFINITY) : NAN;
            best = fmaxf(best, score[i]);
        }
        if (wanted == 0) {
            __syncthreads();
            return true;
        }
        if (2 * wanted <= THREADS && count > THREADS) {
            float least = INFINITY, most = -INFINITY;
            if (fabsf(best) < INFINITY) least = most = best;
            if (!spread(least, most)) return false;
            if (!isnan(best)) atomicAdd(&memory.histogram[bin_of(best)], 1);
            __syncthreads();
            find_bucket(wanted);
            const int bucket = memory.bucket;
            unsigned mine = 0;  // a bit per item
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) mine |= place_of(score[i]) >= from(bucket) ? 1u << i : 0;
            collect(mine);
            __syncthreads();
            if (memory.candidates <= CANDIDATES) {
                narrow(wanted, bucket);
                return true;
            }
            __syncthreads();  // everybody knows
            for (int i = threadIdx.x; i < SELECT_BINS; i += THREADS) memory.histogram[i] = 0;
            if (threadIdx.x == 0) memory.candidates = 0;
        }
        float least = INFINITY, most = -INFINITY;  // of the finite ones
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (i * THREADS >= count) continue;
            const bool finite = fabsf(score[i]) < INFINITY;
            least = fminf(least, finite ? score[i] : INFINITY);
            most = fmaxf(most, finite ? score[i] : -INFINITY);
        }
        if (!spread(least, most)) return false;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (i * THREADS < count && !isnan(score[i])) atomicAdd(&memory.histogram[bin_of(score[i])], 1);
        }
        __syncthreads();
        find_bucket(wanted);
        const int bucket = memory.bucket;
        const float over = bucket < SELECT_BINS - 1 ? (float)bucket : NAN;
        unsigned mine = 0;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            if (i * THREADS >= count) continue;
            const float place = place_of(score[i]);
            const bool sure = place >= over;
            mine |= place >= from(bucket) && !sure ? 1u << i : 0;
            const unsigned word = __ballot_sync(FULL_WARP, sure);
            if (lane == 0) memory.chosen[i * WARPS + warp] = word;
        }
        collect(mine);
        __syncthreads();
        if (memory.candidates > CANDIDATES) return false;
        rank(memory.candidates, wanted - memory.above);
        return true;
    }

    float low, step;  // of the histograms: bin b holds the places from b - 1 on, up to b; bin 0 all below

    __device__ __forceinline__ float place_of(float value) const { return __fmul_rn(__fsub_rn(value, low), step); }
    __device__ __forceinline__ int bin_of(float value) const {  // +inf: the last
        const float place = place_of(value);
        return place < 0.0f ? 0 : 1 + (int)fminf(place, SELECT_BINS - 2);
    }
    __device__ __forceinline__ static float from(int bin) { return bin > 0 ? bin - 1.0f : -INFINITY; }

    // Let the bins span what the threads have. False: that is too much.
    __device__ __forceinline__ bool spread(float least, float most) {
        const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
        int lowest = ~warp_highest(~in_order(least)), highest = warp_highest(in_order(most));
        if (lane == 0) memory.warp_low[warp] = lowest;
        if (lane == 0) memory.warp_high[warp] = highest;
        __syncthreads();
        lowest = ~warp_highest(~memory.warp_low[lane % WARPS]);
        highest = warp_highest(memory.warp_high[lane % WARPS]);
        low = lowest <= highest ? out_of_order(lowest) : 0.0f;
        const float width = lowest <= highest ? out_of_order(highest) - low : 0.0f;
        step = fminf(fmaxf(__fdividef(SELECT_BINS - 3, width), 0x1p-126f), 0x1.fffffep+127f);  // any will do
        return width < INFINITY;
    }

    // Put the items whose bits are set among the candidates; where they are too many, only their number is right.
    __device__ __forceinline__ void collect(unsigned mine) {
        const int lane = threadIdx.x % WARP_SIZE;
        const int own = __popc(mine), upto = warp_sum_upto(own), all = __shfl_sync(FULL_WARP, upto, WARP_SIZE - 1);
        if (all == 0) return;
        int at = 0;
        if (lane == 0) at = atomicAdd(&memory.candidates, all);
        at = __shfl_sync(FULL_WARP, at, 0);
        if (at + all > CANDIDATES) return;
        unsigned to = shared_address(&memory.candidate[at + upto - own]);
        const int thread = thread_again();
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {  // no branches
            asm volatile(
                "{\n\t.reg .pred mine;\n\tsetp.ne.u32 mine, %1, 0;\n\t@mine st.shared.v2.b32 [%0], {%2, %3};\n\t"
                "@mine add.u32 %0, %0, 8;\n\t}"
                : "+r"(to)
                : "r"(mine & 1u << i), "r"(__float_as_int(score[i])), "r"(i * THREADS + thread)
                : "memory");
        }
    }

    // Of the candidates, all from a bin on, set the bits of the best `wanted`.
    __device__ __forceinline__ void narrow(int wanted, int bucket) {
        const int lane = threadIdx.x % WARP_SIZE, number = memory.candidates;
        const bool there = (int)threadIdx.x < number;
        float2 own = {0.0f, 0.0f};
        if (there) own = memory.candidate[threadIdx.x];
        const int bin = bin_of(own.x), block = __float_as_int(own.y);
        if (there) atomicAdd(&memory.fine[bin], 1);
        __syncthreads();
        // From the lowest bin up: the first with which more lie below than are too many.
        int at = bucket, below = 0, upto;
        unsigned beyond;
        for (;; at += WARP_SIZE) {
            upto = below + warp_sum_upto(at + lane < SELECT_BINS ? memory.fine[at + lane] : 0);
            beyond = __ballot_sync(FULL_WARP, upto > number - wanted);
            if (beyond) break;
            below = __shfl_sync(FULL_WARP, upto, WARP_SIZE - 1);
        }
        const int first = __ffs(beyond) - 1;
        at += first;
        if (there && bin > at) atomicOr(&memory.chosen[block / 32], 1u << block % 32);
        if (there && bin == at) memory.candidate[atomicAdd(&memory.equals, 1)] = own;
        __syncthreads();
        rank(memory.equals, wanted - (number - __shfl_sync(FULL_WARP, upto, first)));
    }

    // The bin, from the top, with which `wanted` are reached, and how many lie above it.
    __device__ __forceinline__ void find_bucket(int wanted) {
        constexpr int OWN = (SELECT_BINS + THREADS - 1) / THREADS;  // thread t has bins OWN·t, … from the top
        const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
        const int top = SELECT_BINS - 1 - OWN * thread_again();
        int held[OWN], own = 0;
#pragma unroll
        for (int i = 0; i < OWN; ++i) own += held[i] = top - i >= 0 ? memory.histogram[top - i] : 0;
        const int of_warp = warp_total(own);
        if (lane == 0) memory.warp_sum[warp] = of_warp;
        __syncthreads();
        const int earlier = warp_total(lane < warp ? memory.warp_sum[lane] : 0);
        if (earlier < wanted && earlier + of_warp >= wanted) {
            int before = earlier + warp_sum_upto(own) - own;
            if (before < wanted && before + own >= wanted) {
#pragma unroll
                for (int i = 0; i < OWN; ++i) {
                    if (before < wanted && before + held[i] >= wanted) {
                        memory.bucket = top - i;
                        memory.above = before;
                    }
                    before += held[i];
                }
            }
        }
        __syncthreads();
    }

    // Set the bits of the best `wanted` of the first candidates: the higher score, then the lower block.
    __device__ __forceinline__ void rank(int number, int wanted) {
        if ((int)threadIdx.x < number) {
            const float2 own = memory.candidate[threadIdx.x];
            const int block = __float_as_int(own.y);
            int better = 0;
#pragma unroll 4
            for (int i = 0; i < number; ++i) {
                const float2 other = memory.candidate[i];
                better += (int)(other.x > own.x) | ((int)(other.x == own.x) & (int)(__float_as_int(other.y) < block));
            }
            if (better < wanted) atomicOr(&memory.chosen[block / 32], 1u << block % 32);
        }
        __syncthreads();
    }

    // keep(place, block) for each block found whose place in the list, in ascending order, lies within [low, high); by any
    // thread. The other arguments are as find() had them; when keep is called, all threads have entered.
    template <typename Keep>
    __device__ __forceinline__ void list(int blocks, int sinks, int recent, int low, int high, Keep keep) {
        const int first = min(sinks, blocks), behind = max(blocks - recent, first);
        const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, from = (int)threadIdx.x * 32;
        unsigned word = 0;
        if (threadIdx.x < SELECT_WORDS) {
            word = memory.chosen[threadIdx.x] | lower_bits(first - from) |
                   (lower_bits(blocks - from) & ~lower_bits(behind - from));
        }
        const int own = __popc(word), upto = warp_sum_upto(own);
        if (lane == WARP_SIZE - 1) memory.warp_sum[warp] = upto;
        __syncthreads();
        int place = warp_total(lane < warp ? memory.warp_sum[lane] : 0) + upto - own;
        if (place + own <= low || place >= high) return;
#pragma unroll 1
        for (; word; word &= word - 1, ++place) {
            if (place >= low && place < high) keep(place, from + __ffs(word) - 1);
        }
    }
};
