// Attention over the selected blocks only; given boxes, it scores and chooses them itself, in the same launch (fused).
// One thread block of four warps per (sequence, KV head), or per (worker, KV head) over segments of the kept list; what
// is read and how, attention.cuh draws. With boxes and no work list, the thread block first scores its row's blocks and
// selects, as block_scoring and cache_selection do; with both, a launch before it selects. A merge as in
// flash_paged_attention.
// TinyServe S:391-521 and arXiv 2509.12211; Quest, arXiv 2406.10774.
#include "attention.cuh"
#include "selection.cuh"

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

// Score the blocks of a row from their boxes and choose by the paper's budget. The whole thread block calls it.
__device__ void score_and_select(const half* query, const half* box, const int* table, const Row& row, int64_t kv_head,
                                 int64_t group, float* score, int* list, int* count, int64_t head_dim,
                                 int64_t num_blocks, int64_t num_kv_heads, int64_t max_selected, int reduction,
                                 int ratio_permille, int sinks, int recent, int budget_blocks, int* status) {
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    int flags = 0;
    for (int64_t logical = warp; logical < row.blocks; logical += warps) {
        const int block = table[logical];
        const bool held = block >= 0 && block < num_blocks;
        if (!held) flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
        const half* low = box + box_offset(held ? block : 0, kv_head, 0, 0, num_kv_heads, head_dim);
        GroupReduction reduced(reduction);
        for (int64_t i = 0; held && i < group; ++i) {
            reduced.add(box_score(query + i * head_dim, low, low + head_dim, head_dim));
        }
        const float value = held ? reduced.result() : -INFINITY;
        if (isnan(value)) flags |= STATUS_NOT_A_NUMBER;
        if (lane == 0) score[logical] = value;
    }
    __syncthreads();
    int64_t budget = paper_budget(row.blocks, ratio_permille, sinks, recent, budget_blocks);
    if (budget > max_selected) {
        flags |= STATUS_RANGE;
        budget = 0;
    }
    select_best([&](int64_t block) { return selection_key(score[block], block, row.blocks, sinks, recent); }, row.blocks,
                budget, list, max_selected);
    if (threadIdx.x == 0) *count = (int)budget;
    if (flags) atomicOr(status, flags);
    __syncthreads();
}

