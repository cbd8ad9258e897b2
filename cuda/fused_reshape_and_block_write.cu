// Scatter new K and V into their blocks and keep each block's key box, in one pass.
// A thread block takes one touched logical block at a time, from a work list or from all table entries: it owns the
// block, so the box needs no atomics. Threads over channels, eight at a time (16 bytes) where head_dim and the addresses
// allow it; where a row takes half of the threads or fewer, groups of threads share the block's tokens and put their
// extremes together in shared memory. The first tokens are fetched while the block is still looked up: at decode the chain
// of look-ups is the time.
// TinyServe S:34-67; boxes: Quest, arXiv 2406.10774.
#include "common.cuh"

constexpr int IN_FLIGHT = 4, MOST_THREADS = 128;

// K and V of up to IN_FLIGHT tokens: `token`, token + step and so on, in a column of sizeof(T) bytes.
template <typename T>
__device__ __forceinline__ void fetch(const half* source, int token, int step, int tokens, int channels, T* k, T* v) {
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; ++i) {
        if (token + i * step >= tokens) continue;
        const half* const row = source + (token + i * step) * 2 * channels;
        k[i] = *reinterpret_cast<const T*>(row);
        v[i] = *reinterpret_cast<const T*>(row + channels);
    }
}

// The least and the greatest keys of the channels of a column; both are keys, so fp16 holds them exactly. A NaN is passed
// over.
__device__ __forceinline__ void widen(uint4* low, uint4* high, const uint4& lows, const uint4& highs) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        half2* const least = reinterpret_cast<half2*>(low) + c;
        half2* const greatest = reinterpret_cast<half2*>(high) + c;
        *least = __hmin2(*least, reinterpret_cast<const half2*>(&lows)[c]);
        *greatest = __hmax2(*greatest, reinterpret_cast<const half2*>(&highs)[c]);
    }
}

__device__ __forceinline__ void widen(half* low, half* high, const half& lows, const half& highs) {
    *low = __hmin(*low, lows);
    *high = __hmax(*high, highs);
}

__device__ __forceinline__ void make_empty(uint4* low, uint4* high) {
    *low = make_uint4(0x7c007c00, 0x7c007c00, 0x7c007c00, 0x7c007c00);  // +inf, and below -inf
    *high = make_uint4(0xfc00fc00, 0xfc00fc00, 0xfc00fc00, 0xfc00fc00);
}

__device__ __forceinline__ void make_empty(half* low, half* high) {
    *low = __ushort_as_half(0x7c00);
    *high = __ushort_as_half(0xfc00);
}

// -0 becomes +0.
__device__ __forceinline__ uint4 positive_zeros(uint4 value) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        half2* const pair = reinterpret_cast<half2*>(&value) + c;
        const unsigned zeros = 0;
        *pair = __hadd2(*pair, *reinterpret_cast<const half2*>(&zeros));
    }
    return value;
}

__device__ __forceinline__ half positive_zeros(half value) { return __hadd(value, __ushort_as_half(0)); }

