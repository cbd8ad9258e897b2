// What is wasted inside blocks, between them, and by where they lie, as whole numbers.
// Up to 8192 blocks and a table of up to 65,536 entries: one cluster. A thread block has an eighth of the pool, a thread per
// block; it reads the whole table and keeps the fill of its own blocks in shared memory. More: three launches. Bits of who
// is used and cached, 8192 to a thread block, with its last block that is not free; a warp per 128 table entries for fill
// and scatter; a thread per 32 blocks for states and runs, one or a warp per super-page. A run ends at a free block with
// none behind it and begins behind the last that is not free, found by looking back. All sums are of integers: order is no
// matter.
// Ours: the published formula is utilisation; super-pages: kvcached.
#include "cluster.cuh"

constexpr int RUN_BINS = 32, ENTRIES_PER_WARP = 128, STRETCH = 8192;
enum Metric {
    USED, CACHED_FREE, FREE, LIVE, TOKENS, LONGEST_FREE_RUN, NUM_RUNS, MAX_LIVE_ID, SUPER_HELD, SUPER_PINNED, ADJACENT,
    PAIRS, NUM_METRICS
};

#define FRAGMENTATION_PARAMETERS                                                                                      \
    const int *ref, const uint8_t *cached, const int *block_table, const int *seq_lens, int *fill, int *scatter,      \
        int64_t *run_histogram, int64_t *metrics, int *workspace, int64_t num_blocks, int64_t num_seqs,               \
        int64_t max_blocks_per_seq, int64_t workspace_words, int block_size, int super_size, int *status

__device__ __forceinline__ int warp_sum(int value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_add_sync(FULL_WARP, value);
#else
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) value += __shfl_xor_sync(FULL_WARP, value, width);
    return value;
#endif
}

__device__ __forceinline__ int warp_max(int value) {
#if __CUDA_ARCH__ >= 800
    return __reduce_max_sync(FULL_WARP, value);
#else
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) value = max(value, __shfl_xor_sync(FULL_WARP, value, width));
    return value;
#endif
}

__device__ __forceinline__ void add(int64_t* total, int64_t value) {
    if (value) atomicAdd(reinterpret_cast<unsigned long long*>(total), (unsigned long long)value);
}

// Pairs of consecutive blocks of a sequence, those of them not side by side, and status bits.
struct Walked {
    int pairs, broken, flags;
};

// A warp looks at 128 entries of a row from `start` on and calls take(block, tokens) for what is in use; the entries are
// fetched before the length is known.
template <typename Take>
__device__ __forceinline__ Walked walk(int64_t seq, int64_t start, const int* block_table, const int* seq_lens,
                                       int64_t num_blocks, int64_t max_blocks_per_seq, int block_size, Take&& take) {
    constexpr int STEPS = ENTRIES_PER_WARP / WARP_SIZE;
    const int lane = threadIdx.x % WARP_SIZE;
    const int* const row = block_table + seq * max_blocks_per_seq;
    const auto is_block = [&](int id) { return id >= 0 && id < num_blocks; };
    const int64_t given = seq_lens[seq], length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
    int entry[STEPS];
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
        const int64_t logical = start + k * WARP_SIZE + lane;
        entry[k] = logical < max_blocks_per_seq ? row[logical] : -1;
    }
    int last = lane == 0 && start > 0 ? row[start - 1] : -1;  // before the first lane's
    Walked found = {0, 0, length != given ? STATUS_RANGE : 0};
#pragma unroll
    for (int k = 0; k < STEPS; ++k) {
        const int64_t logical = start + k * WARP_SIZE + lane;
        const int block = entry[k], shifted = __shfl_up_sync(FULL_WARP, block, 1), before = lane == 0 ? last : shifted;
        last = __shfl_sync(FULL_WARP, block, WARP_SIZE - 1);
        const bool asked = logical * block_size < length, resident = asked && is_block(block);
        if (asked && !resident) found.flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
        if (resident) take(block, (int)min(length - logical * block_size, (int64_t)block_size));
        const bool pair = resident && is_block(before);
        found.pairs += __popc(__ballot_sync(FULL_WARP, pair));
        found.broken += __popc(__ballot_sync(FULL_WARP, pair && block - (int64_t)before != 1));
    }
    return found;
}

