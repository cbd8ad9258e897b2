// Attention over a paged cache in one pass over K and V; split over workers when a work list is given.
// One thread block of four warps per (sequence, KV head), or per (worker, KV head) over the worker's segments; the query
// heads of a group share what is read: attention_tiles.cuh draws it for the usual shapes, attention.cuh for all. With a
// list, a segment that is not its whole sequence leaves its values, maximum and sum, and the last one of a sequence to be
// done puts them together in segment order (work_list.cuh).
// TinyServe S:541-553; online softmax: Milakov & Gimelshein, arXiv 1805.02867; split KV: Flash-Decoding.
#include "attention_tiles.cuh"
#include "work_list.cuh"

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
    const int64_t kv_head = blockIdx.y, group = num_heads / num_kv_heads, head = kv_head * group;
    const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};
    const auto length_of = [&](int64_t seq) {
        const int64_t given = seq_lens[seq], length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
        if (given != length && threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        return length;
    };
    const auto blocks_of = [&](int64_t seq) { return (length_of(seq) + block_size - 1) / block_size; };
    // Attend a part of a sequence; `segment` is where it waits for the others, -1: it is the whole.
    const auto work = [&](int64_t segment, int64_t seq, int low, int high) {
        const int64_t length = length_of(seq);
        const int* table = block_table + seq * max_blocks_per_seq;
        const auto unit_of = [&](int64_t unit, int64_t& block, int& tokens) {
            block = table[unit];
            tokens = (int)min(block_size, length - unit * block_size);
            if (block >= 0 && block < num_blocks) return;
            atomicOr(status, block == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
            block = tokens = 0;
        };
        const auto sink = [&](int64_t i, int d, float value, float top, float sum) {
            if (segment >= 0) {
                const int64_t at = segment * num_heads + head + i;
                partial_output[at * head_dim + d] = value;
                if (d == 0) partial_ml[4 * at] = top;
                if (d == 0) partial_ml[4 * at + 1] = sum;
            } else {
                const int64_t at = seq * num_heads + head + i;
                output[at * head_dim + d] = __float2half(sum == 0.0f ? 0.0f : value / sum);
                if (d == 0) lse[at] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
            }
        };
        const half* rows = query + (seq * num_heads + head) * head_dim;
        attend(rows, group, cache, kv_head, scale, low, high, unit_of, sink);
    };
    WorkList list = {segments, segment_range, seq_segments, partial_output, partial_ml,   tickets,
                     max_segments, num_seqs,  num_workers,  num_kv_heads,   true};
    int first = blockIdx.x, end = first < num_seqs ? first + 1 : first, covered = 0;
    if (segments) own_segments(list, seq_lens, &first, &end, &covered, status);
    // One loop for both, so that the attention is in the program once.
    for (int at = first; at < end; ++at) {
        Segment part = {at, 0, 0};
        if (segments && !list.claimed(at)) continue;
        if (segments && threadIdx.x < 4) {  // the first 128 of its entries, while the lengths are looked up
            const int64_t seq = segments[3 * (int64_t)at], low = segments[3 * (int64_t)at + 1] + 32 * (int64_t)threadIdx.x;
            const bool there = seq >= 0 && seq < num_seqs && low >= 0 && low < max_blocks_per_seq;
            if (there) asm volatile("prefetch.global.L2 [%0];" ::"l"(block_table + seq * max_blocks_per_seq + low));
        }
        if (segments) part = segment_of(list, at, blocks_of, status);
        else part.high = (int)blocks_of(at);
        if (part.seq < 0) continue;
        const Parts parts = segments ? parts_of(list, part.seq, covered) : Parts{at, at + 1};
        const bool inside = parts.first <= at && at < parts.end;
        const bool whole = inside && parts.end - parts.first == 1;
        const bool own_brings = !whole && brings_first(list, parts, part.seq);
        bool every;
        work(whole ? -1 : at, part.seq, part.low, part.high);
        if (whole || !inside || !last_part(list, parts, part.seq, kv_head, own_brings, &every)) {
            continue;
        }
        merge_parts(list, parts, every, part.seq, head, group, num_heads, head_dim, output, lse, nullptr, nullptr);
    }
    if (!segments || blockIdx.x != 0) return;
    for (int64_t seq = threadIdx.x; seq < num_seqs; seq += blockDim.x) {  // one without a part is nobody else's to flag
        if (seq_lens[seq] < 0 || seq_lens[seq] > max_blocks_per_seq * block_size) atomicOr(status, STATUS_RANGE);
    }
    write_empty(list, covered, kv_head, group, num_heads, head_dim, output, lse);
}
