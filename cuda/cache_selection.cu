// Choose the blocks that a query will read: first and last ones and the best-scored others within the row's budget;
// then count the accesses.
// One thread block of 512 threads per (sequence, selecting head) makes a choice over the scores (selection.cuh) whose
// ties go to the lower block and whose list ascends; that of the first head gives the row's priority, from its history.
// The last of a sequence to be done counts.
// A block kept by several heads is counted once.
// TinyServe S:306-352 (seed), whose three branches wrote into three id spaces; arXiv 2509.12211 (paper).
#include "selection.cuh"

#ifndef CHOICE_THREADS
#define CHOICE_THREADS 512
#endif

constexpr int PAPER = 0, SEED = 1;

__device__ bool contains(const int* ascending, int64_t count, int value) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (__ldcg(ascending + middle) < value) low = middle + 1;
        else high = middle;
    }
    return low < count && __ldcg(ascending + low) == value;
}

extern "C" __global__ void __launch_bounds__(CHOICE_THREADS, 1024 / CHOICE_THREADS) cache_selection(
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
    int* workspace,  // [workspace_words] thread blocks of each sequence that are done; 0 before and after
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
    __shared__ SelectMemory memory;
    __shared__ __align__(16) float score[SELECT_BLOCKS];
    __shared__ bool last;
    const int64_t seq = blockIdx.x, head = blockIdx.y;
    if (seq >= num_seqs) return;
    const int64_t given = num_seq_blocks[seq], blocks = min(max(given, (int64_t)0), max_blocks_per_seq);
    int* const accesses = history + seq * max_blocks_per_seq;
    int flags = given != blocks ? STATUS_RANGE : 0, rank = 0;
    const int required = requirement[seq];
    // The row's score from its history, of which `own` is what this thread has seen; every thread calls it.
    const auto row_rank = [&](int64_t own) {
        const float mean = __fdiv_rn(__ll2float_rn(block_sum(own)), __ll2float_rn(max(blocks, (int64_t)1)));
        const float seen = __fdiv_rn(mean < 100.0f ? mean : 100.0f, 100.0f);
        const float c = complexity[seq];
        if (isnan(c)) flags |= STATUS_NOT_A_NUMBER;
        const float clamped = isnan(c) ? 0.0f : c < 1.0f ? c : 1.0f;
        float total = __fadd_rn(__fmul_rn(permille(weight_complexity), clamped),
                                __fmul_rn(permille(weight_requirement), __int2float_rn(required)));
        total = __fadd_rn(total, __fmul_rn(permille(weight_history), seen));
        const float threshold = permille(threshold_permille);
        const int found = total > threshold ? 2 : total > __fmul_rn(threshold, 0.5f) ? 1 : 0;
        if (head == 0 && threadIdx.x == 0) {
            row_score[seq] = total;
            priority[seq] = (int8_t)found;
        }
        return found;
    };
    int64_t accessed = 0;
    const bool early = mode != PAPER;  // the seed's budgets need the rank, and every head finds it
    for (int64_t i = threadIdx.x; early && i < blocks; i += blockDim.x) accessed += accesses[i];
    if (early) rank = row_rank(accessed);
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
    const float* const scores = block_score + (seq * num_score_heads + head) * max_blocks_per_seq;
    const bool sum = num_select_heads != num_score_heads;
    const auto score_of = [&](int64_t block, bool& undefined) {
        float total = scores[block];
        undefined |= isnan(total);
        if (!sum) return total;
        if (isnan(total)) total = -INFINITY;
        for (int64_t other = 1; other < num_score_heads; ++other) {
            const float next = scores[other * max_blocks_per_seq + block];
            undefined |= isnan(next);
            total = __fadd_rn(total, isnan(next) ? -INFINITY : next);
        }
        undefined |= isnan(total);
        return positive_zero(total);
    };
    const int64_t at = seq * num_select_heads + head;
    int* const list = selected + at * max_selected;
    bool undefined = false;
    if (head < num_select_heads) {
        if (threadIdx.x == 0) count[at] = (int)budget;
        Scores<CHOICE_THREADS> held = {score};
        // What lies behind the row is read too, so that nothing waits for its length.
        if (!sum) held.ask(scores, max_blocks_per_seq);
        else held.put([&](int block) { return score_of(block, undefined); }, blocks);
        // The first head's thread block sums the history beside, so that both are under way at once.
        if (head == 0 && !early) {
#pragma unroll 8
            for (int64_t i = threadIdx.x; i < max_blocks_per_seq; i += CHOICE_THREADS) {
                const int seen = accesses[i];
                accessed += i < blocks ? seen : 0;
            }
        }
        held.have();
        if (!select_best_at_once(held, blocks, budget, list, max_selected, sinks, recent, undefined, memory)) {
            __syncthreads();
            for (int64_t block = threadIdx.x; block < blocks; block += blockDim.x) score_of(block, undefined);
            const auto key_of = [&](int64_t block) {
                bool ignored;
                return selection_key(score_of(block, ignored), block, blocks, sinks, recent);
            };
            select_best(key_of, blocks, budget, list, max_selected);
        }
    }
    if (undefined) flags |= STATUS_NOT_A_NUMBER;
    if (head == 0 && !early) row_rank(accessed);

    // Only now, when nobody of the sequence reads the history any more, may it change.
    if (num_select_heads > 1) {
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            last = atomicAdd(&workspace[seq], 1) == num_select_heads - 1;
            if (last) workspace[seq] = 0;
            __threadfence();
        }
        __syncthreads();
        if (!last) {
            if (flags) atomicOr(status, flags);
            return;
        }
    }
    for (int i = threadIdx.x; i < SELECT_WORDS; i += blockDim.x) memory.chosen[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_select_heads * budget; i += blockDim.x) {
        const int64_t by = i / budget;  // all heads have the same budget
        const int* const its_list = selected + (seq * num_select_heads + by) * max_selected;
        const int logical = __ldcg(its_list + i % budget);
        bool counted = false;
        if (blocks <= 32 * SELECT_WORDS) {
            counted = atomicOr(&memory.chosen[logical / 32], 1u << logical % 32) >> logical % 32 & 1;
        } else {
            for (int64_t earlier = 0; earlier < by && !counted; ++earlier) {
                counted = contains(selected + (seq * num_select_heads + earlier) * max_selected, budget, logical);
            }
        }
        if (counted) continue;
        accesses[logical] += 1;
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
