// Split the batch's blocks over workers: the list of segments that split attention walks.
// One thread block. even-blocks: prefix sums over the sequences; then a worker's border finds the sequence that it lies in
// by a search, and every cut of the line of all units (a sequence's border or a worker's) its own place in the list by
// counting the cuts below it; nobody waits for another's result. per-seq and lpt: ranks by counting; lpt hands out one
// sequence at a time, to the least loaded by a reduction of a warp. Up to 1024 sequences live in shared memory.
// TinyServe S:534 (named only); lpt: Graham 1969.
#include "common.cuh"

// Quotients of numbers that are not negative. A division of 64 bits takes several times as long.
__device__ __forceinline__ int quotient(int numerator, int denominator) {
    return (int)((unsigned)numerator / (unsigned)denominator);
}

__device__ __forceinline__ int64_t quotient(int64_t numerator, int64_t denominator) {
    return numerator / denominator;
}

// Quotients by one number, which is known long before the others: a multiplication and at most one step up.
template <typename T>
struct Divisor {
    T by;
    __device__ __forceinline__ explicit Divisor(int64_t divisor) : by((T)divisor) {}
    __device__ __forceinline__ T quotient_of(T numerator) const { return numerator / by; }
};

template <>
struct Divisor<int> {
    unsigned by, inverse;  // floor((2**32 - 1) / by)
    __device__ __forceinline__ explicit Divisor(int64_t divisor) : by((unsigned)divisor), inverse(~0u / by) {}
    __device__ __forceinline__ int quotient_of(int numerator) const {
        const unsigned found = __umulhi((unsigned)numerator, inverse);
        return (int)(found + ((unsigned)numerator - found * by >= by));
    }
};

// floor(numerator * 1000 / denominator) of numbers that are not negative, 0 where the denominator is.
__device__ __forceinline__ int64_t permille(int64_t numerator, int64_t denominator) {
    if (denominator == 0) return 0;
    int64_t found = (int64_t)((double)(numerator * 1000) / (double)denominator);
    while (found * denominator > numerator * 1000) --found;
    while ((found + 1) * denominator <= numerator * 1000) ++found;
    return found;
}

// What some sequences have together.
struct Line {
    int64_t units, tokens;
    int longest;
};

// Sums over the threads before this one (its `longest` says nothing), and over all.
__device__ __forceinline__ Line block_line(const Line& own, Line* all) {
    __shared__ Line of_warp[WARP_SIZE];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    Line sum = own;
    sum.longest = warp_largest(own.longest);
    for (int width = 1; width < WARP_SIZE; width *= 2) {
        const int64_t units = __shfl_up_sync(FULL_WARP, sum.units, width);
        const int64_t tokens = __shfl_up_sync(FULL_WARP, sum.tokens, width);
        if (lane < width) continue;
        sum.units += units;
        sum.tokens += tokens;
    }
    __syncthreads();  // of_warp may still be read from the call before
    if (lane == WARP_SIZE - 1) of_warp[warp] = sum;
    __syncthreads();
    Line before = {sum.units - own.units, sum.tokens - own.tokens, 0};
    *all = {0, 0, 0};
    for (int i = 0; i < warps; ++i) {
        const Line other = of_warp[i];
        if (i < warp) before = {before.units + other.units, before.tokens + other.tokens, 0};
        *all = {all->units + other.units, all->tokens + other.tokens, max(all->longest, other.longest)};
    }
    return before;
}

// The sequences in a row of all their units; rows of num_seqs.
struct Rows {
    int64_t *units, *start, *cuts, *tokens_before;  // cuts: borders of sequences that no worker's border meets, up to each
};

