// Attention over the selected blocks only; given boxes, the same call scores and chooses them first (fused).
// With boxes, a launch of one warp per 8 blocks scores (box_scores.cuh) and one of a thread block per (sequence, KV head)
// selects (selection.cuh); then, or without boxes, one thread block of four warps per (part of a sequence's kept list, KV
// head), or per (worker, KV head) over segments of the lists, attends as flash_paged_attention does and merges as it does.
// In the commonest shapes one launch chooses and attends.
// TinyServe S:391-521 and arXiv 2509.12211; Quest, arXiv 2406.10774.
#include "attention_tiles.cuh"
#include "box_scores.cuh"
#include "kept_attention.cuh"
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

// Fused, first: the scores, as block_scoring makes them.
extern "C" __global__ void __launch_bounds__(SCORE_THREADS, SCORE_PER_SM)
    query_aware_paged_attention_score(QUERY_AWARE_PARAMETERS) {
    start_next_launch();
    const int first = ((int)blockIdx.y * SCORE_WARPS + (int)threadIdx.x / WARP_SIZE) * SCORE_BLOCKS;
    const int kv_head = (int)blockIdx.x, seq = (int)blockIdx.z;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const Scoring call = {query,        box,       num_heads, head_dim, num_blocks,
                          num_kv_heads, max_blocks_per_seq, reduction, false, status};
    score_blocks(call, block_table + seq * max_blocks_per_seq, score, first, seq_lens[seq], (int)block_size, seq, kv_head);
}

// Blocks to keep of a row by the paper's budget; none, and a flag, where the list cannot hold them.
__device__ __forceinline__ int64_t budget_of(int64_t blocks, int64_t max_selected, int ratio_permille, int sinks, int recent,
                                             int budget_blocks, int* status) {
    const int64_t budget = paper_budget(blocks, ratio_permille, sinks, recent, budget_blocks);
    if (budget <= max_selected) return budget;
    if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
    return 0;
}

// The choice of a row, by the whole thread block: keep(place, block) for each block kept whose place in the list lies within
// [low, high). Where it is not of the kind that Choice makes, the whole list is written first.
template <int THREADS, typename Keep>
__device__ __forceinline__ void choose_row(const float* scores, int64_t blocks, int64_t max_blocks, int64_t budget,
                                           int* list, int64_t max_selected, int sinks, int recent, int low, int high,
                                           SelectMemory& memory, int* status, Keep keep) {
    bool undefined = false;
    Choice<THREADS> choice(memory);
    choice.take((int)max_blocks, [&](int block) { return __ldcg(scores + block); });
    await_copies<0>();  // what the caller has asked for, to be there when blocks are kept
    if (choice.find((int)blocks, (int)budget, sinks, recent, undefined)) {
        choice.list((int)blocks, sinks, recent, low, high, keep);
    } else {
        __syncthreads();
        for (int64_t i = threadIdx.x; i < blocks; i += THREADS) undefined |= isnan(__ldcg(scores + i));
        const auto key_of = [&](int64_t i) { return selection_key(__ldcg(scores + i), i, blocks, sinks, recent); };
        select_best(key_of, blocks, budget, list, max_selected);
        for (int i = low + (int)threadIdx.x; i < high; i += THREADS) keep(i, __ldcg(list + i));
    }
    if (undefined) atomicOr(status, STATUS_NOT_A_NUMBER);
}

// Fused, second: the choice. One thread block per (sequence, KV head).
extern "C" __global__ void __launch_bounds__(512, 1) query_aware_paged_attention_select(QUERY_AWARE_PARAMETERS) {
    __shared__ SelectMemory memory;
    const int64_t seq = blockIdx.x, at = seq * num_kv_heads + blockIdx.y;
    follow_launch();
    if (seq >= num_seqs) return;
    const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
    const int64_t budget = budget_of(row.blocks, max_selected, ratio_permille, sinks, recent, budget_blocks, status);
    int* const list = selected + at * max_selected;
    choose_row<512>(score + at * max_blocks_per_seq, row.blocks, max_blocks_per_seq, budget, list, max_selected, sinks,
                    recent, 0, (int)budget, memory, status, [&](int place, int block) { list[place] = block; });
    for (int64_t i = budget + threadIdx.x; i < max_selected; i += 512) list[i] = -1;
    if (threadIdx.x == 0) count[at] = (int)budget;
}

