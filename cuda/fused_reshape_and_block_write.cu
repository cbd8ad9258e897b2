// Scatter new K and V into their blocks and keep each block's key box, in one pass.
// A thread block takes one touched logical block at a time, from a work list or from all table entries: it owns the
// block, so the box needs no atomics. Threads over channels, eight at a time (16 bytes) where head_dim and the addresses
// allow it; where a row takes half of the threads or fewer, groups of threads share the block's tokens and put their
// extremes together in shared memory. The first tokens are fetched while the block is still looked up: at decode the chain
// of look-ups and the instructions between them are the time, so one token has a path of its own, without divisions.
// TinyServe S:34-67; boxes: Quest, arXiv 2406.10774.
#include "common.cuh"

constexpr int IN_FLIGHT = 4, MOST_THREADS = 128;

// Divides numbers that are not negative, by a shift where that will do: a division is 30 instructions one after the other.
struct Divisor {
    int by, shift;

    __device__ __forceinline__ explicit Divisor(int64_t number)
        : by((int)number), shift((by & (by - 1)) == 0 ? 31 - __clz(by) : -1) {}
    __device__ __forceinline__ int quotient(int number) const { return shift >= 0 ? number >> shift : number / by; }
};

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
                                           int64_t block_size, int64_t num_kv_heads, int64_t head_dim, const Divisor& of_heads) {
    constexpr int CHANNELS = sizeof(T) / sizeof(half);
    __shared__ __align__(16) half bounds[2][8 * MOST_THREADS];  // of a group's threads: lows, highs
    const int channels = (int)(num_kv_heads * head_dim), columns = channels / CHANNELS, threads = blockDim.x;
    int groups = 1, group = 0, column = threadIdx.x;
    if (2 * columns <= threads) {
        groups = threads / max(columns, 1);
        group = column / columns;
        column -= group * columns;
    }
    const bool idle = group >= groups;  // where the columns do not divide the threads
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
        const int kv_head = of_heads.quotient(i);
        const int64_t low_at = box_offset(block, kv_head, 0, i - kv_head * (int)head_dim, num_kv_heads, head_dim);
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

// The same for one row, 16 bytes at a time.
__device__ __forceinline__ int write_token(const half* source, const int* entry, int slot, const int* ref, half* key_cache,
                                           half* value_cache, half* box, int64_t num_blocks, int64_t block_size,
                                           int64_t num_kv_heads, int64_t head_dim, const Divisor& of_heads) {
    const int channels = (int)(num_kv_heads * head_dim);
    const auto wide = [](half* at) -> uint4& { return *reinterpret_cast<uint4*>(at); };
    const auto read = [](const half* at) { return *reinterpret_cast<const uint4*>(at); };
    int i = 8 * threadIdx.x;
    uint4 k, v;
    if (i < channels) {
        k = read(source + i);
        v = read(source + channels + i);
    }
    const int block = *entry;
    if (block < 0 || block >= num_blocks) return block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
    const int references = ref[block];
    const int64_t row = (block * block_size + slot) * channels, bounds = (int64_t)block * (2 * channels);
#pragma unroll 1
    while (i < channels) {
        half* const lows = box + bounds + i + of_heads.quotient(i) * (int)head_dim;
        half* const highs = lows + (int)head_dim;
        uint4 low, high;
        make_empty(&low, &high);
        if (slot > 0) {
            low = wide(lows);
            high = wide(highs);
        }
        if (references != 1) break;
        wide(key_cache + row + i) = k;
        wide(value_cache + row + i) = v;
        widen(&low, &high, k, k);
        wide(lows) = positive_zeros(low);
        wide(highs) = positive_zeros(high);
        i += 8 * blockDim.x;
        if (i >= channels) break;
        k = read(source + i);
        v = read(source + channels + i);
    }
    return references == 1 ? 0 : references < 1 ? STATUS_UNMAPPED : STATUS_SHARED_WRITE;
}

// The last sequence that starts at or before a touched block. A lane looks at a place each, so that 1,024 sequences take two
// trips to memory.
__device__ __forceinline__ int sequence_of(int64_t item, const int64_t* work_start, int num_seqs) {
    int low = 0, high = num_seqs;
    while (high - low > 1) {
        const int step = (high - low + WARP_SIZE - 1) / WARP_SIZE, place = low + (int)(threadIdx.x % WARP_SIZE) * step;
        const unsigned before = __ballot_sync(FULL_WARP, place < high && work_start[place] <= item);
        low += max(__popc(before) - 1, 0) * step;
        high = min(high, low + step);
    }
    return low;
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
    const Divisor of_blocks(block_size), of_heads(head_dim);
    int flags = 0;
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        int64_t seq, logical, start, end, row;
        const auto fetch_sequence = [&]() {
            start = start_pos[seq];
            end = seq_lens[seq];
            row = token_start[seq];
        };
        if (!work_start) {
            seq = item / max_blocks_per_seq;
            logical = item % max_blocks_per_seq;
            fetch_sequence();
        } else {
            // At decode every sequence touches one block, so the item's number is its sequence: fetch that at once.
            seq = min(item, num_seqs - 1);
            fetch_sequence();
            int64_t touched_before = work_start[seq];
            const int64_t next = seq + 1 < num_seqs ? work_start[seq + 1] : items;
            if (touched_before > item || next <= item) {
                seq = sequence_of(item, work_start, (int)num_seqs);
                fetch_sequence();
                touched_before = work_start[seq];
            }
            logical = item - touched_before;  // from the first block that is touched on
        }
        if (!fits(start, end, row)) continue;
        if (work_start) logical += of_blocks.quotient((int)start);
        const int64_t first = max(start, logical * block_size), last = min(end, (logical + 1) * block_size);
        if (first >= last) continue;
        const half* const source = kv + (row + first - start) * 2 * channels;
        const int* const entry = block_table + seq * max_blocks_per_seq + logical;
        const int slot = (int)(first - logical * block_size), tokens = (int)(last - first);
        flags |= !wide        ? write_block<half>(source, tokens, entry, slot, ref, key_cache, value_cache, box, num_blocks,
                                                  block_size, num_kv_heads, head_dim, of_heads)
                 : tokens > 1 ? write_block<uint4>(source, tokens, entry, slot, ref, key_cache, value_cache, box, num_blocks,
                                                   block_size, num_kv_heads, head_dim, of_heads)
                              : write_token(source, entry, slot, ref, key_cache, value_cache, box, num_blocks, block_size,
                                            num_kv_heads, head_dim, of_heads);
    }
    // A sequence that does not fit may have no item that would notice it. The last thread blocks look first: at decode they
    // have nothing else to do.
    const int64_t threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t seq = (int64_t)(gridDim.x - 1 - blockIdx.x) * blockDim.x + threadIdx.x; seq < num_seqs; seq += threads) {
        if (!fits(start_pos[seq], seq_lens[seq], token_start[seq])) flags |= STATUS_RANGE;
    }
    if (flags) atomicOr(status, flags);
}
