// Attention over a paged cache in one pass over K and V; split over workers when a work list is given.
// One thread block per (sequence, KV head), or per (worker, KV head) over the worker's segments; the query heads of a
// group share what is read. attention_stream.cuh draws it for head_dim 64 and 128 and blocks of a multiple of 16 tokens,
// with four warps, or eight (_wide) where there are no more thread blocks than SMs; attention.cuh for every other shape
// (_plain). With a list, a segment that is not its whole sequence leaves its values, maximum and sum, and the last one of
// a sequence to be done puts them together in segment order (work_list.cuh).
// TinyServe S:541-553; online softmax: Milakov & Gimelshein, arXiv 1805.02867; split KV: Flash-Decoding.
#include "attention_stream.cuh"

#define FLASH_PARAMETERS                                                                                              \
    const half *query, const half *key_cache, const half *value_cache, const int *block_table, const int *seq_lens,   \
        half *output, float *lse, const int *segments, const int64_t *segment_range, const int *seq_segments,         \
        float *partial_output, float *partial_ml, int *tickets, int64_t num_seqs, int64_t num_heads,                  \
        int64_t head_dim, int64_t num_blocks, int64_t block_size, int64_t num_kv_heads, int64_t max_blocks_per_seq,   \
        int64_t max_segments, int64_t num_workers, float scale, int *status

// What a thread block of either form is at: the call, the part under way, and where its values go.
struct Flash {
    const int* block_table;
    const int* seq_lens;
    half* output;
    float* lse;
    int64_t num_blocks, max_blocks_per_seq, block_size;
    int num_heads, head_dim, kv_head, group, head, covered;
    int* status;
    WorkList list;
    int2 named;  // first segment and number of segments of the part's sequence, as the list has it
    Parts parts;
    bool inside, whole, own_brings;

    __device__ __forceinline__ Part row(int at) const {
        if (!list.segments) return {at, 0, (int)max_blocks_per_seq, 0};
        const int* const own = list.segments + 3 * (int64_t)at;
        Part part = {own[0], own[1], own[2], 0};
        if (!list.claimed(at)) part.seq = -1;
        else if (part.seq < 0 || part.seq >= list.num_seqs) {
            if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
            part.seq = -1;
        }
        return part;
    }