__device__ __forceinline__ int64_t parts_of_row(int64_t max_blocks_per_seq) {
    return max((max_blocks_per_seq + ENTRIES_PER_WARP - 1) / ENTRIES_PER_WARP, (int64_t)1);
}

// Up to 8192 blocks by a cluster.
extern "C" __global__ void CLUSTER __launch_bounds__(1024, 1) fragmentation_analysis_few(FRAGMENTATION_PARAMETERS) {
    constexpr int THREADS = 1024, WARPS = THREADS / WARP_SIZE, OWN = STRETCH / CLUSTER_BLOCKS, PER_THREAD = OWN / THREADS;
    constexpr int ALL_SUMS = NUM_METRICS + RUN_BINS, MOST_SEQS = 1024, OWN_SEQS = MOST_SEQS / CLUSTER_BLOCKS;
    __shared__ int fill_of[OWN], scatter_of[2 * OWN_SEQS], sums[ALL_SUMS], sums_in[CLUSTER_BLOCKS][ALL_SUMS];
    __shared__ int last_of_warp[OWN / WARP_SIZE], last_before;
    __shared__ int used_in[OWN / WARP_SIZE], kept_in[OWN / WARP_SIZE];  // of super-pages
    __shared__ unsigned free_of_warp[OWN / WARP_SIZE + 1];  // bits: free blocks
    if (blockIdx.x >= CLUSTER_BLOCKS) return;
    say_started();
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, rank = cluster_rank(), first = rank * OWN;
    const bool own_pages = super_size % WARP_SIZE == 0 && OWN % super_size == 0;  // no super-page has blocks elsewhere too

    // States and runs' borders, which need nothing of the tables.
    bool used[PER_THREAD], kept[PER_THREAD], free[PER_THREAD];
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int block = first + k * THREADS + threadIdx.x;
        const bool inside = block < num_blocks;
        used[k] = inside && ref[block] > 0;
        kept[k] = inside && !used[k] && cached[block] != 0;
        free[k] = inside && !used[k] && !kept[k];
    }
    const int earlier = first - THREADS + (int)threadIdx.x;  // blocks before are all there if this thread block has any
    const bool taken_before = earlier >= 0 && earlier < num_blocks && (ref[earlier] > 0 || cached[earlier] != 0);
    if (threadIdx.x == 0) {
        const int behind = first + OWN;
        free_of_warp[OWN / WARP_SIZE] = behind < num_blocks && ref[behind] <= 0 && cached[behind] == 0;
        last_before = -1;
    }
    for (int i = threadIdx.x; i < OWN; i += THREADS) fill_of[i] = 0;
    for (int i = threadIdx.x; i < 2 * OWN_SEQS; i += THREADS) scatter_of[i] = 0;
    if (threadIdx.x < OWN / WARP_SIZE) used_in[threadIdx.x] = kept_in[threadIdx.x] = 0;
    if (threadIdx.x < ALL_SUMS) sums[threadIdx.x] = threadIdx.x == MAX_LIVE_ID ? -1 : 0;
    __syncthreads();

    const int parts = (int)parts_of_row(max_blocks_per_seq);
    int pairs = 0, adjacent = 0, flags = 0;
    for (int item = warp; item < (int)num_seqs * parts; item += WARPS) {
        const int seq = item / parts;
        const Walked found = walk(seq, (int64_t)(item - seq * parts) * ENTRIES_PER_WARP, block_table, seq_lens, num_blocks,
                                  max_blocks_per_seq, block_size, [&](int block, int tokens) {
                                      if (block / OWN == rank) atomicMax(&fill_of[block % OWN], tokens);
                                  });
        flags |= found.flags;
        if (seq % CLUSTER_BLOCKS != rank || found.pairs == 0) continue;
        pairs += found.pairs;
        adjacent += found.pairs - found.broken;
        if (lane < 2) atomicAdd(&scatter_of[2 * (seq / CLUSTER_BLOCKS) + lane], lane == 0 ? found.broken : found.pairs);
    }
    if (flags) atomicOr(status, flags);
    const unsigned before_bits = __ballot_sync(FULL_WARP, taken_before);
    if (lane == 0 && before_bits) atomicMax(&last_before, earlier + 31 - __clz(before_bits));
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int start = k * THREADS + warp * WARP_SIZE;
        const unsigned in_use = __ballot_sync(FULL_WARP, used[k]), keeps = __ballot_sync(FULL_WARP, kept[k]);
        const unsigned frees = __ballot_sync(FULL_WARP, free[k]), taken = in_use | keeps;
        if (lane != 0) continue;
        last_of_warp[k * WARPS + warp] = taken ? first + start + 31 - __clz(taken) : -1;
        free_of_warp[k * WARPS + warp] = frees;
        if (in_use) {
            atomicAdd(&sums[USED], __popc(in_use));
            atomicMax(&sums[MAX_LIVE_ID], first + start + 31 - __clz(in_use));
        }
        if (keeps) atomicAdd(&sums[CACHED_FREE], __popc(keeps));
        if (frees) atomicAdd(&sums[FREE], __popc(frees));
        if (own_pages && in_use) atomicAdd(&used_in[start / super_size], __popc(in_use));
        if (own_pages && keeps) atomicAdd(&kept_in[start / super_size], __popc(keeps));
    }
    __syncthreads();

    // Where all blocks just before are free, further back; all threads see the same.
    int back = first - 2 * THREADS;
    for (int last = last_before; last < 0 && back >= 0 && first < num_blocks; back -= THREADS) {
        const int block = back + threadIdx.x;
        last = (int)block_max(ref[block] > 0 || cached[block] != 0 ? block : -1);
        if (threadIdx.x == 0) last_before = last;
    }
    if (back < first - 2 * THREADS) __syncthreads();
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int at = k * THREADS + threadIdx.x, block = first + at, slot = k * WARPS + warp;
        const int tokens = fill_of[at];
        if (block < num_blocks) fill[block] = tokens;
        const unsigned frees = free_of_warp[slot];
        const unsigned next = lane < WARP_SIZE - 1 ? frees >> (lane + 1) & 1 : free_of_warp[slot + 1] & 1;
        int longest = 0;
        if (free[k] && !next) {
            const unsigned before = ~frees & ((1u << lane) - 1);  // in a warp with a free block, all before it are blocks
            int begin = before ? block - lane + 31 - __clz(before) : -1;
            for (int i = slot - 1; begin < 0 && i >= 0; --i) begin = last_of_warp[i];
            if (begin < 0) begin = last_before;
            longest = block - begin;
            atomicAdd(&sums[NUM_METRICS + 31 - __clz(longest)], 1);
        }
        const unsigned ends = __ballot_sync(FULL_WARP, longest > 0), lives = __ballot_sync(FULL_WARP, tokens != 0);
        const int stored = warp_sum(tokens), most = warp_max(longest);
        if (lane != 0) continue;
        if (lives) atomicAdd(&sums[LIVE], __popc(lives));
        if (ends) atomicAdd(&sums[NUM_RUNS], __popc(ends));
        if (ends) atomicMax(&sums[LONGEST_FREE_RUN], most);
        if (stored) atomicAdd(&sums[TOKENS], stored);
    }
    int held = 0, pinned = 0;
    const auto count_page = [&](int size, int page_used, int page_kept) {
        if (page_used + page_kept > 0) held += size;
        if (page_used > 0) pinned += size - page_used;
    };
    if (own_pages) {
        const int start = first + (int)threadIdx.x * super_size;
        if (threadIdx.x < OWN / super_size && start < num_blocks) {
            count_page((int)min((int64_t)super_size, num_blocks - start), used_in[threadIdx.x], kept_in[threadIdx.x]);
        }
    } else {
        for (int64_t page = rank * WARPS + warp; page * super_size < num_blocks; page += CLUSTER_BLOCKS * WARPS) {
            const int64_t start = page * super_size, end = min(start + super_size, num_blocks);
            int page_used = 0, page_kept = 0;
            for (int64_t id = start + lane; id < end; id += WARP_SIZE) {
                const bool in_use = ref[id] > 0;
                page_used += in_use;
                page_kept += !in_use && cached[id] != 0;
            }
            page_used = warp_sum(page_used);
            page_kept = warp_sum(page_kept);
            if (lane == 0) count_page((int)(end - start), page_used, page_kept);
        }
    }
    if (held) atomicAdd(&sums[SUPER_HELD], held);
    if (pinned) atomicAdd(&sums[SUPER_PINNED], pinned);
    if (lane == 0 && pairs) atomicAdd(&sums[PAIRS], pairs);
    if (lane == 0 && adjacent) atomicAdd(&sums[ADJACENT], adjacent);
    for (int i = threadIdx.x; i < 2 * OWN_SEQS; i += THREADS) {
        const int seq = i / 2 * CLUSTER_BLOCKS + rank;
        if (seq < num_seqs) scatter[2 * seq + i % 2] = scatter_of[i];
    }
    all_started();
    __syncthreads();
    if (threadIdx.x < ALL_SUMS) *shared_of(&sums_in[rank][threadIdx.x], 0) = sums[threadIdx.x];
    cluster_barrier();
    if (rank > 0 || threadIdx.x >= ALL_SUMS) return;
    const bool largest = threadIdx.x == LONGEST_FREE_RUN || threadIdx.x == MAX_LIVE_ID;
    int64_t total = sums_in[0][threadIdx.x];
    for (int i = 1; i < CLUSTER_BLOCKS; ++i) {
        total = largest ? max(total, (int64_t)sums_in[i][threadIdx.x]) : total + sums_in[i][threadIdx.x];
    }
    if (threadIdx.x < NUM_METRICS) metrics[threadIdx.x] = total;
    else run_histogram[threadIdx.x - NUM_METRICS] = total;
}

