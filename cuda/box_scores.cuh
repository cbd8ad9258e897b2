// Scores of a run of blocks from their boxes, for block_scoring and the fused query_aware_paged_attention.
//
// The plain path scores a block and a head at a time. The fast one, for head_dim 64 and 128, takes 64 blocks of a
// (sequence, KV head) in a thread block, 8 in a warp, and four query heads at a time (fewer: the others are zeros).
//
// Products come from tensor cores, sums do not: their order is that of decisions (selection.cuh), which no tensor core
// keeps. Of the 8 places that mma.m16n8k8 adds for an output, one alone is not zero, so that it gives the exact product:
//
//     product[head, channel][block] = bound[head, channel][channel', lowest or highest] · box[channel', …][block]
//
// with 16 = 4 heads · 4 channels and 8 = 4 channels · 2 bounds; `bound` holds the query's channel where channel' is the
// same one, with highest if it is positive and with lowest if it is negative. So one instruction takes the bound, converts
// and multiplies for 8 blocks. With lane = 16·head₀ + 8·c₁ + 4·c₀ + q, a lane's products are of the channels
// 32·p + 16·y + 8·c₁ + 2·j + c₀: it adds over p, then over y, hands over half of the sums by c₁, adds over j and
// hands over by c₀, which is the butterfly 16, 8, 4, 2, 1 of 32 sums. 9 shuffles finish 32 scores.
#pragma once

#include "ring.cuh"
#include "selection.cuh"

constexpr int SCORE_WARPS = 8, SCORE_THREADS = SCORE_WARPS * WARP_SIZE;
constexpr int SCORE_BLOCKS = 8;  // per warp
constexpr int SCORE_HEADS = 4;   // at a time
#if __CUDA_ARCH__ == 900
constexpr int SCORE_PER_SM = 4;  // thread blocks; measured there, at the price of a few spilled words with large groups
#else
constexpr int SCORE_PER_SM = 2;
#endif

// The call's arrays and sizes, as block_scoring has them.
struct Scoring {
    const half* query;
    const half* box;
    int64_t num_heads, head_dim, num_blocks, num_kv_heads, max_blocks_per_seq;
    int reduction;
    bool per_head;  // a score for every query head, not one for the group
    int* status;

    // Query heads of a KV head; FEW: no more than are taken at a time, so that nobody waits for a division.
    template <bool FEW = false>
    __device__ int group() const {
        const unsigned heads = (unsigned)num_heads, kv_heads = (unsigned)num_kv_heads;
        if (FEW) return 1 + (heads > kv_heads) + (heads > 2 * kv_heads) + (heads > 3 * kv_heads);
        return (int)(heads / kv_heads);
    }

    // Rows of arrays that fit into a memory have 32-bit numbers.
    __device__ const half* queries(unsigned seq, unsigned head) const {
        return query + (seq * (unsigned)num_heads + head) * head_dim;
    }

    __device__ void put(float* block_score, unsigned seq, unsigned kv_head, unsigned head, int logical, float score) const {
        const unsigned row = per_head ? seq * (unsigned)num_heads + head : seq * (unsigned)num_kv_heads + kv_head;
        block_score[row * max_blocks_per_seq + logical] = score;
    }
};

// A word for each part of 32 channels.
template <int PARTS>
struct alignas(4 * PARTS) Words {
    unsigned part[PARTS];
};

template <int PARTS>
struct ScoreMemory {
    uint4 box[SCORE_WARPS][SCORE_BLOCKS][8 * PARTS];  // 16 bytes; swizzled, so that eight lanes find eight in other banks
    Words<PARTS> bound[2][4][2][WARP_SIZE];           // [y][j][first or second head of the lane][lane]
};

// products[16][8] = a[16][8] · b[8][8]
__device__ __forceinline__ void multiply_one(float (&products)[4], unsigned a0, unsigned a1, unsigned b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
        : "=f"(products[0]), "=f"(products[1]), "=f"(products[2]), "=f"(products[3])
        : "r"(a0), "r"(a1), "r"(b), "f"(0.0f));
}

