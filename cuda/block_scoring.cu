// An upper bound of every logit in a block, from the block's box alone.
// One warp per BLOCKS blocks of a (sequence, KV head), four to a thread block; the query heads of the group share the box.
// The plain path scores a block and a head at a time. Where head_dim is 64 or 128 and the group has 1, 2 or a multiple of
// 4 heads, a warp scores 32 (block, head) pairs at once: lane l adds channels l, l + 32, … as before, and in each step of
// the butterfly a lane hands over the sums that it will not finish and keeps the others, so that 31 shuffles finish 32
// sums in the same order, lane l that of pair l.
// TinyServe paper, arXiv 2509.12211 eq. 2; Quest, arXiv 2406.10774.
#include "selection.cuh"

constexpr int BLOCKS = 32;

// Butterfly over 32 sums per lane: sum l of all lanes ends in lane l.
__device__ __forceinline__ float transposed_sum(float (&sums)[WARP_SIZE]) {
    const int lane = threadIdx.x % WARP_SIZE;
#pragma unroll
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
        const bool upper = lane & width;
#pragma unroll
        for (int i = 0; i < width; ++i) {
            const float given = upper ? sums[i] : sums[i + width];
            const float kept = upper ? sums[i + width] : sums[i];
            sums[i] = __fadd_rn(kept, __shfl_xor_sync(FULL_WARP, given, width));
        }
    }
    return positive_zero(sums[0]);
}

// Scores of blocks [first, first + 32 / HEADS) for heads [head, head + HEADS): lane i · HEADS + h has block i and head h.
template <int HEADS, int PARTS>
__device__ __forceinline__ float score_pairs(const half* query, const half* box, const int* table, int64_t first,
                                             int64_t given, int64_t kv_head, int64_t num_blocks, int64_t num_kv_heads) {
    constexpr int HEAD_DIM = PARTS * WARP_SIZE;
    const int lane = threadIdx.x % WARP_SIZE;
    float q[HEADS][PARTS], sums[WARP_SIZE];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int p = 0; p < PARTS; ++p) q[h][p] = __half2float(query[h * HEAD_DIM + p * WARP_SIZE + lane]);
    }
#pragma unroll
    for (int i = 0; i < WARP_SIZE / HEADS; ++i) {
        const int block = first + i < given ? table[first + i] : 0;
        const bool held = block >= 0 && block < num_blocks;
        const half* bounds = box + box_offset(held ? block : 0, kv_head, 0, lane, num_kv_heads, HEAD_DIM);
        float low[PARTS], high[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
            low[p] = __half2float(bounds[p * WARP_SIZE]);
            high[p] = __half2float(bounds[HEAD_DIM + p * WARP_SIZE]);
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float sum = 0.0f;
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                const float x = q[h][p];
                sum = __fadd_rn(sum, __fmul_rn(x, x > 0.0f ? high[p] : x < 0.0f ? low[p] : 0.0f));
            }
            sums[i * HEADS + h] = sum;
        }
    }
    return transposed_sum(sums);
}

template <int HEADS, int PARTS>
__device__ void score_blocks(const half* query, const half* box, const int* table, float* block_score, int64_t first,
                             int64_t given, int64_t seq, int64_t kv_head, int64_t num_heads, int64_t group,
                             int64_t num_blocks, int64_t num_kv_heads, int64_t max_blocks_per_seq,
                             int64_t num_score_heads, int reduction) {
    const int lane = threadIdx.x % WARP_SIZE;
    for (int64_t from = first; from < min(first + BLOCKS, max_blocks_per_seq); from += WARP_SIZE / HEADS) {
        const int64_t logical = from + lane / HEADS;
        const int block = logical < given && logical < max_blocks_per_seq ? table[logical] : -1;
        const bool held = block >= 0 && block < num_blocks;
        GroupReduction reduced(reduction);
        for (int64_t start = 0; start < group; start += HEADS) {
            const int64_t head = kv_head * group + start;
            const half* rows = query + (seq * num_heads + head) * PARTS * WARP_SIZE;
            float score = score_pairs<HEADS, PARTS>(rows, box, table, from, min(given, max_blocks_per_seq), kv_head,
                                                    num_blocks, num_kv_heads);
            if (!held) score = -INFINITY;
            if (num_score_heads == num_heads) {
                if (logical < max_blocks_per_seq) {
                    block_score[(seq * num_heads + head + lane % HEADS) * max_blocks_per_seq + logical] = score;
                }
            } else {
                for (int h = 0; h < HEADS; ++h) {
                    reduced.add(__shfl_sync(FULL_WARP, score, lane / HEADS * HEADS + h));
                }
            }
        }
        if (num_score_heads != num_heads && lane % HEADS == 0 && logical < max_blocks_per_seq) {
            block_score[(seq * num_kv_heads + kv_head) * max_blocks_per_seq + logical] =
                held ? reduced.result() : -INFINITY;
        }
    }
}

