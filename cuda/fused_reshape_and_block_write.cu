// Scatter new K and V into their blocks and keep each block's key box, in one pass.
// A thread block takes one touched logical block at a time, from a work list or from all table entries: it owns the
// block, so the box needs no atomics. Threads over channels, eight at a time (16 bytes) where head_dim and the addresses
// allow it; each walks the block's new tokens, four in flight, and keeps their extremes. The first four are fetched while
// the block is still looked up: at decode the chain of look-ups is the time.
// TinyServe S:34-67; boxes: Quest, arXiv 2406.10774.
#include "common.cuh"

constexpr int IN_FLIGHT = 4;

// K and V of up to IN_FLIGHT tokens from `token` on, in a column of sizeof(T) bytes.
template <typename T>
__device__ __forceinline__ void fetch(const half* source, int token, int tokens, int64_t channels, T* k, T* v) {
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; ++i) {
        if (token + i >= tokens) continue;
        k[i] = *reinterpret_cast<const T*>(source + (token + i) * 2 * channels);
        v[i] = *reinterpret_cast<const T*>(source + (token + i) * 2 * channels + channels);
    }
}

// Write `tokens` rows of kv from `source` on into the block of a table entry, from `slot` on. Returns status bits.
template <typename T>
__device__ __forceinline__ int write_block(const half* source, int tokens, const int* entry, int slot, const int* ref,
                                           half* key_cache, half* value_cache, half* box, int64_t num_blocks,
                                           int64_t block_size, int64_t num_kv_heads, int64_t head_dim) {
    constexpr int CHANNELS = sizeof(T) / sizeof(half);
    const int channels = (int)(num_kv_heads * head_dim), step = CHANNELS * blockDim.x;
    int i = CHANNELS * threadIdx.x;
    T k[IN_FLIGHT], v[IN_FLIGHT];
    if (i < channels) fetch(source + i, 0, tokens, channels, k, v);
    const int block = *entry;
    if (block < 0 || block >= num_blocks) return block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
    const int references = ref[block];
    const int64_t target = pool_offset(block, slot, 0, 0, block_size, num_kv_heads, head_dim);
    for (bool fetched = true; i < channels; i += step, fetched = false) {
        const int64_t low_at = box_offset(block, i / (int)head_dim, 0, i % (int)head_dim, num_kv_heads, head_dim);
        float low[CHANNELS], high[CHANNELS];
        T bound[2];
        if (slot > 0) {
            bound[0] = *reinterpret_cast<const T*>(box + low_at);
            bound[1] = *reinterpret_cast<const T*>(box + low_at + head_dim);
        }
        if (references != 1) return references < 1 ? STATUS_UNMAPPED : STATUS_SHARED_WRITE;
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            low[c] = slot > 0 ? __half2float(reinterpret_cast<const half*>(&bound[0])[c]) : INFINITY;
            high[c] = slot > 0 ? __half2float(reinterpret_cast<const half*>(&bound[1])[c]) : -INFINITY;
        }
        for (int token = 0; token < tokens; token += IN_FLIGHT, fetched = false) {
            if (!fetched) fetch(source + i, token, tokens, channels, k, v);
#pragma unroll
            for (int t = 0; t < IN_FLIGHT; ++t) {
                if (token + t >= tokens) continue;
                *reinterpret_cast<T*>(key_cache + target + (int64_t)(token + t) * channels + i) = k[t];
                *reinterpret_cast<T*>(value_cache + target + (int64_t)(token + t) * channels + i) = v[t];
#pragma unroll
                for (int c = 0; c < CHANNELS; ++c) {
                    const float x = __half2float(reinterpret_cast<const half*>(&k[t])[c]);
                    low[c] = fminf(low[c], x);  // a NaN is passed over
                    high[c] = fmaxf(high[c], x);
                }
            }
        }
#pragma unroll
        for (int c = 0; c < CHANNELS; ++c) {
            reinterpret_cast<half*>(&bound[0])[c] = __float2half(low[c] + 0.0f);  // -0 becomes +0
            reinterpret_cast<half*>(&bound[1])[c] = __float2half(high[c] + 0.0f);
        }
        *reinterpret_cast<T*>(box + low_at) = bound[0];
        *reinterpret_cast<T*>(box + low_at + head_dim) = bound[1];
    }
    return references == 1 ? 0 : references < 1 ? STATUS_UNMAPPED : STATUS_SHARED_WRITE;
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
    const int64_t channels = num_kv_heads * head_dim, most = max_blocks_per_seq * block_size;
    const int64_t items = num_seqs == 0 ? 0 : work_start ? num_work : max_blocks_per_seq * num_seqs;
    const auto address = [](const void* pointer) { return (unsigned long long)pointer; };
    const bool wide = head_dim % 8 == 0 &&
                      ((address(kv) | address(key_cache) | address(value_cache) | address(box)) & 15) == 0;
    const auto fits = [&](int64_t start, int64_t end, int64_t row) {
        return start >= 0 && start <= end && end <= most && row >= 0 && row + end - start <= num_tokens;
    };
    int flags = 0;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        int64_t seq = item, logical = 0;
        if (work_start) {
            // At decode every sequence touches one block, so the item's number is its sequence: try that at once.
            seq = min(item, num_seqs - 1);
            const int64_t here = work_start[seq], next = seq + 1 < num_seqs ? work_start[seq + 1] : items;
            if (here > item || next <= item) {
                int64_t low = 0, high = num_seqs;  // the last sequence that starts at or before this item
                while (high - low > 1) {
                    const int64_t middle = (low + high) / 2;
                    if (work_start[middle] <= item) low = middle;
                    else high = middle;
                }
                seq = low;
            }
        } else {
            seq = item / max_blocks_per_seq;
            logical = item % max_blocks_per_seq;
        }
        const int64_t start = start_pos[seq], end = seq_lens[seq], row = token_start[seq];
        if (!fits(start, end, row)) continue;
        if (work_start) logical = start / block_size + item - work_start[seq];
        const int64_t first = max(start, logical * block_size), last = min(end, (logical + 1) * block_size);
        if (first >= last) continue;
        const half* const source = kv + (row + first - start) * 2 * channels;
        const int* const entry = block_table + seq * max_blocks_per_seq + logical;
        const int slot = (int)(first - logical * block_size), tokens = (int)(last - first);
        flags |= wide ? write_block<uint4>(source, tokens, entry, slot, ref, key_cache, value_cache, box, num_blocks,
                                           block_size, num_kv_heads, head_dim)
                      : write_block<half>(source, tokens, entry, slot, ref, key_cache, value_cache, box, num_blocks,
                                          block_size, num_kv_heads, head_dim);
    }
    // A sequence that does not fit may have no item that would notice it.
    const int64_t threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t seq = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; seq < num_seqs; seq += threads) {
        if (!fits(start_pos[seq], seq_lens[seq], token_start[seq])) flags |= STATUS_RANGE;
    }
    if (flags) atomicOr(status, flags);
}
