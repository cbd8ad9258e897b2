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

constexpr int PAPER = 0, SEED = 1, WARPS = CHOICE_THREADS / WARP_SIZE;

__device__ bool contains(const int* ascending, int64_t count, int value) {
    int64_t low = 0, high = count;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (__ldcg(ascending + middle) < value) low = middle + 1;
        else high = middle;
    }
    return low < count && __ldcg(ascending + low) == value;
}

// The choice that Choice leaves, by the whole thread block; `heads` rows of scores, `width` apart, are added. Tells whether
// a score is NaN. Not inlined, so that the other way keeps its registers.
__device__ __noinline__ bool choose_any(const float* scores, int width, int heads, int blocks, int budget, int* list,
                                        int64_t max_selected, int sinks, int recent) {
    bool undefined = false;
    const auto score_of = [&](int64_t block, bool& odd) {
        float total = scores[block];
        odd |= isnan(total);
        if (heads == 1) return total;
        if (isnan(total)) total = -INFINITY;
        for (int64_t other = 1; other < heads; ++other) {
            const float next = scores[other * width + block];
            odd |= isnan(next);
            total = __fadd_rn(total, isnan(next) ? -INFINITY : next);
        }
        odd |= isnan(total);
        return positive_zero(total);
    };
    for (int block = threadIdx.x; block < blocks; block += CHOICE_THREADS) score_of(block, undefined);
    const auto key_of = [&](int64_t block) {
        bool ignored;
        return selection_key(score_of(block, ignored), block, blocks, sinks, recent);
    };
    select_best(key_of, blocks, budget, list, max_selected);
    return undefined;
}

// Two on a multiprocessor, where that does not make registers spill.
#if __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1200
constexpr int LEAST_BLOCKS = 1024 / CHOICE_THREADS;
#else
constexpr int LEAST_BLOCKS = 1;
#endif

