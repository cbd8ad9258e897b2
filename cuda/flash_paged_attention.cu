// Attention over a paged cache in one pass over K and V; split over workers when a work list is given.
// One thread block of four warps per (sequence, KV head), or per (worker, KV head) over the worker's segments; the query
// heads of a group share what is read, 16 bytes per lane and eight loads in flight: attention.cuh draws it. With a list,
// every segment leaves its values, maximum and sum, and a second launch puts each sequence together in segment order.
// TinyServe S:541-553; online softmax: Milakov & Gimelshein, arXiv 1805.02867; split KV: Flash-Decoding.
#include "attention.cuh"

extern "C" __global__ void __launch_bounds__(128, 3) flash_paged_attention(
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
    float* partial_ml,             // [max_segments][num_heads][2]
    int* tickets,                  // not used
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
    const auto work = [&](int64_t segment, int64_t seq, int64_t low, int64_t high) {
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
                if (d == 0) partial_ml[2 * at] = top;
                if (d == 0) partial_ml[2 * at + 1] = sum;
            } else {
                const int64_t at = seq * num_heads + head + i;
                output[at * head_dim + d] = __float2half(sum == 0.0f ? 0.0f : value / sum);
                if (d == 0) lse[at] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
            }
        };
        const half* rows = query + (seq * num_heads + head) * head_dim;
        attend(rows, group, cache, kv_head, scale, low, high, unit_of, sink);
    };
    const auto blocks_of = [&](int64_t seq) { return (length_of(seq) + block_size - 1) / block_size; };
    int64_t first = blockIdx.x, end = first < num_seqs ? first + 1 : first;
    const WorkList list = {segments,   segment_range, seq_segments, partial_output,
                           partial_ml, max_segments,  num_seqs};
    if (segments) {
        const int64_t worker = blockIdx.x;
        first = worker < num_workers ? segment_range[2 * worker] : 0;
        end = worker < num_workers ? segment_range[2 * worker + 1] : 0;
        if (first < 0 || first > end || end > max_segments) {
            if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
            return;
        }
    }
    // One loop for both, so that the attention is in the program once.
    for (int64_t at = first; at < end; ++at) {
        int64_t seq = at, low = 0, high;
        if (segments) {
            const Segment part = segment_of(list, at, blocks_of, status);
            if (part.seq < 0) continue;
            seq = part.seq;
            low = part.low;
            high = part.high;
        } else {
            high = blocks_of(seq);
        }
        work(segments ? at : -1, seq, low, high);
    }
}

// One thread block per (sequence, query head).
extern "C" __global__ void flash_paged_attention_merge(
    const half* query, const half* key_cache, const half* value_cache, const int* block_table, const int* seq_lens,
    half* output, float* lse, const int* segments, const int64_t* segment_range, const int* seq_segments,
    float* partial_output, float* partial_ml, int* tickets, int64_t num_seqs, int64_t num_heads, int64_t head_dim,
    int64_t num_blocks, int64_t block_size, int64_t num_kv_heads, int64_t max_blocks_per_seq, int64_t max_segments,
    int64_t num_workers, float scale, int* status) {
    const int64_t seq = blockIdx.x, head = blockIdx.y;
    if (seq >= num_seqs || head >= num_heads) return;
    if (threadIdx.x == 0 && (seq_lens[seq] < 0 || seq_lens[seq] > max_blocks_per_seq * block_size)) {
        atomicOr(status, STATUS_RANGE);
    }
    const WorkList list = {segments,   segment_range, seq_segments, partial_output,
                           partial_ml, max_segments,  num_seqs};
    merge_parts(list, seq, head, num_heads, head_dim, output, lse);
}
