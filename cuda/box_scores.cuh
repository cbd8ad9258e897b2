// Scores of a run of blocks from their boxes, for block_scoring and the fused query_aware_paged_attention.
//
// The plain path scores a block and a head at a time. The fast one, for head_dim 64 and 128 and a group of 1, 2 or a
// multiple of 4 heads, brings 16 boxes at a time into shared memory, 16 bytes per lane and all under way at once. Half a
// warp then takes one block: lane m of 16 adds channels 2·m and 2·m + 1, then 32 further on, …, as two of the 32 sums
// that the order of decisions has (selection.cuh). In each step of the butterfly a lane hands over the sums that it will
// not finish and keeps the others; the last step, of neighbours, is within the lane. 30 shuffles finish 32 scores.
#pragma once

#include "ring.cuh"
#include "selection.cuh"

constexpr int SCORE_WARPS = 4;
constexpr int SCORE_BLOCKS = 16;  // per warp
constexpr int HALF_WARP = WARP_SIZE / 2;
constexpr int ROW_PADDING = 32;  // halfs: the two rows that a warp reads at once then lie in different banks

// Steps WIDTH, WIDTH / 2, …, 1 of a butterfly over COUNT pairs of sums per lane of a half warp: what pair m % COUNT comes
// to in all lanes ends in lane m.
template <int COUNT, int WIDTH>
__device__ __forceinline__ void hand_over(float (&sums)[COUNT][2]) {
    const bool upper = threadIdx.x & WIDTH;
    constexpr bool FEW = COUNT <= WIDTH;  // then every lane goes on with all of them
#pragma unroll
    for (int i = 0; i < (FEW ? COUNT : WIDTH); ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const float early = sums[i][k], late = FEW ? early : sums[i + (FEW ? 0 : WIDTH)][k];
            const float given = __shfl_xor_sync(FULL_WARP, upper ? early : late, WIDTH);
            sums[i][k] = __fadd_rn(upper ? late : early, given);
        }
    }
    if constexpr (WIDTH > 1) hand_over<COUNT, WIDTH / 2>(sums);
}

// The call's arrays and sizes, as block_scoring has them.
struct Scoring {
    const half* query;
    const half* box;
    int64_t num_heads, head_dim, num_blocks, num_kv_heads, max_blocks_per_seq;
    int reduction;
    bool per_head;  // a score for every query head, not one for the group

    __device__ void put(float* block_score, int64_t seq, int64_t kv_head, int64_t head, int64_t logical,
                        float score) const {
        const int64_t row = per_head ? seq * num_heads + head : seq * num_kv_heads + kv_head;
        block_score[row * max_blocks_per_seq + logical] = score;
    }
};

