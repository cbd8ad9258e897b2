// An upper bound of every logit in a block, from the block's box alone.
// One warp per 16 blocks of a (sequence, KV head), four to a thread block; the query heads of the group share the boxes:
// box_scores.cuh draws how.
// TinyServe paper, arXiv 2509.12211 eq. 2; Quest, arXiv 2406.10774.
#include "box_scores.cuh"

extern "C" __global__ void __launch_bounds__(128, 4) block_scoring(
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
    const int64_t first = ((int64_t)blockIdx.x * SCORE_WARPS + threadIdx.x / WARP_SIZE) * SCORE_BLOCKS;
    const int64_t seq = blockIdx.y, kv_head = blockIdx.z;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const int64_t given = num_seq_blocks[seq], own = first + lane;
    const int* table = block_table + seq * max_blocks_per_seq;
    if (blockIdx.x == 0 && threadIdx.x == 0 && (given < 0 || given > max_blocks_per_seq)) {
        atomicOr(status, STATUS_RANGE);
    }
    if (first >= max_blocks_per_seq) return;  // whole warps leave
    const Scoring call = {query,        box,       num_heads,
                          head_dim,     num_blocks, num_kv_heads,
                          max_blocks_per_seq, reduction, num_score_heads == num_heads};
    score_blocks(call, table, block_score, first, min(given, max_blocks_per_seq), seq, kv_head);
    if (lane < SCORE_BLOCKS && own < given && own < max_blocks_per_seq && (table[own] < 0 || table[own] >= num_blocks)) {
        atomicOr(status, table[own] == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
    }
}
