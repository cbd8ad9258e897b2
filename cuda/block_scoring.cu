// An upper bound of every logit in a block, from the block's box alone.
// A thread block per 64 blocks of a (sequence, KV head), 8 to a warp; the query heads of the group share the boxes:
// box_scores.cuh tells how. Thread blocks of the same blocks and other KV heads follow each other.
// TinyServe paper, arXiv 2509.12211 eq. 2; Quest, arXiv 2406.10774.
#include "box_scores.cuh"

extern "C" __global__ void __launch_bounds__(SCORE_THREADS, SCORE_PER_SM) block_scoring(
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
    const int first = ((int)blockIdx.y * SCORE_WARPS + (int)threadIdx.x / WARP_SIZE) * SCORE_BLOCKS;
    const int kv_head = (int)blockIdx.x, seq = (int)blockIdx.z;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const Scoring call = {query,        box,        num_heads,
                          head_dim,     num_blocks, num_kv_heads,
                          max_blocks_per_seq, reduction,  num_score_heads == num_heads, status};
    score_blocks(call, block_table + seq * max_blocks_per_seq, block_score, first, num_seq_blocks[seq], 1, seq, kv_head);
}