// Workspace beyond a cluster: bits of the used blocks and of the cached ones [2 * ceil(num_blocks / 32)], then the last
// block that is not free of every 8192, or -1.
struct Bits {
    unsigned *used, *kept;
    int* last;

    __device__ __forceinline__ Bits(int* workspace, int64_t num_blocks)
        : used(reinterpret_cast<unsigned*>(workspace)), kept(used + (num_blocks + 31) / 32),
          last(reinterpret_cast<int*>(kept + (num_blocks + 31) / 32)) {}
};

extern "C" __global__ void __launch_bounds__(1024) fragmentation_analysis_bits(FRAGMENTATION_PARAMETERS) {
    constexpr int THREADS = 1024, PER_THREAD = STRETCH / THREADS;
    __shared__ int last_of_warp[THREADS / WARP_SIZE];
    const Bits bits(workspace, num_blocks);
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t start = (int64_t)blockIdx.x * STRETCH, first = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int counts[PER_THREAD], last = -1;
    uint8_t keeps[PER_THREAD];
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int64_t block = start + k * THREADS + threadIdx.x;
        counts[k] = block < num_blocks ? ref[block] : 0;
        keeps[k] = block < num_blocks ? cached[block] : 0;
    }
    for (int64_t i = first; i < 2 * num_seqs; i += (int64_t)gridDim.x * THREADS) scatter[i] = 0;
    if (first < RUN_BINS) run_histogram[first] = 0;
    if (first < NUM_METRICS) metrics[first] = first == MAX_LIVE_ID ? -1 : 0;
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int64_t block = start + k * THREADS + threadIdx.x;
        if (block < num_blocks) fill[block] = 0;
        const unsigned in_use = __ballot_sync(FULL_WARP, counts[k] > 0);
        const unsigned kept = __ballot_sync(FULL_WARP, counts[k] <= 0 && keeps[k] != 0), taken = in_use | kept;
        if (taken) last = (int)(block - lane) + 31 - __clz(taken);
        if (lane != 0 || block >= num_blocks) continue;
        bits.used[block / 32] = in_use;
        bits.kept[block / 32] = kept;
    }
    if (lane == 0) last_of_warp[threadIdx.x / WARP_SIZE] = last;
    __syncthreads();
    if (threadIdx.x >= WARP_SIZE) return;
    last = warp_max(last_of_warp[lane]);
    if (lane == 0) bits.last[blockIdx.x] = last;
}

