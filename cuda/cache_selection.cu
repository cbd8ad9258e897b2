// Choose the blocks that a query will read: first and last ones and the best-scored others within the row's budget;
// then count the accesses.
// One thread block per sequence for the row's budget; then one per (sequence, selecting head): a radix select over the
// scores and a scan in block order, so that ties go to the lower block and the list ascends; then one per sequence
// counts. A block kept by several heads is counted once, for the first of them.
// TinyServe S:306-352 (seed), whose three branches wrote into three id spaces; arXiv 2509.12211 (paper).
#include "selection.cuh"

constexpr int PAPER = 0, SEED = 1;

#define SELECTION_PARAMETERS                                                                                          \
    const float *complexity, const int *requirement, const float *block_score, const int *num_seq_blocks, int         \
        *history, int *selected, int *count, int8_t *priority, float *row_score, const int *block_table, int          \
        *uses, int *freq, int64_t *last_use, int *workspace, int64_t num_seqs, int64_t num_score_heads, int64_t       \
        max_blocks_per_seq, int64_t num_select_heads, int64_t max_selected, int64_t num_blocks, int64_t               \
        workspace_words, int mode, int ratio_permille, int threshold_permille, int weight_complexity, int             \
        weight_requirement, int weight_history, int sinks, int recent, int64_t clock, int budget_blocks, int *status