// The thread block fills `bound` from the queries of `heads` heads, each thread a lane's words that have a channel and those
// of its neighbour that have none. A NaN stays one.
template <int PARTS>
__device__ __forceinline__ void take_bounds(const half* query, int heads, Words<PARTS> (&bound)[2][4][2][WARP_SIZE]) {
    static_assert(SCORE_THREADS == 16 * 16, "a thread for each half of the lanes, y, j and head");
    const int t = threadIdx.x, highest = t & 1, c0 = t >> 1 & 1, c1 = t >> 2 & 1, h0 = t >> 3 & 1;
    const int second = t >> 4 & 1, j = t >> 5 & 3, y = t >> 7;
    const int head = h0 + 2 * (c1 ^ second);  // of either c1 the head that the other one takes over comes second
    const unsigned channel = head >= heads ? 0 : c0 ? 0xffff0000u : 0xffffu;
    const unsigned lowest = highest ? 0 : channel & 0x80008000u;  // whose sign is turned
    const unsigned* const pairs = reinterpret_cast<const unsigned*>(query) + min(head, heads - 1) * (PARTS * WARP_SIZE / 2);
    Words<PARTS> made, none;
#pragma unroll
    for (int p = 0; p < PARTS; ++p) made.part[p] = __ldg(pairs + 16 * p + 8 * y + 4 * c1 + j);
#pragma unroll
    for (int p = 0; p < PARTS; ++p) {
        const unsigned turned = (made.part[p] & channel) ^ lowest;
        const half2 kept = __hmax2_nan(reinterpret_cast<const half2&>(turned), __float2half2_rn(0.0f));
        made.part[p] = reinterpret_cast<const unsigned&>(kept) ^ lowest;
        none.part[p] = 0;
    }
    const int lane = 16 * h0 + 8 * c1 + 4 * c0 + 2 * highest + c1;
    bound[y][j][second][lane] = made;
    bound[y][j][second][lane ^ 1] = none;
}

// Scores of a warp's 8 blocks: the lane has that of its head and block.
__device__ __forceinline__ int score_head() { return (threadIdx.x >> 4 & 1) + (threadIdx.x >> 2 & 2); }
__device__ __forceinline__ int score_block() { return 2 * (threadIdx.x & 3) + (threadIdx.x >> 2 & 1); }
__device__ __forceinline__ int score_lane(int head) { return (threadIdx.x & 7) + (head & 1) * 16 + (head >> 1) * 8; }

template <int PARTS>
__device__ __forceinline__ float score_boxes(const uint4 (&box)[SCORE_BLOCKS][8 * PARTS],
                                             const Words<PARTS> (&bound)[2][4][2][WARP_SIZE]) {
    const int lane = threadIdx.x % WARP_SIZE;
    const uint4* const own = box[lane / 4] + (lane >> 1 & 1) * (4 * PARTS);
    const int place = (lane & 1) ^ (lane & 2) ^ (lane & 4);
    float sums[4][4];
#pragma unroll
    for (int y = 0; y < 2; ++y) {
        uint4 held[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; ++p) held[p] = own[place ^ (4 * p + 2 * y)];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const Words<PARTS> first = bound[y][j][0][lane], second = bound[y][j][1][lane];
            float sum[4];
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                float product[4];
                multiply_one(product, first.part[p], second.part[p],
                             j == 0 ? held[p].x : j == 1 ? held[p].y : j == 2 ? held[p].z : held[p].w);
#pragma unroll
                for (int k = 0; k < 4; ++k) sum[k] = p == 0 ? product[k] : __fadd_rn(sum[k], product[k]);
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[j][k] = y == 0 ? sum[k] : __fadd_rn(sums[j][k], sum[k]);
        }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int k = 0; k < 2; ++k) sums[j][k] = __fadd_rn(sums[j][k], __shfl_xor_sync(FULL_WARP, sums[j][k + 2], 8));
    }
    float pair[2];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        pair[k] = __fadd_rn(__fadd_rn(sums[0][k], sums[2][k]), __fadd_rn(sums[1][k], sums[3][k]));
    }
    const bool upper = lane & 4;
    const float given = __shfl_xor_sync(FULL_WARP, upper ? pair[0] : pair[1], 4);
    return positive_zero(__fadd_rn(upper ? pair[1] : pair[0], given));
}