// Fused, behind the scores: one launch that chooses for a row and attends to a part of its list. All thread blocks of a row
// make its choice, each for itself, so that none waits for another; the last of them to arrive puts the parts together.
constexpr int AT_ONCE_WARPS = 12, AT_ONCE_THREADS = AT_ONCE_WARPS * WARP_SIZE;
constexpr int KEPT_HERE = 256;  // blocks of a part that are handed on in shared memory; of a longer one the list is read

// Count this thread block's arrival, when all its threads have written; gives how many there were before, to all of them.
__device__ __forceinline__ int arrive(int* ticket) {
    __shared__ int before;
    __syncthreads();
    if (threadIdx.x == 0) {
        int found;
        asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(found) : "l"(ticket) : "memory");
        before = found;
    }
    __syncthreads();
    return before;
}

// The parts of a row put together, two channels per thread, sixteen parts under way.
template <int DIM>
__device__ __forceinline__ void merge_row(const float* partial_output, const float* partial_ml, int64_t first, int splits,
                                          int64_t num_heads, int64_t head, int group, half* output, float* lse,
                                          int* blocks_read, int* tokens_read) {
    constexpr int UNDER_WAY = 16;
    if (threadIdx.x / WARP_SIZE == AT_ONCE_WARPS - 1) {  // the last warp, which has least of the rest to do
        const int lane = threadIdx.x % WARP_SIZE;
        int blocks = 0, tokens = 0;
        for (int i = lane; i < splits; i += WARP_SIZE) {
            const float2 read = __ldcg(reinterpret_cast<const float2*>(partial_ml + 4 * ((first + i) * num_heads + head) + 2));
            blocks += __float_as_int(read.x);
            tokens += __float_as_int(read.y);
        }
        blocks = warp_total(blocks);
        tokens = warp_total(tokens);
        if (lane < group) blocks_read[lane] = blocks;
        if (lane < group) tokens_read[lane] = tokens;
    }
    for (int item = threadIdx.x; item < group * DIM / 2; item += AT_ONCE_THREADS) {
        const int h = item / (DIM / 2), d = item % (DIM / 2) * 2;
        float top = -INFINITY, sum = 0.0f;
        float2 mixed = {0.0f, 0.0f};
        for (int start = 0; start < splits; start += UNDER_WAY) {
            float2 ml[UNDER_WAY], held[UNDER_WAY];
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) {
                const int64_t at = (first + min(start + i, splits - 1)) * num_heads + head + h;
                ml[i] = __ldcg(reinterpret_cast<const float2*>(partial_ml + 4 * at));
                held[i] = __ldcg(reinterpret_cast<const float2*>(partial_output + at * DIM + d));
            }
            float highest = top;
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) highest = fmaxf(highest, ml[i].x);  // behind the last, the last again
            const float shrink = rescale(top, highest);
            mixed = {mixed.x * shrink, mixed.y * shrink};
            sum *= shrink;
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) {
                const float w = start + i < splits ? rescale(ml[i].x, highest) : 0.0f;
                sum += w * ml[i].y;
                mixed.x += w * held[i].x;
                mixed.y += w * held[i].y;
            }
            top = highest;
        }
        const float part = sum == 0.0f ? 0.0f : 1.0f / sum;
        *reinterpret_cast<half2*>(output + h * DIM + d) = __floats2half2_rn(mixed.x * part, mixed.y * part);
        if (d == 0) lse[h] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
    }
}

