// Attention over the selected blocks only; given boxes, the same call scores and chooses them first (fused).
// With boxes, a launch of one warp per 16 blocks scores (box_scores.cuh) and one of a thread block per (sequence, KV head)
// selects (selection.cuh). Then one thread block of four warps per (part of a sequence's kept list, KV head), or per
// (worker, KV head) over segments of the lists, attends as flash_paged_attention does and merges as it does.
// TinyServe S:391-521 and arXiv 2509.12211; Quest, arXiv 2406.10774.
#include "attention_tiles.cuh"
#include "box_scores.cuh"
#include "work_list.cuh"

#define QUERY_AWARE_PARAMETERS                                                                                        \
    const half *query, const half *key_cache, const half *value_cache, const int *block_table, const int *seq_lens,   \
        int *selected, int *count, half *output, float *lse, int *blocks_read, int *tokens_read, const half *box,     \
        float *score, const int *segments, const int64_t *segment_range, const int *seq_segments,                     \
        float *partial_output, float *partial_ml, int *tickets, int64_t num_seqs, int64_t num_heads,                  \
        int64_t head_dim, int64_t num_blocks, int64_t block_size, int64_t num_kv_heads, int64_t max_blocks_per_seq,   \
        int64_t num_select_heads, int64_t max_selected, int64_t max_segments, int64_t num_workers, float scale,       \
        int reduction, int ratio_permille, int sinks, int recent, int budget_blocks, int *status

struct Row {
    int64_t length, blocks;
};