// `first` is the warp's first block, `own` the lane's (lanes below 8), -1 where there is none to score. WHOLE: the group has
// no more heads than are taken at a time, and one score. There is a block in the pool.
template <bool WHOLE, int PARTS>
__device__ __forceinline__ void score_tile(const Scoring& call, int own, int wrong, float* block_score, int first, int seq, int kv_head,
                                           ScoreMemory<PARTS>& memory) {
    constexpr int HEAD_DIM = PARTS * WARP_SIZE, LANES = 8 * PARTS, ROWS = WARP_SIZE / LANES;  // boxes that a load brings
    const int lane = threadIdx.x % WARP_SIZE, at = lane % LANES;
    const int group = call.group<WHOLE>();
    uint4(&rows)[SCORE_BLOCKS][LANES] = memory.box[threadIdx.x / WARP_SIZE];
    uint4 held[SCORE_BLOCKS / ROWS];
    const half* const from = call.box + kv_head * (2 * HEAD_DIM) + at * 8;
#pragma unroll
    for (int i = 0; i < SCORE_BLOCKS / ROWS; ++i) {
        const int block = max(__shfl_sync(FULL_WARP, own, i * ROWS + lane / LANES), 0);
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(held[i].x), "=r"(held[i].y), "=r"(held[i].z), "=r"(held[i].w)
                     : "l"(from + (int64_t)block * ((int)call.num_kv_heads * (2 * HEAD_DIM))));
    }
    const half* const queries = call.queries(seq, kv_head * group);
    take_bounds(queries, min(group, SCORE_HEADS), memory.bound);
#pragma unroll
    for (int i = 0; i < SCORE_BLOCKS / ROWS; ++i) {
        const int row = i * ROWS + lane / LANES;
        rows[row][at ^ (at / (4 * PARTS) * 2) ^ (row % 2 * 4)] = held[i];
    }
    if (wrong) atomicOr(call.status, wrong);
    __syncthreads();
    const int head = score_head(), logical = first + score_block();
    float so_far = 0.0f;
#pragma unroll 1
    for (int start = 0; start < (WHOLE ? 1 : group); start += SCORE_HEADS) {
        const int heads = min(group - start, SCORE_HEADS);
        if (start > 0) {
            __syncthreads();
            take_bounds(queries + start * HEAD_DIM, heads, memory.bound);
            __syncthreads();
        }
        float score = score_boxes<PARTS>(rows, memory.bound);
        const int block = __shfl_sync(FULL_WARP, own, score_block());
        // A bound that is no number, also the infinite ones of an empty box times 0: as the plain path has it.
        unsigned odd_ones = __ballot_sync(FULL_WARP, block >= 0 && head < heads && isnan(score));
#pragma unroll 1
        while (odd_ones) {
            const int from = __ffs(odd_ones) - 1;
            odd_ones &= odd_ones - 1;
            const int of_head = __shfl_sync(FULL_WARP, head, from), of_block = __shfl_sync(FULL_WARP, block, from);
            const half* low = call.box + box_offset(of_block, kv_head, 0, 0, call.num_kv_heads, HEAD_DIM);
            const float plain = box_score(queries + (start + of_head) * HEAD_DIM, low, low + HEAD_DIM, HEAD_DIM);
            if (lane == from) score = plain;
        }
        if (block < 0 || head >= heads) score = -INFINITY;
        if (!WHOLE && call.per_head) {
            if (head < heads && logical < call.max_blocks_per_seq) {
                call.put(block_score, seq, kv_head, kv_head * group + start + head, logical, score);
            }
            continue;
        }
        GroupReduction reduced(call.reduction);
        reduced.heads = start;
        reduced.value = so_far;
        if (call.reduction == 0) {  // the order of a maximum is free
            float best = fmaxf(score, __shfl_xor_sync(FULL_WARP, score, 16));
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 8));
            const unsigned undefined = __ballot_sync(FULL_WARP, isnan(score)) >> lane % SCORE_BLOCKS;
            reduced.add(undefined & 0x01010101u ? positive_nan() : best);
        } else {
            for (int h = 0; h < heads; ++h) reduced.add(__shfl_sync(FULL_WARP, score, score_lane(h)));
        }
        so_far = reduced.value;
        if (start + SCORE_HEADS >= group && head == 0 && logical < call.max_blocks_per_seq) {
            call.put(block_score, seq, kv_head, 0, logical, block >= 0 ? reduced.result() : -INFINITY);
        }
    }
}