// Even shares of `total` units, in numbers of type T, which holds (num_workers + 1) * total. Returns this thread's largest
// load; `listed`: how many segments there are.
template <typename T>
__device__ __forceinline__ int64_t share_evenly(const Rows& rows, T total, T all_tokens, int num_seqs, T num_workers,
                                                const Divisor<T>& by_workers, int block_size, int64_t* ranges, int64_t* load,
                                                int* segments, int64_t* segment_range, int* seq_segments, int64_t* listed) {
    const auto share = [&](T worker) { return by_workers.quotient_of((T)(worker * total)); };
    const auto workers_below = [&](T unit) { return quotient((T)(unit * num_workers + total - 1), total); };
    T own_cuts = 0, largest = 0;
    for (int first = 0; first < num_seqs; first += blockDim.x) {
        const int seq = first + threadIdx.x;
        const T units = seq < num_seqs ? (T)rows.units[seq] : 0, start = units ? (T)rows.start[seq] : 0, end = start + units;
        // Workers' borders below a unit: those of so many workers. Each counts once: with fewer units than workers every
        // unit is a border.
        const T next = units ? workers_below(start) : 0, behind = units ? workers_below(end) : 0;
        const T border = share(next);  // the first that is not below the start
        const bool cuts = units && border != start;
        int in_tile;
        const T before = own_cuts + block_rank(cuts, &in_tile);
        own_cuts += in_tile;
        if (seq >= num_seqs) continue;
        rows.cuts[seq] = before + cuts;
        const T at = units ? min(start, next) + before : 0;
        seq_segments[2 * seq] = (int)at;
        seq_segments[2 * seq + 1] = (int)(units ? cuts + min(end, behind) - min(start, next) : 0);
        if (!cuts) continue;
        segments[3 * at] = seq;
        segments[3 * at + 1] = 0;
        segments[3 * at + 2] = (int)(min(border, end) - start);
    }
    __syncthreads();
    const T all_listed = min(total, num_workers) + own_cuts;
    *listed = all_listed;
    // A lane finds where a worker's border lies: its sequence, its place in the list, the tokens before it. The end of the
    // share is the next lane's border, so a warp has 31 workers.
    const int lane = threadIdx.x % WARP_SIZE, step = WARP_SIZE - 1;
    int halves = 1;
    while (halves < num_seqs) halves *= 2;
    for (T first = (int)threadIdx.x / WARP_SIZE * step; first < num_workers; first += (int)blockDim.x / WARP_SIZE * step) {
        const T worker = min(first + lane, num_workers), from = share(worker);
        int seq = 0;  // the last sequence that starts at or before the border
        for (int half = halves / 2; half > 0; half /= 2) {
            if (seq + half < num_seqs && (T)rows.start[seq + half] <= from) seq += half;
        }
        const bool inside = from < total;
        const T start = inside ? (T)rows.start[seq] : 0, end = inside ? start + (T)rows.units[seq] : 0;
        const T at = inside ? (total < num_workers ? from : worker) + (T)rows.cuts[seq] : all_listed;
        const T tokens = inside ? (T)rows.tokens_before[seq] + (from - start) * block_size : all_tokens;
        const T to = __shfl_down_sync(FULL_WARP, from, 1), next_at = __shfl_down_sync(FULL_WARP, at, 1);
        const T next_tokens = __shfl_down_sync(FULL_WARP, tokens, 1);
        if (lane == step || worker >= num_workers) continue;
        ranges[2 * worker] = from;
        ranges[2 * worker + 1] = to;
        segment_range[2 * worker] = at;
        segment_range[2 * worker + 1] = next_at;
        load[worker] = next_tokens - tokens;
        largest = max(largest, (T)(next_tokens - tokens));
        if (from == to) continue;
        segments[3 * at] = seq;
        segments[3 * at + 1] = (int)(from - start);
        segments[3 * at + 2] = (int)(min(to, end) - start);
    }
    return largest;
}

