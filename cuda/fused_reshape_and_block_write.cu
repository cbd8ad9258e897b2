// Scatter new K and V into their blocks and keep each block's key box, in one pass.
// A thread block takes one touched logical block at a time, from a work list or from all table entries: it owns the
// block, so the box needs no atomics. Threads over channels, eight at a time (16 bytes) where head_dim and the addresses
// allow it; where a row takes half of the threads or fewer, groups of threads share the block's tokens and put their
// extremes together in shared memory. The first tokens are fetched while the block is still looked up: at decode the chain
// of look-ups and the instructions between them are the time, so one token has a path of its own, without divisions. For
// more tokens than sequences, where the device has the shared memory, a block's rows come by bulk copies (_streamed).
// TinyServe S:34-67; boxes: Quest, arXiv 2406.10774.
#include "bulk.cuh"

constexpr int IN_FLIGHT = 4, MOST_THREADS = 128;
constexpr int STAGES = 2, STAGE_BYTES = 32768;  // definition: fused_reshape_and_block_write.py STREAM_BYTES
using RowStages = Stages<STAGES, STAGE_BYTES>;
using Bounds = half[2][8 * MOST_THREADS];  // of a group's threads: lows, highs

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
__device__ __forceinline__ int write_block(Bounds& bounds, const half* source, int tokens, const int* entry, int slot,
                                           const int* ref, half* key_cache, half* value_cache, half* box, int64_t num_blocks,
                                           int64_t block_size, int64_t num_kv_heads, int64_t head_dim, const Divisor& of_heads) {
    constexpr int CHANNELS = sizeof(T) / sizeof(half);
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

// The same for rows of up to MOST_THREADS columns of 16 bytes: they are on their way before the block is looked up.
__device__ __forceinline__ int write_streamed(RowStages& stages, Bounds& bounds, const half* source, int tokens,
                                              const int* entry, int slot, const int* ref, half* key_cache,
                                              half* value_cache, half* box, int64_t num_blocks, int64_t block_size,
                                              int64_t num_kv_heads, int64_t head_dim, const Divisor& of_heads) {
    const int channels = (int)(num_kv_heads * head_dim), columns = channels / 8, threads = blockDim.x;
    const int per_stage = STAGE_BYTES / (4 * channels), fills = (tokens + per_stage - 1) / per_stage;
    const auto ask = [&](int fill) {
        const int first = fill * per_stage;
        stages.ask(fill, source + (int64_t)first * 2 * channels, min(per_stage, tokens - first) * 4 * channels);
    };
    for (int fill = 0; fill < min(fills, STAGES); ++fill) ask(fill);
    const int block = *entry;
    int groups = 1, group = 0, column = threadIdx.x;
    if (2 * columns <= threads) {
        groups = threads / max(columns, 1);
        group = column / columns;
        column -= group * columns;
    }
    const bool idle = group >= groups || column >= columns;
    int wrong = block == -1 ? STATUS_UNMAPPED : block < 0 || block >= num_blocks ? STATUS_RANGE : 0;
    const int references = wrong ? 1 : ref[block];
    const int i = 8 * column, kv_head = of_heads.quotient(i);
    const int64_t low_at = box_offset(block, kv_head, 0, i - kv_head * (int)head_dim, num_kv_heads, head_dim);
    uint4 low, high;
    make_empty(&low, &high);
    if (!wrong && slot > 0 && group == 0 && !idle) {
        low = *reinterpret_cast<const uint4*>(box + low_at);
        high = *reinterpret_cast<const uint4*>(box + low_at + head_dim);
    }
    if (references != 1) wrong = references < 1 ? STATUS_UNMAPPED : STATUS_SHARED_WRITE;
    const int64_t target = pool_offset(block, slot, 0, 0, block_size, num_kv_heads, head_dim) + i;
#pragma unroll 1
    for (int fill = 0; fill < fills; ++fill) {
        stages.wait(fill);
        const int first = fill * per_stage, end = min(per_stage, tokens - first);
        const half* const held = reinterpret_cast<const half*>(stages.stage(fill)) + i;
#pragma unroll 4
        for (int token = idle || wrong ? end : group; token < end; token += groups) {
            const uint4 k = *reinterpret_cast<const uint4*>(held + token * 2 * channels);
            const uint4 v = *reinterpret_cast<const uint4*>(held + token * 2 * channels + channels);
            const int64_t at = target + (first + token) * channels;
            *reinterpret_cast<uint4*>(key_cache + at) = k;
            *reinterpret_cast<uint4*>(value_cache + at) = v;
            widen(&low, &high, k, k);
        }
        if (fill + STAGES < fills) {
            __syncthreads();
            ask(fill + STAGES);
        }
    }
    stages.used += fills;
    if (groups > 1) {
        *reinterpret_cast<uint4*>(&bounds[0][8 * threadIdx.x]) = low;
        *reinterpret_cast<uint4*>(&bounds[1][8 * threadIdx.x]) = high;
        __syncthreads();
    }
    if (group == 0 && !idle && !wrong) {
#pragma unroll 1
        for (int other = 1; other < min(groups, tokens); ++other) {
            const int at = 8 * (other * columns + column);
            widen(&low, &high, *reinterpret_cast<const uint4*>(&bounds[0][at]), *reinterpret_cast<const uint4*>(&bounds[1][at]));
        }
        *reinterpret_cast<uint4*>(box + low_at) = positive_zeros(low);
        *reinterpret_cast<uint4*>(box + low_at + head_dim) = positive_zeros(high);
    }
    __syncthreads();  // the next block's stages and bounds
    return wrong;
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

#define WRITE_PARAMETERS                                                                                              \
    const half *kv, const int64_t *token_start, const int *start_pos, const int *seq_lens, const int *block_table,    \
        const int *ref, half *key_cache, half *value_cache, half *box, const int64_t *work_start, int64_t num_tokens, \
        int64_t num_kv_heads, int64_t head_dim, int64_t num_seqs, int64_t max_blocks_per_seq, int64_t num_blocks,     \
        int64_t block_size, int64_t num_work, int *status

// Go over the touched blocks; `stages` is null where rows are not streamed.
__device__ __forceinline__ void write_all(RowStages* stages, WRITE_PARAMETERS) {
    __shared__ __align__(16) Bounds bounds;
    // At decode every sequence touches one block, so the item's number is its sequence: look at that before anything else.
    const bool decodes = !stages && work_start && blockIdx.x < num_seqs;
    int own_start = 0, own_end = 0;
    int64_t own_row = 0, own_before = 0, own_next = 0;
    if (decodes) {
        own_start = start_pos[blockIdx.x];
        own_end = seq_lens[blockIdx.x];
        own_row = token_start[blockIdx.x];
        own_before = work_start[blockIdx.x];
        own_next = blockIdx.x + 1 < num_seqs ? work_start[blockIdx.x + 1] : num_work;
    }
    const int64_t channels = num_kv_heads * head_dim, most = max_blocks_per_seq * block_size;
    const int64_t items = num_seqs == 0 ? 0 : work_start ? num_work : max_blocks_per_seq * num_seqs;
    const auto address = [](const void* pointer) { return (unsigned long long)pointer; };
    const bool wide = head_dim % 8 == 0 &&
                      ((address(kv) | address(key_cache) | address(value_cache) | address(box)) & 15) == 0;
    const auto fits = [&](int64_t start, int64_t end, int64_t row) {
        return start >= 0 && start <= end && end <= most && row >= 0 && row + end - start <= num_tokens;
    };
    const Divisor of_blocks(block_size), of_heads(head_dim);
    int64_t item = blockIdx.x;
    int flags = 0;
    // And write it here, not below: instructions are fetched in the order of the text.
    if (decodes && wide && item < items && own_before == item && own_next > item && own_end - own_start == 1 &&
        fits(own_start, own_end, own_row)) {
        const int logical = of_blocks.quotient(own_start);
        flags = write_token(kv + own_row * 2 * channels, block_table + item * max_blocks_per_seq + logical,
                            own_start - logical * (int)block_size, ref, key_cache, value_cache, box, num_blocks, block_size,
                            num_kv_heads, head_dim, of_heads);
        item += gridDim.x;
    }
    for (; item < items; item += gridDim.x) {
        const int64_t seq = work_start ? sequence_of(item, work_start, (int)num_seqs) : item / max_blocks_per_seq;
        const int64_t start = start_pos[seq], end = seq_lens[seq], row = token_start[seq];
        // With a work list, from the first block that is touched on.
        int64_t logical = work_start ? item - work_start[seq] : item % max_blocks_per_seq;
        if (!fits(start, end, row)) continue;
        if (work_start) logical += of_blocks.quotient((int)start);
        const int64_t first = max(start, logical * block_size), last = min(end, (logical + 1) * block_size);
        if (first >= last) continue;
        const half* const source = kv + (row + first - start) * 2 * channels;
        const int* const entry = block_table + seq * max_blocks_per_seq + logical;
        const int slot = (int)(first - logical * block_size), tokens = (int)(last - first);
        if (stages && wide && channels <= 8 * MOST_THREADS) {
            flags |= write_streamed(*stages, bounds, source, tokens, entry, slot, ref, key_cache, value_cache, box,
                                    num_blocks, block_size, num_kv_heads, head_dim, of_heads);
            continue;
        }
        if (wide) {
            flags |= write_block<uint4>(bounds, source, tokens, entry, slot, ref, key_cache, value_cache, box, num_blocks,
                                        block_size, num_kv_heads, head_dim, of_heads);
        } else {
            flags |= write_block<half>(bounds, source, tokens, entry, slot, ref, key_cache, value_cache, box, num_blocks,
                                       block_size, num_kv_heads, head_dim, of_heads);
        }
    }
    // A sequence that does not fit may have no item that would notice it. The last thread blocks look first: at decode they
    // have nothing else to do.
    const int64_t threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t seq = (int64_t)(gridDim.x - 1 - blockIdx.x) * blockDim.x + threadIdx.x; seq < num_seqs; seq += threads) {
        if (!fits(start_pos[seq], seq_lens[seq], token_start[seq])) flags |= STATUS_RANGE;
    }
    if (flags) atomicOr(status, flags);
}

#define WRITE_ARGUMENTS                                                                                               \
    kv, token_start, start_pos, seq_lens, block_table, ref, key_cache, value_cache, box, work_start, num_tokens,      \
        num_kv_heads, head_dim, num_seqs, max_blocks_per_seq, num_blocks, block_size, num_work, status

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 3) fused_reshape_and_block_write_streamed(WRITE_PARAMETERS) {
    extern __shared__ __align__(16) unsigned char memory[];
    RowStages stages = {memory, 0};
    stages.start();
    write_all(&stages, WRITE_ARGUMENTS);
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
    write_all(nullptr, WRITE_ARGUMENTS);
}