extern "C" __global__ void block_scoring(
    const half* query,          // [num_seqs][num_heads][head_dim]
    const half* box,            // [num_blocks][num_kv_heads][2][head_dim]
    const int* block_table,     // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* num_seq_blocks,  // [num_seqs] blocks that hold tokens
    float* block_score,         // [num_seqs][num_score_heads][max_blocks_per_seq]
    int64_t num_seqs,
    int64_t num_heads,
    int64_t head_dim,
    int64_t num_blocks,
    int64_t num_kv_heads,
    int64_t max_blocks_per_seq,
    int64_t num_score_heads,
    int reduction,  // 0 max, 1 mean, 2 sum
    int* status) {
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t first = ((int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE) * BLOCKS;
    const int64_t seq = blockIdx.y, kv_head = blockIdx.z, group = num_heads / num_kv_heads;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const int64_t given = num_seq_blocks[seq];
    const int* table = block_table + seq * max_blocks_per_seq;
    if (blockIdx.x == 0 && threadIdx.x == 0 && (given < 0 || given > max_blocks_per_seq)) {
        atomicOr(status, STATUS_RANGE);
    }
    if (first >= max_blocks_per_seq) return;  // whole warps leave
    const int64_t own = first + lane;
    if (own < given && own < max_blocks_per_seq && (table[own] < 0 || table[own] >= num_blocks)) {
        atomicOr(status, table[own] == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
    }
#define SCORE_BLOCKS(HEADS, PARTS)                                                                                  \
    score_blocks<HEADS, PARTS>(query, box, table, block_score, first, given, seq, kv_head, num_heads, group,       \
                               num_blocks, num_kv_heads, max_blocks_per_seq, num_score_heads, reduction)
    if (head_dim == 64 && group % 4 == 0) return SCORE_BLOCKS(4, 2);
    if (head_dim == 64 && group == 2) return SCORE_BLOCKS(2, 2);
    if (head_dim == 64 && group == 1) return SCORE_BLOCKS(1, 2);
    if (head_dim == 128 && group % 4 == 0) return SCORE_BLOCKS(4, 4);
    if (head_dim == 128 && group == 2) return SCORE_BLOCKS(2, 4);
    if (head_dim == 128 && group == 1) return SCORE_BLOCKS(1, 4);
    for (int64_t logical = first; logical < min(first + BLOCKS, max_blocks_per_seq); ++logical) {
        const int block = logical < given ? table[logical] : -1;
        const bool held = block >= 0 && block < num_blocks;
        const half* low = box + box_offset(held ? block : 0, kv_head, 0, 0, num_kv_heads, head_dim);
        GroupReduction reduced(reduction);
        for (int64_t i = 0; i < group; ++i) {
            const int64_t head = kv_head * group + i;
            float score = -INFINITY;
            if (held) score = box_score(query + (seq * num_heads + head) * head_dim, low, low + head_dim, head_dim);
            if (num_score_heads == num_heads) {
                if (lane == 0) block_score[(seq * num_heads + head) * max_blocks_per_seq + logical] = score;
            } else {
                reduced.add(score);
            }
        }
        if (num_score_heads != num_heads && lane == 0) {
            block_score[(seq * num_kv_heads + kv_head) * max_blocks_per_seq + logical] =
                held ? reduced.result() : -INFINITY;
        }
    }
}