// Choice before a launch over a work list, one thread block per (sequence, KV head).
extern "C" __global__ void query_aware_paged_attention_select(QUERY_AWARE_PARAMETERS) {
    const int64_t seq = blockIdx.x, kv_head = blockIdx.y, group = num_heads / num_kv_heads;
    if (seq >= num_seqs) return;
    const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
    const int64_t at = seq * num_kv_heads + kv_head;
    score_and_select(query + (seq * num_heads + kv_head * group) * head_dim, box,
                     block_table + seq * max_blocks_per_seq, row, kv_head, group, score + at * max_blocks_per_seq,
                     selected + at * max_selected, count + at, head_dim, num_blocks, num_kv_heads, max_selected,
                     reduction, ratio_permille, sinks, recent, budget_blocks, status);
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

extern "C" __global__ void __launch_bounds__(128, 3) query_aware_paged_attention(
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
    float* partial_ml,             // [max_segments][num_heads][2]
    int* tickets,                  // not used
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
    const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};
    const WorkList list = {segments,   segment_range, seq_segments, partial_output,
                           partial_ml, max_segments,  num_seqs};
    int64_t first = blockIdx.x, end = first < num_seqs ? first + 1 : first;
    if (segments) {
        const int64_t worker = blockIdx.x;
        first = worker < num_workers ? segment_range[2 * worker] : 0;
        end = worker < num_workers ? segment_range[2 * worker + 1] : 0;
        if (first < 0 || first > end || end > max_segments) {
            if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
            return;
        }
    }
    const auto units_of = [&](int64_t seq) {
        return min(max((int64_t)count[seq * num_select_heads + select_head], (int64_t)0), max_selected);
    };
    for (int64_t at = first; at < end; ++at) {
        Segment part = {at, 0, 0};
        if (segments) part = segment_of(list, at, units_of, status);
        const int64_t seq = part.seq;
        if (seq < 0) continue;
        const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
        const int* table = block_table + seq * max_blocks_per_seq;
        const half* rows = query + (seq * num_heads + head) * head_dim;
        const int64_t select_at = seq * num_select_heads + select_head;
        if (box && !segments) {
            score_and_select(rows, box, table, row, kv_head, group,
                             score + (seq * num_kv_heads + kv_head) * max_blocks_per_seq,
                             selected + select_at * max_selected, count + select_at, head_dim, num_blocks,
                             num_kv_heads, max_selected, reduction, ratio_permille, sinks, recent, budget_blocks, status);
        }
        const Kept kept = kept_of(selected, count, select_at, max_selected, row.blocks, status);
        if (!segments) part.high = kept.size;
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
        const auto sink = [&](int64_t i, int d, float value, float top, float sum) {
            if (segments) {
                const int64_t to = at * num_heads + head + i;
                partial_output[to * head_dim + d] = value;
                if (d == 0) partial_ml[2 * to] = top;
                if (d == 0) partial_ml[2 * to + 1] = sum;
            } else {
                const int64_t to = seq * num_heads + head + i;
                output[to * head_dim + d] = __float2half(sum == 0.0f ? 0.0f : value / sum);
                if (d == 0) lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
            }
        };
        attend(rows, group, cache, kv_head, scale, part.low, part.high, unit_of, sink);
        if (segments) continue;
        int64_t read_blocks = 0, read_tokens = 0;
        for (int64_t unit = threadIdx.x; unit < kept.size; unit += blockDim.x) {
            int64_t block;
            int tokens;
            unit_of(unit, block, tokens);
            read_blocks += tokens > 0;
            read_tokens += tokens;
        }
        read_blocks = block_sum(read_blocks);
        read_tokens = block_sum(read_tokens);
        for (int64_t i = threadIdx.x; i < group; i += blockDim.x) {
            blocks_read[seq * num_heads + head + i] = (int)read_blocks;
            tokens_read[seq * num_heads + head + i] = (int)read_tokens;
        }
    }
}

// One thread block per (sequence, query head).
extern "C" __global__ void query_aware_paged_attention_merge(QUERY_AWARE_PARAMETERS) {
    const int64_t seq = blockIdx.x, head = blockIdx.y;
    if (seq >= num_seqs || head >= num_heads) return;
    const int64_t kv_head = head / (num_heads / num_kv_heads);
    const WorkList list = {segments,   segment_range, seq_segments, partial_output,
                           partial_ml, max_segments,  num_seqs};
    const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
    const int64_t select_at = seq * num_select_heads + (num_select_heads == 1 ? 0 : kv_head);
    const Kept kept = kept_of(selected, count, select_at, max_selected, row.blocks, status);
    const auto units_of = [&](int64_t) { return kept.size; };
    int64_t read_blocks = 0, read_tokens = 0;
    const int64_t first = max(seq_segments[2 * seq], 0);
    const int64_t end = min(first + max(seq_segments[2 * seq + 1], 0), max_segments);
    for (int64_t segment = first; segment < end; ++segment) {
        if (segments[3 * segment] != seq) continue;
        const Segment part = segment_of(list, segment, units_of, status);
        for (int64_t unit = part.low + threadIdx.x; unit < part.high; unit += blockDim.x) {
            if (kept.flags(unit)) continue;
            const int64_t logical = kept.list[unit];
            const int block = block_table[seq * max_blocks_per_seq + logical];
            if (block < 0 || block >= num_blocks) continue;
            ++read_blocks;
            read_tokens += min(block_size, row.length - logical * block_size);
        }
    }
    read_blocks = block_sum(read_blocks);
    read_tokens = block_sum(read_tokens);
    if (threadIdx.x == 0) {
        blocks_read[seq * num_heads + head] = (int)read_blocks;
        tokens_read[seq * num_heads + head] = (int)read_tokens;
    }
    merge_parts(list, seq, head, num_heads, head_dim, output, lse);
}