template <int HEADS, int PARTS>
__device__ __forceinline__ void score_tile(const Scoring& call, const int* table, float* block_score, int64_t first,
                                           int64_t given, int64_t seq, int64_t kv_head, half* shared) {
    constexpr int HEAD_DIM = PARTS * WARP_SIZE, ROW = 2 * HEAD_DIM + ROW_PADDING, LANES = 2 * HEAD_DIM / 8;
    constexpr int ROWS = WARP_SIZE / LANES;       // boxes that one load of the warp brings
    constexpr int AT_ONCE = HEADS > 1 ? WARP_SIZE / HEADS : SCORE_BLOCKS;  // blocks per butterfly
    constexpr int GROUPS = SCORE_BLOCKS / AT_ONCE;
    const int lane = threadIdx.x % WARP_SIZE, side = lane / HALF_WARP, m = lane % HALF_WARP;
    const int64_t group = call.num_heads / call.num_kv_heads;
    half* const rows = shared + threadIdx.x / WARP_SIZE * (SCORE_BLOCKS * ROW);
    // The table is read before anything depends on how many blocks there are.
    const int entry = lane < SCORE_BLOCKS && first + lane < call.max_blocks_per_seq ? table[first + lane] : -1;
    const int own = first + lane < given ? entry : -1;
    const bool own_held = own >= 0 && own < call.num_blocks;
#pragma unroll
    for (int i = 0; i < SCORE_BLOCKS; i += ROWS) {
        const int at = i + lane / LANES, block = __shfl_sync(FULL_WARP, own_held ? own : -1, at);
        const int channel = lane % LANES * 8;
        const half* from = call.box + box_offset(max(block, 0), kv_head, 0, channel, call.num_kv_heads, HEAD_DIM);
        if (block >= 0) copy_ahead(rows + at * ROW + channel, from);
        if ((i + ROWS) % AT_ONCE == 0) close_copies();
    }
    float so_far[GROUPS] = {};  // of a group of more than HEADS heads
    for (int64_t start = 0; start < group; start += HEADS) {
        const half* const q = call.query + (seq * call.num_heads + kv_head * group + start) * HEAD_DIM;
        float2 above[HEADS][PARTS], below[HEADS][PARTS];  // the positive and the negative part of each channel
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                const half2 pair = reinterpret_cast<const half2*>(q + h * HEAD_DIM + p * WARP_SIZE)[m];
                const float2 x = __half22float2(pair);
                above[h][p] = {x.x > 0.0f ? x.x : 0.0f, x.y > 0.0f ? x.y : 0.0f};
                below[h][p] = {x.x < 0.0f ? x.x : 0.0f, x.y < 0.0f ? x.y : 0.0f};
            }
        }
        const bool undefined = [&] {
            bool any = false;
            for (int i = lane; i < HEADS * HEAD_DIM; i += WARP_SIZE) any |= __hisnan(q[i]);
            return __any_sync(FULL_WARP, any);
        }();
#pragma unroll
        for (int g = 0; g < GROUPS; ++g) {
            if (start == 0) {
                if (g == 0) await_copies<GROUPS - 1>();
                else if (g == 1) await_copies<GROUPS < 2 ? 0 : GROUPS - 2>();
                else if (g == 2) await_copies<GROUPS < 3 ? 0 : GROUPS - 3>();
                else await_copies<0>();
            }
            float sums[HALF_WARP][2] = {};
#pragma unroll
            for (int i = 0; i < AT_ONCE / 2; ++i) {
                const half2* const row = reinterpret_cast<const half2*>(rows + (g * AT_ONCE + 2 * i + side) * ROW) + m;
                float2 low[PARTS], high[PARTS];
#pragma unroll
                for (int p = 0; p < PARTS; ++p) {
                    low[p] = __half22float2(row[p * HALF_WARP]);
                    high[p] = __half22float2(row[HEAD_DIM / 2 + p * HALF_WARP]);
                }
#pragma unroll
                for (int h = 0; h < HEADS; ++h) {
                    float even = 0.0f, odd = 0.0f;  // products are exact, so that a fused step rounds only the sum
#pragma unroll
                    for (int p = 0; p < PARTS; ++p) {
                        even = __fmaf_rn(above[h][p].x, high[p].x, __fmaf_rn(below[h][p].x, low[p].x, even));
                        odd = __fmaf_rn(above[h][p].y, high[p].y, __fmaf_rn(below[h][p].y, low[p].y, odd));
                    }
                    sums[i * HEADS + h][0] = even;
                    sums[i * HEADS + h][1] = odd;
                }
            }
            // Lane m of a side has head m % HEADS of block 2 · (m / HEADS) + side.
            const int in_tile = g * AT_ONCE + 2 * (m / HEADS) + side, head = m % HEADS;
            const int64_t logical = in_tile < SCORE_BLOCKS ? first + in_tile : call.max_blocks_per_seq;
            const int block = __shfl_sync(FULL_WARP, own, in_tile);
            const bool held = __shfl_sync(FULL_WARP, (int)own_held, in_tile) && in_tile < SCORE_BLOCKS;
            hand_over<HALF_WARP, HALF_WARP / 2>(sums);
            float score = positive_zero(__fadd_rn(sums[0][0], sums[0][1]));
            // A bound that is no number, also the infinite ones of an empty box times 0: as the plain path has it.
            unsigned odd_ones = __ballot_sync(FULL_WARP, held && (isnan(score) || undefined));
            while (odd_ones) {
                const int from = __ffs(odd_ones) - 1;
                odd_ones &= odd_ones - 1;
                const int of_head = __shfl_sync(FULL_WARP, head, from), of_block = __shfl_sync(FULL_WARP, block, from);
                const half* low = call.box + box_offset(of_block, kv_head, 0, 0, call.num_kv_heads, HEAD_DIM);
                const float plain = box_score(q + of_head * HEAD_DIM, low, low + HEAD_DIM, HEAD_DIM);
                if (lane == from) score = plain;
            }
            if (!held) score = -INFINITY;
            GroupReduction reduced(call.reduction);
            reduced.heads = (int)start;
            reduced.value = so_far[g];
#pragma unroll
            for (int h = 0; h < HEADS; ++h) reduced.add(__shfl_sync(FULL_WARP, score, lane / HEADS * HEADS + h));
            so_far[g] = reduced.value;
            if (logical >= call.max_blocks_per_seq) continue;
            if (call.per_head) {
                call.put(block_score, seq, kv_head, kv_head * group + start + head, logical, score);
            } else if (head == 0 && start + HEADS == group) {
                call.put(block_score, seq, kv_head, 0, logical, held ? reduced.result() : -INFINITY);
            }
        }
    }
}