__device__ __forceinline__ Row row_of(const int* seq_lens, int64_t seq, int64_t block_size, int64_t max_blocks_per_seq,
                                      int* status) {
    const int64_t given = seq_lens[seq], length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
    if (given != length && threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
    return {length, (length + block_size - 1) / block_size};
}

// Fused, first: the scores. Four warps of 16 blocks each per (run of blocks, sequence, KV head).
extern "C" __global__ void __launch_bounds__(128, 4) query_aware_paged_attention_score(QUERY_AWARE_PARAMETERS) {
    const int64_t first = ((int64_t)blockIdx.x * SCORE_WARPS + threadIdx.x / WARP_SIZE) * SCORE_BLOCKS;
    const int64_t seq = blockIdx.y, kv_head = blockIdx.z, own = first + threadIdx.x % WARP_SIZE;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
    if (first >= row.blocks) return;  // whole warps leave
    const int* table = block_table + seq * max_blocks_per_seq;
    if (threadIdx.x % WARP_SIZE < SCORE_BLOCKS && own < row.blocks && (table[own] < 0 || table[own] >= num_blocks)) {
        atomicOr(status, table[own] == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
    }
    const Scoring call = {query,        box,       num_heads, head_dim, num_blocks,
                          num_kv_heads, max_blocks_per_seq, reduction, false};
    score_blocks(call, table, score, first, row.blocks, seq, kv_head);
}

// Fused, second: the choice by the paper's budget. One thread block per (sequence, KV head).
extern "C" __global__ void __launch_bounds__(1024, 1) query_aware_paged_attention_select(QUERY_AWARE_PARAMETERS) {
    __shared__ SelectMemory memory;
    const int64_t seq = blockIdx.x, kv_head = blockIdx.y;
    if (seq >= num_seqs) return;
    const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
    const int64_t at = seq * num_kv_heads + kv_head;
    const float* const scores = score + at * max_blocks_per_seq;
    int64_t budget = paper_budget(row.blocks, ratio_permille, sinks, recent, budget_blocks);
    bool undefined = false;
    int flags = 0;
    if (budget > max_selected) {
        flags |= STATUS_RANGE;
        budget = 0;
    }
    const auto score_of = [&](int64_t block, bool& not_a_number) {
        not_a_number |= isnan(scores[block]);
        return scores[block];
    };
    int* const list = selected + at * max_selected;
    if (!select_best_at_once(score_of, row.blocks, max_blocks_per_seq, budget, list, max_selected, sinks, recent,
                             undefined, memory)) {
        __syncthreads();
        for (int64_t i = threadIdx.x; i < row.blocks; i += blockDim.x) undefined |= isnan(scores[i]);
        const auto key_of = [&](int64_t i) { return selection_key(scores[i], i, row.blocks, sinks, recent); };
        select_best(key_of, row.blocks, budget, list, max_selected);
    }
    if (undefined) flags |= STATUS_NOT_A_NUMBER;
    if (threadIdx.x == 0) count[at] = (int)budget;
    if (flags) atomicOr(status, flags);
}

// A row's kept list. It must ascend within the sequence's blocks; an entry that does not is skipped.
struct Kept {
    const int* list;
    int64_t size, blocks;
    bool clean;  // the whole list is as it must be

    __device__ bool inside(int64_t unit) const { return list[unit] >= 0 && list[unit] < blocks; }

    __device__ int flags(int64_t unit) const {
        if (clean) return 0;
        if (!inside(unit)) return STATUS_RANGE;
        for (int64_t before = 0; before < unit; ++before) {
            if (inside(before) && list[before] >= list[unit]) return STATUS_CONFLICT;
        }
        return 0;
    }
};

// The kept list of a row, checked by the whole thread block.
__device__ Kept kept_of(const int* selected, const int* count, int64_t at, int64_t max_selected, int64_t blocks,
                        int* status) {
    const int64_t given = count[at], size = min(max(given, (int64_t)0), max_selected);
    Kept kept = {selected + at * max_selected, size, blocks, false};
    if (threadIdx.x == 0 && (given != size || (size == 0 && blocks > 0))) atomicOr(status, STATUS_RANGE);
    bool bad = false;
    for (int64_t unit = threadIdx.x; unit < size; unit += blockDim.x) {
        bad |= !kept.inside(unit) || (unit > 0 && kept.list[unit] <= kept.list[unit - 1]);
    }
    kept.clean = !__syncthreads_or(bad);
    if (!kept.clean) {
        for (int64_t unit = threadIdx.x; unit < size; unit += blockDim.x) {
            if (const int flags = kept.flags(unit)) atomicOr(status, flags);
        }
    }
    return kept;
}

extern "C" __global__ void __launch_bounds__(128, 2) query_aware_paged_attention(
    const half* query,             // [num_seqs][num_heads][head_dim]
    const half* key_cache,         // [num_blocks][block_size][num_kv_heads][head_dim]
    const half* value_cache,       // as key_cache
    const int* block_table,        // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,           // [num_seqs] tokens of the whole sequence
    int* selected,                 // [num_seqs][num_select_heads][max_selected] logical blocks, ascending, then -1
    int* count,                    // [num_seqs][num_select_heads]
    half* output,                  // [num_seqs][num_heads][head_dim]
    float* lse,                    // [num_seqs][num_heads], -inf for no token
    int* blocks_read,              // [num_seqs][num_heads]
    int* tokens_read,              // [num_seqs][num_heads]
    const half* box,               // [num_blocks][num_kv_heads][2][head_dim] or null
    float* score,                  // [num_seqs][num_kv_heads][max_blocks_per_seq]
    const int* segments,           // [max_segments][3] sequence, first unit, end unit, or null, as the next five
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
    int64_t num_select_heads,
    int64_t max_selected,
    int64_t max_segments,
    int64_t num_workers,
    float scale,
    int reduction,
    int ratio_permille,
    int sinks,
    int recent,
    int budget_blocks,
    int* status) {
    const int64_t kv_head = blockIdx.y, group = num_heads / num_kv_heads, head = kv_head * group;
    const int64_t select_head = num_select_heads == 1 ? 0 : kv_head;
    const int splits = max((int)gridDim.x / max((int)num_seqs, 1), 1);  // without a work list
    const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};
    WorkList list = {segments,     segment_range, seq_segments, partial_output, partial_ml,   tickets,
                     max_segments, num_seqs,      num_workers,  num_kv_heads,   true};
    int first = blockIdx.x, end = first < num_seqs * splits ? first + 1 : first, covered = 0;
    if (segments) own_segments(list, seq_lens, &first, &end, &covered, status);
    const auto units_of = [&](int64_t seq) {
        return min(max((int64_t)count[seq * num_select_heads + select_head], (int64_t)0), max_selected);
    };
    for (int at = first; at < end; ++at) {
        Segment part = {at / splits, 0, 0};
        if (segments && !list.claimed(at)) continue;
        if (segments) part = segment_of(list, at, units_of, status);
        const int64_t seq = part.seq;
        if (seq < 0) continue;
        const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
        const int* table = block_table + seq * max_blocks_per_seq;
        const Kept kept = kept_of(selected, count, seq * num_select_heads + select_head, max_selected, row.blocks, status);
        if (!segments) {
            part.low = (int)(kept.size * (at % splits) / splits);
            part.high = (int)(kept.size * (at % splits + 1) / splits);
        }
        const Parts parts = segments ? parts_of(list, seq, covered) : Parts{part.seq * splits, (part.seq + 1) * splits};
        const bool inside = parts.first <= at && at < parts.end;
        const bool whole = inside && parts.end - parts.first == 1;
        const bool own_brings = !whole && brings_first(list, parts, seq);
        bool every;
        const auto unit_of = [&](int64_t unit, int64_t& block, int& tokens) {
            block = tokens = 0;
            if (kept.flags(unit)) return;
            const int64_t logical = kept.list[unit];
            const int found = table[logical];
            if (found < 0 || found >= num_blocks) {
                atomicOr(status, found == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
                return;
            }
            block = found;
            tokens = (int)min(block_size, row.length - logical * block_size);
        };
        int64_t read = 0;  // blocks in the upper half, tokens in the lower
        for (int64_t unit = part.low + (int64_t)threadIdx.x; unit < part.high; unit += blockDim.x) {
            int64_t block;
            int tokens;
            unit_of(unit, block, tokens);
            read += tokens > 0 ? ((int64_t)1 << 32) + tokens : 0;
        }
        const auto sink = [&](int64_t i, int d, float value, float top, float sum) {
            if (whole) {
                const int64_t to = seq * num_heads + head + i;
                output[to * head_dim + d] = __float2half(sum == 0.0f ? 0.0f : value / sum);
                if (d == 0) lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
            } else {
                const int64_t to = (int64_t)at * num_heads + head + i;
                partial_output[to * head_dim + d] = value;
                if (d == 0) partial_ml[4 * to] = top;
                if (d == 0) partial_ml[4 * to + 1] = sum;
            }
        };
        const half* rows = query + (seq * num_heads + head) * head_dim;
        attend(rows, group, cache, kv_head, scale, part.low, part.high, unit_of, sink);
        read = block_sum(read);
        const int blocks = (int)(read >> 32), tokens = (int)read;
        for (int64_t i = threadIdx.x; i < group; i += blockDim.x) {
            const int64_t to = (whole ? seq : (int64_t)at) * num_heads + head + i;
            if (whole) blocks_read[to] = blocks;
            if (whole) tokens_read[to] = tokens;
            if (!whole) partial_ml[4 * to + 2] = __int_as_float(blocks);
            if (!whole) partial_ml[4 * to + 3] = __int_as_float(tokens);
        }
        if (whole || !inside || !last_part(list, parts, seq, kv_head, own_brings, &every)) continue;
        merge_parts(list, parts, every, seq, head, group, num_heads, head_dim, output, lse, blocks_read, tokens_read);
    }
    if (!segments || blockIdx.x != 0) return;
    for (int64_t seq = threadIdx.x; seq < num_seqs; seq += blockDim.x) {  // one without a part is nobody else's to flag
        const int64_t length = seq_lens[seq], given = count[seq * num_select_heads + select_head];
        const bool fits = length >= 0 && length <= max_blocks_per_seq * block_size;
        if (!fits || given < 0 || given > max_selected || (given == 0 && length > 0)) atomicOr(status, STATUS_RANGE);
    }
    write_empty(list, covered, kv_head, group, num_heads, head_dim, output, lse, blocks_read, tokens_read);
}
