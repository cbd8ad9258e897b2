// An upper bound of every logit in a block, from the block's box alone.
// One warp per (block, sequence, KV head), four to a thread block; the query heads of the group share the box.
// TinyServe paper, arXiv 2509.12211 eq. 2; Quest, arXiv 2406.10774.
#include "selection.cuh"

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
    const int64_t logical = (int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    const int64_t seq = blockIdx.y, kv_head = blockIdx.z, group = num_heads / num_kv_heads;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const int64_t given = num_seq_blocks[seq];
    if (blockIdx.x == 0 && threadIdx.x == 0 && (given < 0 || given > max_blocks_per_seq)) {
        atomicOr(status, STATUS_RANGE);
    }
    if (logical >= max_blocks_per_seq) return;  // whole warps leave
    const int block = logical < given ? block_table[seq * max_blocks_per_seq + logical] : -1;
    const bool held = block >= 0 && block < num_blocks;
    if (logical < given && !held && lane == 0) atomicOr(status, block == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
    const half* low = box + box_offset(held ? block : 0, kv_head, 0, 0, num_kv_heads, head_dim);
    const half* high = low + head_dim;
    GroupReduction reduced(reduction);
    for (int64_t i = 0; i < group; ++i) {
        const int64_t head = kv_head * group + i;
        float score = -INFINITY;
        if (held) score = box_score(query + (seq * num_heads + head) * head_dim, low, high, head_dim);
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