// Score the blocks [first, first + SCORE_BLOCKS) of a row by one warp; `given` of the row hold tokens, and none lies
// behind the table.
__device__ __forceinline__ void score_blocks(const Scoring& call, const int* table, float* block_score, int64_t first,
                                             int64_t given, int64_t seq, int64_t kv_head) {
    __shared__ __align__(16) half shared[SCORE_WARPS * SCORE_BLOCKS * (2 * 128 + ROW_PADDING)];
    const int64_t group = call.num_heads / call.num_kv_heads;
    const bool aligned = (((unsigned long long)call.box | (unsigned long long)call.query) & 15) == 0;
#define SCORE_TILE(HEADS, PARTS)                    \
    if (aligned && call.head_dim == 32 * PARTS && (group == HEADS || (HEADS == 4 && group % 4 == 0))) \
        return score_tile<HEADS, PARTS>(call, table, block_score, first, given, seq, kv_head, shared)
    SCORE_TILE(4, 4);
    SCORE_TILE(4, 2);
    SCORE_TILE(2, 4);
    SCORE_TILE(2, 2);
    SCORE_TILE(1, 4);
    SCORE_TILE(1, 2);
#undef SCORE_TILE
    const int64_t end = min(first + SCORE_BLOCKS, call.max_blocks_per_seq);
    for (int64_t logical = first; logical < end; ++logical) {
        const int block = logical < given ? table[logical] : -1;
        const bool held = block >= 0 && block < call.num_blocks;
        const half* low = call.box + box_offset(held ? block : 0, kv_head, 0, 0, call.num_kv_heads, call.head_dim);
        GroupReduction reduced(call.reduction);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            const half* const q = call.query + (seq * call.num_heads + head) * call.head_dim;
            const float score = held ? box_score(q, low, low + call.head_dim, call.head_dim) : -INFINITY;
            reduced.add(score);
            if (call.per_head && threadIdx.x % WARP_SIZE == 0) {
                call.put(block_score, seq, kv_head, head, logical, score);
            }
        }
        if (!call.per_head && threadIdx.x % WARP_SIZE == 0) {
            call.put(block_score, seq, kv_head, 0, logical, held ? reduced.result() : -INFINITY);
        }
    }
}
