// Scatter new K and V into their blocks and keep each block's key box, in one pass.
// One thread block per (logical block, sequence), or per entry of a work list of touched blocks: it owns the block, so
// the box needs no atomics. Threads over channels; each walks the block's new tokens and keeps their extremes.
// TinyServe S:34-67; boxes: Quest, arXiv 2406.10774.
#include "common.cuh"

extern "C" __global__ void fused_reshape_and_block_write(
    const half* kv,              // [num_tokens][2][num_kv_heads][head_dim] K, V
    const int64_t* token_start,  // [num_seqs] row of kv with the first new token
    const int* start_pos,        // [num_seqs] position of that token
    const int* seq_lens,         // [num_seqs] tokens after the write
    const int* block_table,      // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* ref,              // [num_blocks]
    half* key_cache,             // [num_blocks][block_size][num_kv_heads][head_dim]
    half* value_cache,           // as key_cache
    half* box,                   // [num_blocks][num_kv_heads][2][head_dim]
    const int64_t* work_start,   // [num_seqs] blocks touched by earlier sequences, or null
    int64_t num_tokens,
    int64_t num_kv_heads,
    int64_t head_dim,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int64_t block_size,
    int64_t num_work,
    int* status) {
    const int64_t channels = num_kv_heads * head_dim;
    const int64_t items = work_start ? num_work : max_blocks_per_seq * num_seqs;
    int flags = 0;
    if (work_start || blockIdx.x == 0) {
        // Without a block there is nobody to notice a sequence that does not fit, so the first thread blocks do.
        for (int64_t seq = blockIdx.y; seq < num_seqs; seq += gridDim.y) {
            const int64_t start = start_pos[seq], end = seq_lens[seq], row = token_start[seq];
            if (start < 0 || start > end || end > max_blocks_per_seq * block_size || row < 0 ||
                row + end - start > num_tokens) {
                flags |= STATUS_RANGE;
            }
        }
    }
    for (int64_t item = (int64_t)blockIdx.y * gridDim.x + blockIdx.x; item < items;
         item += (int64_t)gridDim.x * gridDim.y) {
        int64_t seq = item / max(max_blocks_per_seq, (int64_t)1), logical = item % max(max_blocks_per_seq, (int64_t)1);
        if (work_start) {
            int64_t low = 0, high = num_seqs;  // the last sequence that starts at or before this item
            while (high - low > 1) {
                const int64_t middle = (low + high) / 2;
                if (work_start[middle] <= item) low = middle;
                else high = middle;
            }
            seq = low;
            logical = start_pos[seq] / block_size + item - work_start[seq];
        }
        const int64_t start = start_pos[seq], end = seq_lens[seq], row = token_start[seq];
        if (start < 0 || start > end || end > max_blocks_per_seq * block_size || row < 0 ||
            row + end - start > num_tokens) {
            continue;
        }
        const int64_t first = max(start, logical * block_size), last = min(end, (logical + 1) * block_size);
        if (first >= last) continue;
        const int block = block_table[seq * max_blocks_per_seq + logical];
        if (block < 0 || block >= num_blocks || ref[block] != 1) {
            if (block < 0) flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
            else if (block >= num_blocks) flags |= STATUS_RANGE;
            else flags |= ref[block] < 1 ? STATUS_UNMAPPED : STATUS_SHARED_WRITE;
            continue;
        }
        const int64_t slot = first - logical * block_size;
        for (int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
            const int64_t kv_head = i / head_dim, d = i % head_dim;
            const int64_t low_at = box_offset(block, kv_head, 0, d, num_kv_heads, head_dim);
            const int64_t high_at = box_offset(block, kv_head, 1, d, num_kv_heads, head_dim);
            float low = slot == 0 ? INFINITY : __half2float(box[low_at]);
            float high = slot == 0 ? -INFINITY : __half2float(box[high_at]);
            const half* source = kv + (row + first - start) * 2 * channels + i;
            int64_t target = pool_offset(block, slot, 0, i, block_size, num_kv_heads, head_dim);
#pragma unroll 4
            for (int64_t token = first; token < last; ++token, source += 2 * channels, target += channels) {
                const half key = source[0];
                key_cache[target] = key;
                value_cache[target] = source[channels];
                low = fminf(low, __half2float(key));  // a NaN is passed over
                high = fmaxf(high, __half2float(key));
            }
            box[low_at] = __float2half(low + 0.0f);
            box[high_at] = __float2half(high + 0.0f);
        }
    }
    if (flags && threadIdx.x == 0) atomicOr(status, flags);
}