// For head_dim 128 and a group of 4 or 8.
extern "C" __global__ void __launch_bounds__(AT_ONCE_THREADS, 1)
    query_aware_paged_attention_at_once(QUERY_AWARE_PARAMETERS) {
    constexpr int DIM = 128;
    extern __shared__ __align__(128) unsigned char rings[];  // [AT_ONCE_WARPS][RING_SLOTS * SLOT_BYTES]
    const int warp = uniform_warp(), lane = threadIdx.x % WARP_SIZE, kv_heads = (int)num_kv_heads;
    if (num_seqs == 0) return follow_launch();
    const int rows = (int)num_seqs * kv_heads, group = (int)(num_heads / num_kv_heads);
    // As many parts of a row as there are thread blocks for it, of at least eight blocks.
    const int splits = max(min(min((int)gridDim.x / rows, (int)max_selected / 8), (int)(max_segments / num_seqs)), 1);
    int* const row_table = reinterpret_cast<int*>(rings);  // [SELECT_BLOCKS], until the list is known
    SelectMemory& memory = *reinterpret_cast<SelectMemory*>(rings + 4 * SELECT_BLOCKS);
    __shared__ int2 kept[KEPT_HERE];  // logical and physical
    __shared__ int told[2];           // blocks and tokens that the part reads
    for (int task = blockIdx.x; task < rows * splits; task += gridDim.x) {
        const int at = task / splits, part = task - at * splits, seq = at / kv_heads, kv_head = at - seq * kv_heads;
        const int* const table = block_table + seq * max_blocks_per_seq;
        int* const list = selected + at * max_selected;
        const int64_t head = (int64_t)seq * num_heads + kv_head * group;
        const Row row = row_of(seq_lens, seq, block_size, max_blocks_per_seq, status);
        const int size = (int)budget_of(row.blocks, max_selected, ratio_permille, sinks, recent, budget_blocks, status);
        const int low = (int)((int64_t)size * part / splits), high = (int)((int64_t)size * (part + 1) / splits);
        const bool here = high - low <= KEPT_HERE;
        __syncthreads();  // the rings are free
        ask_row<AT_ONCE_THREADS>(row_table, table, min(row.blocks, (int64_t)SELECT_BLOCKS));
        if (threadIdx.x < 2) told[threadIdx.x] = 0;
        const auto keep = [&](int place, int block) {
            if (here) kept[place - low] = {block, block < SELECT_BLOCKS ? row_table[block] : table[block]};
            else list[place] = block;
        };
        follow_launch();
        choose_row<AT_ONCE_THREADS>(score + at * max_blocks_per_seq, row.blocks, max_blocks_per_seq, size, list,
                                    max_selected, sinks, recent, low, high, memory, status, keep);
        __syncthreads();
        const auto unit_of = [&](int unit, int& block, int& tokens) {
            int2 entry;  // logical and physical
            if (here) {
                entry = kept[unit - low];
            } else {
                entry.x = __ldcg(list + unit);
                entry.y = table[entry.x];
            }
            const bool held = entry.y >= 0 && entry.y < num_blocks;
            block = held ? entry.y : 0;
            tokens = held ? (int)min(block_size, row.length - entry.x * block_size) : 0;
        };
        const int64_t to = ((int64_t)seq * splits + part) * num_heads + kv_head * group;
        const auto sink = [&](int h, int d, float value, float top, float sum) {
            if (splits == 1) {
                output[(head + h) * DIM + d] = __float2half(sum == 0.0f ? 0.0f : value / sum);
                if (d == 0) lse[head + h] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
            } else {
                partial_output[(to + h) * DIM + d] = value;
                if (d == 0) {
                    *reinterpret_cast<float4*>(partial_ml + 4 * (to + h)) = {top, sum, __int_as_float(told[0]),
                                                                             __int_as_float(told[1])};
                }
            }
        };
        // Beside the first K and V that are under way: the list, and what is read.
        const auto meanwhile = [&] {
            int blocks_here = 0, tokens_here = 0;
            for (int unit = low + (int)threadIdx.x; unit < high; unit += AT_ONCE_THREADS) {
                int block, tokens;
                unit_of(unit, block, tokens);
                if (here) list[unit] = kept[unit - low].x;
                blocks_here += tokens > 0;
                tokens_here += tokens;
            }
            if (warp * WARP_SIZE < high - low) {
                blocks_here = warp_total(blocks_here);
                tokens_here = warp_total(tokens_here);
                if (lane == 0) atomicAdd(&told[0], blocks_here);
                if (lane == 0) atomicAdd(&told[1], tokens_here);
            }
            if (part > 0) return;
            for (int64_t i = size + (int)threadIdx.x; i < max_selected; i += AT_ONCE_THREADS) list[i] = -1;
            if (threadIdx.x == 0) count[at] = size;
            if (threadIdx.x == 0 && size == 0 && row.blocks > 0) atomicOr(status, STATUS_RANGE);
        };
        const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};
        attend_kept<DIM, AT_ONCE_WARPS>(query + head * DIM, group, cache, kv_head, scale, low, high, unit_of, sink,
                                        meanwhile, rings);
        if (splits == 1) {
            if (threadIdx.x < group) blocks_read[head + threadIdx.x] = told[0];
            if (threadIdx.x < group) tokens_read[head + threadIdx.x] = told[1];
        } else if (arrive(&tickets[at]) == splits - 1) {
            if (threadIdx.x == 0) tickets[at] = 0;
            merge_row<DIM>(partial_output, partial_ml, (int64_t)seq * splits, splits, num_heads,
                           (int64_t)kv_head * group, group, output + head * DIM, lse + head,
                           blocks_read + head, tokens_read + head);
        }
    }
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
    follow_launch();
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