// Write `tokens` rows of kv from `source` on into the block of a table entry, from `slot` on. Returns status bits.
template <typename T>
__device__ __forceinline__ int write_block(const half* source, int tokens, const int* entry, int slot, const int* ref,
                                           half* key_cache, half* value_cache, half* box, int64_t num_blocks,
                                           int64_t block_size, int64_t num_kv_heads, int64_t head_dim) {
    constexpr int CHANNELS = sizeof(T) / sizeof(half);
    __shared__ __align__(16) half bounds[2][8 * MOST_THREADS];  // of a group's threads: lows, highs
    const int channels = (int)(num_kv_heads * head_dim), columns = channels / CHANNELS, threads = blockDim.x;
    const int groups = max(threads / max(columns, 1), 1), group = groups > 1 ? (int)threadIdx.x / columns : 0;
    const bool idle = group >= groups;  // where the columns do not divide the threads
    int column = groups > 1 ? (int)threadIdx.x % columns : (int)threadIdx.x;
    T k[IN_FLIGHT], v[IN_FLIGHT];
    if (column < columns && !idle) fetch(source + CHANNELS * column, group, groups, tokens, channels, k, v);
    const int block = *entry;
    if (block < 0 || block >= num_blocks) return block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
    const int references = ref[block];
    const int64_t target = pool_offset(block, slot, 0, 0, block_size, num_kv_heads, head_dim);
    bool fetched = true;
#pragma unroll 1
    for (; column < columns; column += threads, fetched = false) {
        const int i = CHANNELS * column;
        const int64_t low_at = box_offset(block, i / (int)head_dim, 0, i % (int)head_dim, num_kv_heads, head_dim);
        half* const to_keys = key_cache + target + i;
        half* const to_values = value_cache + target + i;
        T low, high;
        make_empty(&low, &high);
        if (slot > 0 && group == 0) {
            low = *reinterpret_cast<const T*>(box + low_at);
            high = *reinterpret_cast<const T*>(box + low_at + head_dim);
        }
        if (references != 1) return references < 1 ? STATUS_UNMAPPED : STATUS_SHARED_WRITE;
#pragma unroll 1
        for (int token = idle ? tokens : group; token < tokens; token += IN_FLIGHT * groups, fetched = false) {
            if (!fetched) fetch(source + i, token, groups, tokens, channels, k, v);
#pragma unroll
            for (int t = 0; t < IN_FLIGHT; ++t) {
                if (token + t * groups >= tokens) continue;
                const int at = (token + t * groups) * channels;
                *reinterpret_cast<T*>(to_keys + at) = k[t];
                *reinterpret_cast<T*>(to_values + at) = v[t];
                widen(&low, &high, k[t], k[t]);
            }
        }
        const bool together = groups > 1 && tokens > 1;
        if (together) {  // the loop over columns runs once: all threads are here
            *reinterpret_cast<T*>(&bounds[0][CHANNELS * threadIdx.x]) = low;
            *reinterpret_cast<T*>(&bounds[1][CHANNELS * threadIdx.x]) = high;
            __syncthreads();
        }
        if (group == 0) {
#pragma unroll 1
            for (int other = 1; together && other < min(groups, tokens); ++other) {
                const int at = CHANNELS * (other * columns + column);
                widen(&low, &high, *reinterpret_cast<const T*>(&bounds[0][at]), *reinterpret_cast<const T*>(&bounds[1][at]));
            }
            *reinterpret_cast<T*>(box + low_at) = positive_zeros(low);
            *reinterpret_cast<T*>(box + low_at + head_dim) = positive_zeros(high);
        }
        if (together) __syncthreads();  // the next block's bounds
    }
    return references == 1 ? 0 : references < 1 ? STATUS_UNMAPPED : STATUS_SHARED_WRITE;
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 4) fused_reshape_and_block_write(
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
        // At decode every sequence touches one block, so the item's number is its sequence: fetch that at once.
        int64_t seq = work_start ? min(item, num_seqs - 1) : item / max_blocks_per_seq;
        int64_t start = start_pos[seq], end = seq_lens[seq], row = token_start[seq];
        int64_t touched_before = 0, logical = 0;
        if (work_start) {
            touched_before = work_start[seq];
            const int64_t next = seq + 1 < num_seqs ? work_start[seq + 1] : items;
            if (touched_before > item || next <= item) {
                int64_t low = 0, high = num_seqs;  // the last sequence that starts at or before this item
                while (high - low > 1) {
                    const int64_t middle = (low + high) / 2;
                    if (work_start[middle] <= item) low = middle;
                    else high = middle;
                }
                seq = low;
                start = start_pos[seq];
                end = seq_lens[seq];
                row = token_start[seq];
                touched_before = work_start[seq];
            }
        } else {
            logical = item % max_blocks_per_seq;
        }
        if (!fits(start, end, row)) continue;
        if (work_start) logical = (int)start / (int)block_size + item - touched_before;
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
    // A sequence that does not fit may have no item that would notice it. The last thread blocks look first: at decode they
    // have nothing else to do.
    const int64_t threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t seq = (int64_t)(gridDim.x - 1 - blockIdx.x) * blockDim.x + threadIdx.x; seq < num_seqs; seq += threads) {
        if (!fits(start_pos[seq], seq_lens[seq], token_start[seq])) flags |= STATUS_RANGE;
    }
    if (flags) atomicOr(status, flags);
}