// The same for any head_dim and alignment.
__device__ __forceinline__ void score_plainly(const Scoring& call, int own, float* block_score, int first, int seq,
                                              int kv_head) {
    const int group = call.group(), lane = threadIdx.x % WARP_SIZE;
    const int blocks = min((int)call.max_blocks_per_seq - first, SCORE_BLOCKS);
#pragma unroll 1
    for (int i = 0; i < blocks; ++i) {
        const int block = __shfl_sync(FULL_WARP, own, i);
        const half* low = call.box + box_offset(max(block, 0), kv_head, 0, 0, call.num_kv_heads, call.head_dim);
        GroupReduction reduced(call.reduction);
#pragma unroll 1
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            const half* const q = call.queries(seq, head);
            const float score = block >= 0 ? box_score(q, low, low + call.head_dim, call.head_dim) : -INFINITY;
            reduced.add(score);
            if (call.per_head && lane == 0) call.put(block_score, seq, kv_head, head, first + i, score);
        }
        if (!call.per_head && lane == 0) {
            call.put(block_score, seq, kv_head, 0, first + i, block >= 0 ? reduced.result() : -INFINITY);
        }
    }
}

// Score the blocks [first, first + SCORE_BLOCKS) of a row by one warp of SCORE_WARPS that follow each other; the row has
// `length` tokens in blocks of `block_size` (that is, with 1, blocks). The whole thread block calls it.
__device__ __forceinline__ void score_blocks(const Scoring& call, const int* table, float* block_score, int first, int length,
                                             int block_size, int seq, int kv_head) {
    __shared__ __align__(16) unsigned char shared[sizeof(ScoreMemory<4>)];
    const int lane = threadIdx.x % WARP_SIZE, at = first + lane, most = (int)call.max_blocks_per_seq;
    // The table is read before anything depends on how many blocks there are.
    const int entry = lane < SCORE_BLOCKS && at < most ? table[at] : -1;
    const bool inside = lane < SCORE_BLOCKS && at < most && (int64_t)at * block_size < length;
    const int own = inside && entry >= 0 && entry < call.num_blocks ? entry : -1;
    const int wrong = (inside && own < 0 ? entry == -1 ? STATUS_UNMAPPED : STATUS_RANGE : 0) |
                      (length < 0 || length > (int64_t)most * block_size ? STATUS_RANGE : 0);
    const bool aligned = (((unsigned long long)call.box | (unsigned long long)call.query) & 15) == 0;
    const int first_of_all = first - (int)threadIdx.x / WARP_SIZE * SCORE_BLOCKS;
    const bool busy = (int64_t)first_of_all * block_size < length && call.num_blocks > 0;
    const bool whole = call.num_heads <= SCORE_HEADS * call.num_kv_heads && !call.per_head;
#define SCORE_TILE(WHOLE, PARTS)                                                   \
    if (busy && aligned && whole == WHOLE && call.head_dim == PARTS * WARP_SIZE) { \
        score_tile<WHOLE>(call, own, wrong, block_score, first, seq, kv_head, reinterpret_cast<ScoreMemory<PARTS>&>(shared)); \
        return;                                                                    \
    }
    SCORE_TILE(true, 4)
    SCORE_TILE(true, 2)
    SCORE_TILE(false, 4)
    SCORE_TILE(false, 2)
#undef SCORE_TILE
    if (wrong) atomicOr(call.status, wrong);
    score_plainly(call, own, block_score, first, seq, kv_head);
}