extern "C" __global__ void fragmentation_analysis_walk(FRAGMENTATION_PARAMETERS) {
    __shared__ int pairs_here[2];  // adjacent, all
    const int64_t parts = parts_of_row(max_blocks_per_seq), step = (int64_t)gridDim.x * blockDim.x / WARP_SIZE;
    int flags = 0;
    if (threadIdx.x < 2) pairs_here[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t item = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP_SIZE; item < num_seqs * parts; item += step) {
        const int64_t seq = item / parts;
        const Walked found = walk(seq, (item - seq * parts) * ENTRIES_PER_WARP, block_table, seq_lens, num_blocks,
                                  max_blocks_per_seq, block_size,
                                  [&](int block, int tokens) { atomicMax(&fill[block], tokens); });
        flags |= found.flags;
        if (threadIdx.x % WARP_SIZE != 0 || found.pairs == 0) continue;
        atomicAdd(&scatter[2 * seq], found.broken);
        atomicAdd(&scatter[2 * seq + 1], found.pairs);
        atomicAdd(&pairs_here[0], found.pairs - found.broken);
        atomicAdd(&pairs_here[1], found.pairs);
    }
    if (flags) atomicOr(status, flags);
    __syncthreads();
    if (threadIdx.x < 2) add(&metrics[threadIdx.x == 0 ? ADJACENT : PAIRS], pairs_here[threadIdx.x]);
}