extern "C" __global__ void __launch_bounds__(CHOICE_THREADS, LEAST_BLOCKS) cache_selection(
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
    __shared__ __align__(16) int seen[SELECT_BLOCKS];  // the history, where it is summed beside the choice
    __shared__ int64_t seen_by_warp[WARP_SIZE];
    __shared__ float complex;
    __shared__ int required;
    __shared__ bool last;
    const int seq = blockIdx.x, head = blockIdx.y, width = (int)max_blocks_per_seq;
    if (seq >= num_seqs) return;
    const float* const scores = block_score + (seq * num_score_heads + head) * width;
    int* const accesses = history + (int64_t)seq * width;
    const bool sum = num_select_heads != num_score_heads;
    const bool early = mode != PAPER;  // the seed's budgets need the rank, and every head finds it
    // What lies behind the row is read too, so that nothing waits for its length.
    Choice<CHOICE_THREADS> choice(memory);
    const bool chooses = head < num_select_heads;
    choice.take(chooses ? width : 0, [&](int block) { return scores[block]; });
    const int given = num_seq_blocks[seq], blocks = min(max(given, 0), width);
    const bool ranks = head == 0 && !early;
    if (ranks) ask_row<CHOICE_THREADS>(seen, accesses, min(width, SELECT_BLOCKS));
    if (threadIdx.x == 0) {
        complex = complexity[seq];
        required = requirement[seq];
        if (given != blocks) atomicOr(status, STATUS_RANGE);
    }
    int rank = 0;
    // The row's score from its history's sum; one thread of the first head writes it.
    const auto row_rank = [&](int64_t all, bool writes) {
        const float mean = __fdiv_rn(__ll2float_rn(all), __int2float_rn(max(blocks, 1)));
        const float share = __fdiv_rn(mean < 100.0f ? mean : 100.0f, 100.0f);
        const float clamped = isnan(complex) ? 0.0f : complex < 1.0f ? complex : 1.0f;
        float total = __fadd_rn(__fmul_rn(permille(weight_complexity), clamped),
                                __fmul_rn(permille(weight_requirement), __int2float_rn(required)));
        total = __fadd_rn(total, __fmul_rn(permille(weight_history), share));
        const float threshold = permille(threshold_permille);
        const int found = total > threshold ? 2 : total > __fmul_rn(threshold, 0.5f) ? 1 : 0;
        if (writes) {
            row_score[seq] = total;
            priority[seq] = (int8_t)found;
            if (isnan(complex)) atomicOr(status, STATUS_NOT_A_NUMBER);
        }
        return found;
    };
    const auto accesses_from = [&](int first) {  // this thread's part of them
        int64_t seen_here = 0;
#pragma unroll 4
        for (int i = first + (int)threadIdx.x; i < blocks; i += CHOICE_THREADS) seen_here += accesses[i];
        return seen_here;
    };
    if (early) rank = row_rank(block_sum(accesses_from(0)), head == 0 && threadIdx.x == 0);
    int budget = (int)paper_budget(blocks, ratio_permille, sinks, recent, budget_blocks);
    if (mode == SEED) {
        const int64_t extra = rank == 2 ? min(max((int64_t)required + 1, (int64_t)0), (int64_t)4) : rank;
        budget = (int)min((int64_t)blocks, min((int64_t)blocks, (int64_t)sinks + recent) + extra);
    } else if (mode != PAPER) {
        budget = rank == 0 ? min(blocks, blocks / 2 + 1) : blocks;  // S:442-445
    }
    if (budget > max_selected) {
        if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        budget = 0;
    }
    if (!chooses) budget = max_selected = 0;
    // A block that is kept by one head at least.
    const auto count_access = [&](int logical) {
        accesses[logical] += 1;
        if (!block_table) return;
        const int block = block_table[(int64_t)seq * width + logical];
        if (block < 0 || block >= num_blocks) {
            atomicOr(status, block == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
            return;
        }
        if (uses) atomicAdd(&uses[block], 1);
        if (freq) atomicAdd(&freq[block], 1);
        if (last_use) last_use[block] = clock;  // the same from whoever writes it
    };
    bool undefined = false;
    if (sum) choice.add_heads(scores, num_score_heads, width, blocks, undefined);
    const bool found = choice.find(blocks, budget, sinks, recent, undefined);
    int64_t at = seq * num_select_heads + head;
    asm volatile("" : "+l"(at));  // not before: else the compiler keeps the list's address beside the scores, and spills
    int* const list = selected + at * max_selected;
    if (chooses && threadIdx.x == 0) count[at] = budget;
    // What was accessed is known before it changes: list() has a barrier before it keeps.
    if (ranks) {
        int64_t seen_here = accesses_from(SELECT_BLOCKS);
        await_copies<0>();
        each_asked<CHOICE_THREADS>(seen, accesses, min(width, SELECT_BLOCKS), [&](int block, int times) {
            seen_here += block < blocks ? times : 0;
        });
        seen_here = warp_total(seen_here);
        if (threadIdx.x % WARP_SIZE == 0) seen_by_warp[threadIdx.x / WARP_SIZE] = seen_here;
    }
    const bool at_once = found && num_select_heads == 1 && !block_table;
    if (found) {
        choice.list(blocks, sinks, recent, 0, budget, [&](int place, int block) {
            list[place] = block;
            if (at_once) atomicAdd(&accesses[block], 1);  // nobody waits for it
        });
        for (int64_t i = budget + (int)threadIdx.x; i < max_selected; i += CHOICE_THREADS) list[i] = -1;
    } else {
        __syncthreads();
        undefined |= choose_any(scores, width, sum ? (int)num_score_heads : 1, blocks, budget, list, max_selected, sinks, recent);
    }
    if (undefined) atomicOr(status, STATUS_NOT_A_NUMBER);
    if (ranks && threadIdx.x / WARP_SIZE == WARPS - 1) {  // a warp that has nothing to list
        const int lane = threadIdx.x % WARP_SIZE;
        row_rank(warp_total(lane < WARPS ? seen_by_warp[lane] : (int64_t)0), lane == 0);
    }
    if (at_once) return;
    // Only now, when nobody of the sequence reads the history any more, may it change.
    __syncthreads();
    if (num_select_heads > 1) {
        if (threadIdx.x == 0) {
            __threadfence();
            last = atomicAdd(&workspace[seq], 1) == num_select_heads - 1;
            if (last) workspace[seq] = 0;
            __threadfence();
        }
        __syncthreads();
    }
    if (num_select_heads == 1 || last) {
        for (int i = threadIdx.x; i < SELECT_WORDS; i += CHOICE_THREADS) memory.chosen[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < (int)num_select_heads * budget; i += CHOICE_THREADS) {
            const int by = i / budget;  // all heads have the same budget
            const int* const its_list = selected + (seq * num_select_heads + by) * max_selected;
            const int logical = __ldcg(its_list + i % budget);
            bool counted = false;
            if (blocks <= 32 * SELECT_WORDS) {
                counted = atomicOr(&memory.chosen[logical / 32], 1u << logical % 32) >> logical % 32 & 1;
            } else {
                for (int earlier = 0; earlier < by && !counted; ++earlier) {
                    counted = contains(selected + (seq * num_select_heads + earlier) * max_selected, budget, logical);
                }
            }
            if (!counted) count_access(logical);
        }
    }
}