__device__ bool contains(const int* ascending, int64_t count, int value) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (ascending[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low < count && ascending[low] == value;
}

extern "C" __global__ void cache_selection(
    const float* complexity,    // [num_seqs]
    const int* requirement,     // [num_seqs] 0, 1 or 2
    const float* block_score,   // [num_seqs][num_score_heads][max_blocks_per_seq]
    const int* num_seq_blocks,  // [num_seqs]
    int* history,               // [num_seqs][max_blocks_per_seq] accesses
    int* selected,              // [num_seqs][num_select_heads][max_selected] ascending, then -1
    int* count,                 // [num_seqs][num_select_heads]
    int8_t* priority,           // [num_seqs] 2 high, 1 medium, 0 low
    float* row_score,           // [num_seqs]
    const int* block_table,     // [num_seqs][max_blocks_per_seq] or null
    int* uses,                  // [num_blocks] or null, as the next two
    int* freq,
    int64_t* last_use,
    int* workspace,  // not used
    int64_t num_seqs,
    int64_t num_score_heads,
    int64_t max_blocks_per_seq,
    int64_t num_select_heads,
    int64_t max_selected,
    int64_t num_blocks,
    int64_t workspace_words,
    int mode,
    int ratio_permille,
    int threshold_permille,
    int weight_complexity,
    int weight_requirement,
    int weight_history,
    int sinks,
    int recent,
    int64_t clock,
    int budget_blocks,
    int* status) {
    const int64_t seq = blockIdx.x;
    if (seq >= num_seqs) return;
    const int64_t given = num_seq_blocks[seq], blocks = min(max(given, (int64_t)0), max_blocks_per_seq);
    int* const accesses = history + seq * max_blocks_per_seq;
    int flags = given != blocks ? STATUS_RANGE : 0;

    int64_t own = 0;
    for (int64_t i = threadIdx.x; i < blocks; i += blockDim.x) own += accesses[i];
    const float mean = __fdiv_rn(__ll2float_rn(block_sum(own)), __ll2float_rn(max(blocks, (int64_t)1)));
    const float seen = __fdiv_rn(mean < 100.0f ? mean : 100.0f, 100.0f);
    const float c = complexity[seq];
    if (isnan(c)) flags |= STATUS_NOT_A_NUMBER;
    const float clamped = isnan(c) ? 0.0f : c < 1.0f ? c : 1.0f;
    const int required = requirement[seq];
    float score = __fadd_rn(__fmul_rn(permille(weight_complexity), clamped),
                            __fmul_rn(permille(weight_requirement), __int2float_rn(required)));
    score = __fadd_rn(score, __fmul_rn(permille(weight_history), seen));
    const float threshold = permille(threshold_permille);
    const int rank = score > threshold ? 2 : score > __fmul_rn(threshold, 0.5f) ? 1 : 0;
    if (threadIdx.x == 0) {
        row_score[seq] = score;
        priority[seq] = (int8_t)rank;
    }

    int64_t budget = paper_budget(blocks, ratio_permille, sinks, recent, budget_blocks);
    if (mode == SEED) {
        const int64_t extra = rank == 2 ? min(max((int64_t)required + 1, (int64_t)0), (int64_t)4) : rank;
        budget = min(blocks, min(blocks, (int64_t)sinks + recent) + extra);
    } else if (mode != PAPER) {
        budget = rank == 0 ? min(blocks, blocks / 2 + 1) : blocks;  // S:442-445
    }
    if (budget > max_selected) {
        flags |= STATUS_RANGE;
        budget = 0;
    }
    for (int64_t head = threadIdx.x; head < num_select_heads; head += blockDim.x) {
        count[seq * num_select_heads + head] = (int)budget;  // what the next launch chooses
    }
    if (flags) atomicOr(status, flags);
}

extern "C" __global__ void cache_selection_choose(SELECTION_PARAMETERS) {
    const int64_t seq = blockIdx.x, head = blockIdx.y;
    if (seq >= num_seqs || head >= num_select_heads) return;
    const int64_t blocks = min(max((int64_t)num_seq_blocks[seq], (int64_t)0), max_blocks_per_seq);
    const float* scores = block_score + (seq * num_score_heads + head) * max_blocks_per_seq;
    const bool sum = num_select_heads != num_score_heads;
    const auto score_of = [&](int64_t block) {
        if (!sum) return scores[block];
        float total = isnan(scores[block]) ? -INFINITY : scores[block];
        for (int64_t other = 1; other < num_score_heads; ++other) {
            const float next = scores[other * max_blocks_per_seq + block];
            total = __fadd_rn(total, isnan(next) ? -INFINITY : next);
        }
        return positive_zero(total);
    };
    bool undefined = false;
    for (int64_t block = threadIdx.x; block < blocks; block += blockDim.x) {
        undefined |= isnan(score_of(block));
        for (int64_t other = 0; sum && other < num_score_heads; ++other) {
            undefined |= isnan(scores[other * max_blocks_per_seq + block]);
        }
    }
    if (undefined) atomicOr(status, STATUS_NOT_A_NUMBER);
    const int64_t at = seq * num_select_heads + head;
    select_best([&](int64_t block) { return selection_key(score_of(block), block, blocks, sinks, recent); }, blocks,
                count[at], selected + at * max_selected, max_selected);
}

extern "C" __global__ void cache_selection_tally(SELECTION_PARAMETERS) {
    const int64_t seq = blockIdx.x;
    if (seq >= num_seqs) return;
    const int64_t budget = count[seq * num_select_heads];  // the same for all heads
    int flags = 0;
    for (int64_t i = threadIdx.x; i < num_select_heads * budget; i += blockDim.x) {
        const int64_t head = i / budget;
        const int logical = selected[(seq * num_select_heads + head) * max_selected + i % budget];
        bool counted = false;
        for (int64_t earlier = 0; earlier < head && !counted; ++earlier) {
            counted = contains(selected + (seq * num_select_heads + earlier) * max_selected, budget, logical);
        }
        if (counted) continue;
        history[seq * max_blocks_per_seq + logical] += 1;
        if (!block_table) continue;
        const int block = block_table[seq * max_blocks_per_seq + logical];
        if (block < 0 || block >= num_blocks) {
            flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
            continue;
        }
        if (uses) atomicAdd(&uses[block], 1);
        if (freq) atomicAdd(&freq[block], 1);
        if (last_use) last_use[block] = clock;  // the same from whoever writes it
    }
    if (flags) atomicOr(status, flags);
}
