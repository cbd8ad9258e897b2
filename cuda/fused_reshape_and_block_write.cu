// Scatter new K and V into their blocks and keep each block's key box, in one pass.
// One thread block per (logical block, sequence), or per entry of a work list of touched blocks: it owns the block, so
// the box needs no atomics. Threads over channels, eight at a time (16 bytes) where head_dim and the addresses allow it;
// each walks the block's new tokens, four in flight, and keeps their extremes.
// TinyServe S:34-67; boxes: Quest, arXiv 2406.10774.
#include "common.cuh"

// Copy the K and V of `tokens` tokens in a column of sizeof(T) bytes, and make or widen the box of the column.
template <typename T>
__device__ __forceinline__ void write_channels(const half* source, half* key, half* value, half* low_at, half* high_at,
                                               int tokens, int64_t channels, bool fresh) {
    constexpr int CHANNELS = sizeof(T) / sizeof(half), IN_FLIGHT = 4;
    float low[CHANNELS], high[CHANNELS];
    const T old_low = *reinterpret_cast<const T*>(low_at), old_high = *reinterpret_cast<const T*>(high_at);
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        low[c] = fresh ? INFINITY : __half2float(reinterpret_cast<const half*>(&old_low)[c]);
        high[c] = fresh ? -INFINITY : __half2float(reinterpret_cast<const half*>(&old_high)[c]);
    }
    for (int token = 0; token < tokens; token += IN_FLIGHT) {
        T k[IN_FLIGHT], v[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; ++i) {
            if (token + i >= tokens) continue;
            k[i] = *reinterpret_cast<const T*>(source + (token + i) * 2 * channels);
            v[i] = *reinterpret_cast<const T*>(source + (token + i) * 2 * channels + channels);
        }
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; ++i) {
            if (token + i >= tokens) continue;
            *reinterpret_cast<T*>(key + (token + i) * channels) = k[i];
            *reinterpret_cast<T*>(value + (token + i) * channels) = v[i];
#pragma unroll
            for (int c = 0; c < CHANNELS; ++c) {
                const float x = __half2float(reinterpret_cast<const half*>(&k[i])[c]);
                low[c] = fminf(low[c], x);  // a NaN is passed over
                high[c] = fmaxf(high[c], x);
            }
        }
    }
    T new_low, new_high;
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        reinterpret_cast<half*>(&new_low)[c] = __float2half(low[c] + 0.0f);  // -0 becomes +0
        reinterpret_cast<half*>(&new_high)[c] = __float2half(high[c] + 0.0f);
    }
    *reinterpret_cast<T*>(low_at) = new_low;
    *reinterpret_cast<T*>(high_at) = new_high;
}

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
    const auto address = [](const void* pointer) { return (unsigned long long)pointer; };
    const bool wide = head_dim % 8 == 0 &&
                      ((address(kv) | address(key_cache) | address(value_cache) | address(box)) & 15) == 0;
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
        const half* const source = kv + (row + first - start) * 2 * channels;
        const int64_t target = pool_offset(block, slot, 0, 0, block_size, num_kv_heads, head_dim);
        const int tokens = (int)(last - first);
        if (wide) {
            for (int64_t i = 8 * threadIdx.x; i < channels; i += 8 * blockDim.x) {
                const int64_t bounds = box_offset(block, i / head_dim, 0, i % head_dim, num_kv_heads, head_dim);
                write_channels<uint4>(source + i, key_cache + target + i, value_cache + target + i, box + bounds,
                                      box + bounds + head_dim, tokens, channels, slot == 0);
            }
        } else {
            for (int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
                const int64_t bounds = box_offset(block, i / head_dim, 0, i % head_dim, num_kv_heads, head_dim);
                write_channels<half>(source + i, key_cache + target + i, value_cache + target + i, box + bounds,
                                     box + bounds + head_dim, tokens, channels, slot == 0);
            }
        }
    }
    if (flags && threadIdx.x == 0) atomicOr(status, flags);
}