extern "C" __global__ void dynamic_workload_balancing(
    const int* seq_lens,          // [num_seqs] tokens
    const int* kept,              // [num_seqs] blocks kept, the last among them, or null: all
    int64_t* ranges,              // [num_workers][2] blocks first, end, counted along the segments
    int64_t* load,                // [num_workers] tokens
    int* segments,                // [max_segments][3] sequence, first block, end block, then -1
    int64_t* segment_range,       // [num_workers][2]
    int* seq_segments,            // [num_seqs][2] first segment, number of segments
    int* num_segments,            // [1]
    int64_t* imbalance_permille,  // [2] one worker per sequence, this plan
    int* workspace,               // [workspace_words] four int64 rows, then two int rows of num_seqs
    int64_t num_seqs,
    int64_t num_workers,
    int64_t max_segments,
    int64_t workspace_words,
    int block_size,
    int mode,  // 0 even-blocks, 1 per-seq, 2 lpt
    int* status) {
    constexpr int IN_SHARED = 1024, MOST_WORKERS = 1 << 20;
    __shared__ int64_t shared_rows[4 * IN_SHARED];
    __shared__ int shared_order[2 * IN_SHARED], largest_load;
    const bool shared = num_seqs <= IN_SHARED;
    int64_t* const rows = shared ? shared_rows : reinterpret_cast<int64_t*>(workspace);
    int64_t* const start_of = rows;             // units before each sequence
    int64_t* const cuts_of = rows + num_seqs;   // sequence borders that no worker's border meets, up to each one
    int64_t* const unit_row = rows + 2 * num_seqs;
    int64_t* const token_row = rows + 3 * num_seqs;  // even-blocks: tokens before each sequence; else its own
    int* const order = shared ? shared_order : reinterpret_cast<int*>(rows + 4 * num_seqs);  // as they are given out
    int* const worker_of = order + num_seqs;                                                 // worker of the i-th of them
    const Divisor<int> by_workers(num_workers);
    int flags = 0;

    if (threadIdx.x == 0) largest_load = 0;
    Line line = {0, 0, 0};
    for (int64_t first = 0; first < num_seqs; first += blockDim.x) {
        const int64_t seq = first + threadIdx.x;
        Line own = {0, 0, 0}, all;
        if (seq < num_seqs) {
            const int given = seq_lens[seq], wanted = kept ? kept[seq] : 0, length = max(given, 0);
            const int blocks = (int)(((unsigned)length + block_size - 1) / (unsigned)block_size);
            const int units = kept ? min(max(wanted, 0), blocks) : blocks;
            own.units = units;
            own.tokens = own.longest = units > 0 ? length - (blocks - units) * block_size : 0;
            if (given < 0 || (kept && wanted != units)) flags |= STATUS_RANGE;
        }
        const Line before = block_line(own, &all);
        if (seq < num_seqs) {
            unit_row[seq] = own.units;
            start_of[seq] = line.units + before.units;
            token_row[seq] = mode == 0 ? line.tokens + before.tokens : own.tokens;
        }
        line = {line.units + all.units, line.tokens + all.tokens, max(line.longest, all.longest)};
    }
    const int64_t total = line.units, all_tokens = line.tokens;
    __syncthreads();

    int64_t listed = 0, largest = 0;
    if (mode == 0) {
        const Rows even = {unit_row, start_of, cuts_of, token_row};
        if (all_tokens < 1ll << 31 && (num_workers + 1) * total < 1ll << 31) {
            largest = share_evenly<int>(even, (int)total, (int)all_tokens, (int)num_seqs, (int)num_workers, by_workers,
                                        block_size, ranges, load, segments, segment_range, seq_segments, &listed);
        } else {
            largest = share_evenly<int64_t>(even, total, all_tokens, (int)num_seqs, num_workers, Divisor<int64_t>(num_workers),
                                            block_size, ranges, load, segments, segment_range, seq_segments, &listed);
        }
    } else {
        const auto units_of = [&](int64_t seq) { return unit_row[seq]; };
        const auto tokens_of = [&](int64_t seq) { return token_row[seq]; };
        for (int64_t i = threadIdx.x; i < num_workers; i += blockDim.x) load[i] = 0;
        int64_t busy = 0;
        for (int64_t first = 0; first < num_seqs; first += blockDim.x) {
            const int64_t seq = first + threadIdx.x;
            int64_t in_tile;
            const bool has = seq < num_seqs && tokens_of(seq) > 0;
            const int64_t rank = busy + block_exclusive_scan(has, &in_tile);
            busy += in_tile;
            if (has && mode == 1) {
                order[rank] = (int)seq;
                worker_of[rank] = (int)(seq % num_workers);
            }
        }
        __syncthreads();
        for (int64_t seq = threadIdx.x; mode == 2 && seq < num_seqs; seq += blockDim.x) {
            const int64_t tokens = tokens_of(seq);
            if (tokens == 0) continue;
            int64_t rank = 0;
            for (int64_t other = 0; other < num_seqs; ++other) {
                const int64_t others = tokens_of(other);
                rank += others > tokens || (others == tokens && other < seq);
            }
            order[rank] = (int)seq;
        }
        __syncthreads();
        if (mode == 2 && threadIdx.x < WARP_SIZE) {
            // Least load first, then lowest id, in one number; each lane knows the best of every 32nd worker.
            const auto best_of_lane = [&]() {
                unsigned long long best = ~0ull;
                for (int64_t id = threadIdx.x; id < num_workers; id += WARP_SIZE) {
                    best = min(best, (unsigned long long)load[id] * MOST_WORKERS + id);
                }
                return best;
            };
            unsigned long long own = best_of_lane();
            for (int64_t i = 0; i < busy; ++i) {
                unsigned long long best = own;
                for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
                    best = min(best, __shfl_xor_sync(FULL_WARP, best, width));
                }
                if (best != own) continue;  // ids differ, so one lane has it
                const int64_t worker = best % MOST_WORKERS;
                load[worker] += tokens_of(order[i]);
                worker_of[i] = (int)worker;
                own = best_of_lane();
            }
        }
        __syncthreads();
        listed = busy;
        for (int64_t i = threadIdx.x; i < num_seqs; i += blockDim.x) seq_segments[2 * i] = seq_segments[2 * i + 1] = 0;
        for (int64_t worker = threadIdx.x; worker < num_workers; worker += blockDim.x) {
            int64_t below = 0, own = 0;
            for (int64_t i = 0; i < busy; ++i) {
                below += worker_of[i] < worker;
                own += worker_of[i] == worker;
            }
            segment_range[2 * worker] = below;
            segment_range[2 * worker + 1] = below + own;
        }
        __syncthreads();
        for (int64_t i = threadIdx.x; i < busy; i += blockDim.x) {
            int64_t at = segment_range[2 * (int64_t)worker_of[i]];
            for (int64_t j = 0; j < i; ++j) at += worker_of[j] == worker_of[i];
            const int64_t seq = order[i];
            segments[3 * at] = (int)seq;
            segments[3 * at + 1] = 0;
            segments[3 * at + 2] = (int)units_of(seq);
            seq_segments[2 * seq] = (int)at;
            seq_segments[2 * seq + 1] = 1;
        }
        __syncthreads();
        int64_t before = 0;
        for (int64_t first = 0; first < num_workers; first += blockDim.x) {
            const int64_t worker = first + threadIdx.x;
            int64_t units = 0, tokens = 0, in_tile;
            if (worker < num_workers) {
                for (int64_t at = segment_range[2 * worker]; at < segment_range[2 * worker + 1]; ++at) {
                    units += units_of(segments[3 * at]);
                    tokens += tokens_of(segments[3 * at]);
                }
            }
            const int64_t from = before + block_exclusive_scan(units, &in_tile);
            before += in_tile;
            if (worker >= num_workers) continue;
            ranges[2 * worker] = from;
            ranges[2 * worker + 1] = from + units;
            load[worker] = tokens;
            largest = max(largest, tokens);
        }
    }
    for (int64_t i = 3 * listed + threadIdx.x; i < 3 * max_segments; i += blockDim.x) segments[i] = -1;
    if (all_tokens < 1ll << 31) {
        largest = warp_largest((int)largest);
        if (threadIdx.x % WARP_SIZE == 0) atomicMax(&largest_load, (int)largest);
        __syncthreads();
        largest = largest_load;
    } else {
        largest = block_max(largest);
    }
    if (threadIdx.x == 0) imbalance_permille[1] = permille(largest * num_workers, all_tokens);
    if (threadIdx.x == blockDim.x - 1) {
        num_segments[0] = (int)listed;
        imbalance_permille[0] = permille((int64_t)line.longest * num_seqs, all_tokens);
    }
    if (flags) atomicOr(status, flags);
}