// Bits set of blocks [start, end), each `step`-th word from `at` on.
__device__ __forceinline__ int count_bits(const unsigned* words, int64_t start, int64_t end, int at, int step) {
    int found = 0;
    for (int64_t word = start / 32 + at; word * 32 < end; word += step) {
        unsigned mask = ~0u;
        if (word * 32 < start) mask &= ~0u << (start - word * 32);
        if (end - word * 32 < 32) mask &= (1u << (end - word * 32)) - 1;
        found += __popc(words[word] & mask);
    }
    return found;
}

extern "C" __global__ void __launch_bounds__(256) fragmentation_analysis(
    const int* ref,          // [num_blocks]
    const uint8_t* cached,   // [num_blocks] 1: free but still in the prefix index
    const int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,     // [num_seqs]
    int* fill,               // [num_blocks] valid tokens
    int* scatter,            // [num_seqs][2] consecutive blocks not side by side, such pairs
    int64_t* run_histogram,  // [32] free runs by the power of two of their length
    int64_t* metrics,        // [12] see Metric
    int* workspace,          // [workspace_words] see Bits, or null where a cluster does it all
    int64_t num_blocks,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t workspace_words,
    int block_size,
    int super_size,
    int* status) {
    constexpr int THREADS = 256, WARPS = THREADS / WARP_SIZE, PER_THREAD = STRETCH / THREADS, SHORT_BINS = 8;
    __shared__ int bins[RUN_BINS], sums[NUM_METRICS], last_of_warp[WARPS], last_before;
    const Bits bits(workspace, num_blocks);
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int64_t word = (int64_t)blockIdx.x * THREADS + threadIdx.x, start = word * 32, words = (num_blocks + 31) / 32;
    const unsigned used = word < words ? bits.used[word] : 0, kept = word < words ? bits.kept[word] : 0;
    const unsigned behind = word + 1 < words ? bits.used[word + 1] | bits.kept[word + 1] : ~0u;
    int earlier_last = -1;
    for (int64_t i = threadIdx.x; i < blockIdx.x; i += THREADS) earlier_last = max(earlier_last, bits.last[i]);
    if (threadIdx.x < RUN_BINS) bins[threadIdx.x] = 0;
    if (threadIdx.x < NUM_METRICS) sums[threadIdx.x] = threadIdx.x == MAX_LIVE_ID ? -1 : 0;
    if (threadIdx.x == 0) last_before = -1;
    int tokens = 0, live = 0;
#pragma unroll 8
    for (int k = 0; k < PER_THREAD; ++k) {
        const int64_t block = (int64_t)blockIdx.x * STRETCH + k * THREADS + threadIdx.x;
        const int own = block < num_blocks ? fill[block] : 0;
        tokens += own;
        live += own != 0;
    }
    // The last block that is not free before this word.
    const unsigned taken = used | kept, inside = start + 32 <= num_blocks ? ~0u : start < num_blocks ? (1u << (num_blocks - start)) - 1 : 0;
    const unsigned free = inside & ~taken;
    int last = taken ? (int)start + 31 - __clz(taken) : -1;
    for (int width = 1; width < WARP_SIZE; width *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, last, width);
        if (lane >= width) last = max(last, before);
    }
    if (lane == WARP_SIZE - 1) last_of_warp[warp] = last;
    last = __shfl_up_sync(FULL_WARP, last, 1);
    if (lane == 0) last = -1;
    __syncthreads();
    if (earlier_last >= 0) atomicMax(&last_before, earlier_last);
    for (int i = 0; i < warp; ++i) last = max(last, last_of_warp[i]);
    __syncthreads();
    last = max(last, last_before);

    int longest = 0;
    unsigned long long short_runs = 0;  // by bin, 8 bits each: a word has 16 runs at most
    unsigned ends = free & ~(free >> 1 | (~behind & 1) << 31);
    const int num_runs = __popc(ends);
    while (ends) {
        const int end = __ffs((int)ends) - 1;
        ends &= ends - 1;
        const unsigned before = ~free & ((1u << end) - 1);
        const int length = (int)start + end - (before ? (int)start + 31 - __clz(before) : last), bin = 31 - __clz(length);
        longest = max(longest, length);
        if (bin < SHORT_BINS) short_runs += 1ull << (8 * bin);
        else atomicAdd(&bins[bin], 1);
    }