    __device__ __forceinline__ void check(Part& part) const {
        if (part.seq < 0) return;
        const int64_t given = seq_lens[part.seq], length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
        part.length = (int)length;
        const int blocks = (int)(((unsigned)length + (unsigned)block_size - 1) / (unsigned)block_size);
        if (!list.segments) part.high = blocks;
        const bool inside = part.low >= 0 && part.low <= part.high && part.high <= blocks;
        if ((!inside || given != length) && threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        if (!inside) part.low = part.high = 0;
    }

    __device__ __forceinline__ int entry(const Part& part, int unit) const {
        const bool there = part.seq >= 0 && unit >= 0 && unit < part.high && unit < max_blocks_per_seq;
        return there ? block_table[part.seq * max_blocks_per_seq + unit] : -1;
    }

    __device__ __forceinline__ unsigned unit(const Part& part, int unit, int entry, int& tokens) const {
        tokens = min((int)block_size, part.length - unit * (int)block_size);
        if (entry >= 0 && entry < num_blocks) return entry;
        atomicOr(status, entry == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
        return tokens = 0;
    }

    __device__ __forceinline__ void begin(int at, const Part& part) {
        named = {at, 1};
        const int* const own = list.seq_segments + 2 * (int64_t)part.seq;
        if (list.segments) named = {own[0], own[1]};
    }

    __device__ __forceinline__ void settle(int at, const Part& part) {
        parts = {named.x, named.x + 1};
        if (list.segments) parts = clamped(named.x, named.y, covered);
        inside = parts.first <= at && at < parts.end;
        whole = inside && parts.end - parts.first == 1;
        own_brings = !whole && brings_first(list, parts, part.seq);
    }

    __device__ __forceinline__ void sink(int at, const Part& part, int h, int d, float value, float top,
                                         float sum) const {
        if (whole) {
            const int64_t to = (int64_t)part.seq * num_heads + head + h;
            output[to * head_dim + d] = __float2half(sum == 0.0f ? 0.0f : value / sum);
            if (d == 0) lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
        } else {
            const int64_t to = (int64_t)at * num_heads + head + h;
            list.partial_output[to * head_dim + d] = value;
            if (d == 0) reinterpret_cast<float2*>(list.partial_ml)[2 * to] = {top, sum};
        }
    }

    // The same for two channels, the first of them even.
    __device__ __forceinline__ void sink(int at, const Part& part, int h, int d, float2 value, float top,
                                         float sum) const {
        if (whole) {
            const int64_t to = (int64_t)part.seq * num_heads + head + h;
            const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
            const half2 pair = __floats2half2_rn(value.x * inverse, value.y * inverse);
            *reinterpret_cast<half2*>(output + to * head_dim + d) = pair;
            if (d == 0) lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
        } else {
            const int64_t to = (int64_t)at * num_heads + head + h;
            *reinterpret_cast<float2*>(list.partial_output + to * head_dim + d) = value;
            if (d == 0) reinterpret_cast<float2*>(list.partial_ml)[2 * to] = {top, sum};
        }
    }

    __device__ __forceinline__ void finish(int at, const Part& part) const {
        bool every;
        if (whole || !inside || !last_part(list, parts, part.seq, kv_head, own_brings, &every)) return;
        merge_parts(list, parts, every, part.seq, head, group, num_heads, head_dim, output, lse, nullptr, nullptr);
    }

    // What is left to the first worker: sequences without a part are nobody else's to flag and to write.
    __device__ __forceinline__ void others() const {
        if (!list.segments || blockIdx.x != 0) return;
        for (int64_t seq = threadIdx.x; seq < list.num_seqs; seq += blockDim.x) {
            if (seq_lens[seq] < 0 || seq_lens[seq] > max_blocks_per_seq * block_size) atomicOr(status, STATUS_RANGE);
        }
        write_empty(list, covered, kv_head, group, num_heads, head_dim, output, lse);
    }
};

#define FLASH_CALL(first, end)                                                                                        \
    const int kv_head = blockIdx.y, group = (int)num_heads / (int)num_kv_heads;                                       \
    Flash call = {block_table, seq_lens, output, lse, num_blocks, max_blocks_per_seq, block_size, (int)num_heads,     \
                  (int)head_dim, kv_head, group, kv_head * group, 0, status,                                          \
                  {segments, segment_range, seq_segments, partial_output, partial_ml, tickets, max_segments,          \
                   num_seqs, num_workers, num_kv_heads, true}};                                                       \
    int first = blockIdx.x, end = first < num_seqs ? first + 1 : first;                                               \
    const int64_t table_bytes = 4 * num_seqs * max_blocks_per_seq;                                                    \
    if (table_bytes <= 128 * (int64_t)blockDim.x) ask_for(block_table, table_bytes);                                  \
    if (segments) own_segments(call.list, seq_lens, &first, &end, &call.covered, status)

// What the fast forms do, with a thread block of WARPS warps; the three arrays of halfs start at multiples of 16 bytes.
template <int WARPS>
__device__ __forceinline__ void attend_fast(Flash& call, const half* query, const Cache& cache, float scale, int first,
                                            int end, StreamMeeting<WARPS>& meeting) {
    const int heads = call.num_heads, head = call.head, group = call.group, kv_head = call.kv_head;
    const auto address = [](const void* pointer) { return (unsigned long long)pointer; };
    if (((address(query) | address(cache.key) | address(cache.value)) & 15) != 0) {
        atomicOr(call.status, STATUS_RANGE);
    } else if (cache.head_dim == 128) {
        attend_stream<2, WARPS>(call, query, heads, head, group, cache, kv_head, scale, first, end, meeting);
    } else {
        attend_stream<1, WARPS>(call, query, heads, head, group, cache, kv_head, scale, first, end, meeting);
    }
}

extern "C" __global__ void __launch_bounds__(128, 2) flash_paged_attention(
    const half* query,             // [num_seqs][num_heads][head_dim]
    const half* key_cache,         // [num_blocks][block_size][num_kv_heads][head_dim]
    const half* value_cache,       // as key_cache
    const int* block_table,        // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,           // [num_seqs] tokens
    half* output,                  // [num_seqs][num_heads][head_dim]
    float* lse,                    // [num_seqs][num_heads], -inf for no token
    const int* segments,           // [max_segments][3] sequence, first block, end block, or null, as the next five
    const int64_t* segment_range,  // [num_workers][2]
    const int* seq_segments,       // [num_seqs][2]
    float* partial_output,         // [max_segments][num_heads][head_dim]
    float* partial_ml,             // [max_segments][num_heads][4]
    int* tickets,                  // [num_seqs][num_kv_heads]
    int64_t num_seqs,
    int64_t num_heads,
    int64_t head_dim,
    int64_t num_blocks,
    int64_t block_size,
    int64_t num_kv_heads,
    int64_t max_blocks_per_seq,
    int64_t max_segments,
    int64_t num_workers,
    float scale,
    int* status) {
    __shared__ StreamMeeting<4> meeting;
    FLASH_CALL(first, end);
    const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};
    attend_fast<4>(call, query, cache, scale, first, end, meeting);
}

// The same with eight warps, for as many thread blocks as there are SMs: a sequence then has fewer parts.
extern "C" __global__ void __launch_bounds__(256, 1) flash_paged_attention_wide(FLASH_PARAMETERS) {
    __shared__ StreamMeeting<8> meeting;
    FLASH_CALL(first, end);
    const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};
    attend_fast<8>(call, query, cache, scale, first, end, meeting);
}

// The plain form, for every shape.
extern "C" __global__ void __launch_bounds__(128, 2) flash_paged_attention_plain(FLASH_PARAMETERS) {
    __shared__ Meeting meeting;
    FLASH_CALL(first, end);
    const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};
    for (int at = first; at < end; ++at) {
        Part part = call.row(at);
        if (part.seq < 0) continue;
        call.check(part);
        call.begin(at, part);
        call.settle(at, part);
        const auto unit_of = [&](int64_t unit, int64_t& block, int& tokens) {
            block = call.unit(part, (int)unit, call.entry(part, (int)unit), tokens);
        };
        const auto sink = [&](int64_t i, int d, float value, float top, float sum) {
            call.sink(at, part, (int)i, d, value, top, sum);
        };
        const half* const rows = query + ((int64_t)part.seq * num_heads + call.head) * head_dim;
        attend_plainly(rows, group, cache, kv_head, scale, part.low, part.high, unit_of, sink, meeting);
        call.finish(at, part);
    }
    call.others();
}