#pragma unroll
    for (int bin = 0; bin < SHORT_BINS; ++bin) {
        const int found = warp_sum((int)(short_runs >> (8 * bin) & 0xff));
        if (lane == 0 && found) atomicAdd(&bins[bin], found);
    }
    const int64_t threads = (int64_t)gridDim.x * THREADS;
    int held = 0, pinned = 0;
    const auto count_page = [&](int64_t size, int page_used, int page_kept) {
        if (page_used + page_kept > 0) held += (int)size;
        if (page_used > 0) pinned += (int)size - page_used;
    };
    if (super_size <= 256) {
        for (int64_t from = word * super_size; from < num_blocks; from += threads * super_size) {
            const int64_t end = min(from + super_size, num_blocks);
            count_page(end - from, count_bits(bits.used, from, end, 0, 1), count_bits(bits.kept, from, end, 0, 1));
        }
    } else {
        for (int64_t from = word / WARP_SIZE * super_size; from < num_blocks; from += threads / WARP_SIZE * super_size) {
            const int64_t end = min(from + super_size, num_blocks);
            const int page_used = warp_sum(count_bits(bits.used, from, end, lane, WARP_SIZE));
            const int page_kept = warp_sum(count_bits(bits.kept, from, end, lane, WARP_SIZE));
            if (lane == 0) count_page(end - from, page_used, page_kept);
        }
    }
    const int own[] = {__popc(used), __popc(kept), __popc(free), live, tokens, 0, num_runs, 0, held, pinned};
#pragma unroll
    for (int metric = 0; metric <= SUPER_PINNED; ++metric) {
        if (metric == LONGEST_FREE_RUN || metric == MAX_LIVE_ID) continue;
        const int found = warp_sum(own[metric]);
        if (lane == 0 && found) atomicAdd(&sums[metric], found);
    }
    longest = warp_max(longest);
    const int top = warp_max(used ? (int)start + 31 - __clz(used) : -1);
    if (lane == 0) {
        atomicMax(&sums[LONGEST_FREE_RUN], longest);
        atomicMax(&sums[MAX_LIVE_ID], top);
    }
    __syncthreads();
    if (threadIdx.x < RUN_BINS) add(&run_histogram[threadIdx.x], bins[threadIdx.x]);
    if (threadIdx.x < NUM_METRICS) {
        const bool largest = threadIdx.x == LONGEST_FREE_RUN || threadIdx.x == MAX_LIVE_ID;
        if (largest) atomicMax(reinterpret_cast<long long*>(&metrics[threadIdx.x]), (long long)sums[threadIdx.x]);
        else add(&metrics[threadIdx.x], sums[threadIdx.x]);
    }
}
