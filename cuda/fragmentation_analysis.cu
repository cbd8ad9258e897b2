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

__device__ __forceinline__ void add(int64_t* total, int64_t value) {
    if (value) atomicAdd(reinterpret_cast<unsigned long long*>(total), (unsigned long long)value);
}

// What a warp looks at of the table: 128 entries of a row from `start` on, fetched before the length is known.
struct Stretch {
    static constexpr int STEPS = ENTRIES_PER_WARP / WARP_SIZE;
    int64_t seq, start;
    int given, entry[STEPS], before;  // the row's length; a lane's entries; what stands before the first

    __device__ __forceinline__ void fetch(int64_t row_of, int64_t first, const int* block_table, const int* seq_lens,
                                          int64_t max_blocks_per_seq) {
        seq = row_of, start = first, given = seq_lens[seq];
        const int* const row = block_table + seq * max_blocks_per_seq + start + threadIdx.x % WARP_SIZE;
        const int64_t left = max_blocks_per_seq - start - threadIdx.x % WARP_SIZE;
#pragma unroll
        for (int k = 0; k < STEPS; ++k) entry[k] = k * WARP_SIZE < left ? row[k * WARP_SIZE] : -1;
        before = threadIdx.x % WARP_SIZE == 0 && start > 0 ? row[-1] : -1;
    }

    // Calls take(block, tokens) for each entry in use that holds a block; returns status bits.
    template <typename Take>
    __device__ __forceinline__ int fill(int64_t num_blocks, int64_t max_blocks_per_seq, int block_size, Take&& take) const {
        const int64_t length = min((int64_t)max(given, 0), max_blocks_per_seq * block_size);
        int64_t left = length - (start + threadIdx.x % WARP_SIZE) * block_size;
        int flags = length != given ? STATUS_RANGE : 0;
#pragma unroll
        for (int k = 0; k < STEPS; ++k, left -= (int64_t)WARP_SIZE * block_size) {
            if (left <= 0) continue;
            if (entry[k] >= 0 && entry[k] < num_blocks) take(entry[k], (int)min(left, (int64_t)block_size));
            else flags |= entry[k] == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
        }
        return flags;
    }

    // Pairs of consecutive blocks in use, and those of them that do not lie side by side.
    __device__ __forceinline__ void scatter(int64_t num_blocks, int block_size, int* pairs, int* broken) const {
        int64_t left = given - (start + threadIdx.x % WARP_SIZE) * block_size;
        int last = before;
        *pairs = *broken = 0;
#pragma unroll
        for (int k = 0; k < STEPS; ++k, left -= (int64_t)WARP_SIZE * block_size) {
            const int shifted = __shfl_up_sync(FULL_WARP, entry[k], 1);
            const int earlier = threadIdx.x % WARP_SIZE == 0 ? last : shifted;
            last = __shfl_sync(FULL_WARP, entry[k], WARP_SIZE - 1);
            const bool pair = left > 0 && min(entry[k], earlier) >= 0 && max(entry[k], earlier) < num_blocks;
            *pairs += __popc(__ballot_sync(FULL_WARP, pair));
            *broken += __popc(__ballot_sync(FULL_WARP, pair && entry[k] - earlier != 1));
        }
    }
};

__device__ __forceinline__ int64_t parts_of_row(int64_t max_blocks_per_seq) {
    return max((max_blocks_per_seq + ENTRIES_PER_WARP - 1) / ENTRIES_PER_WARP, (int64_t)1);
}

// The runs that end in 32 blocks from `start` on, of which `free` are free; `last`: the last block before that is not.
struct Runs {
    static constexpr int SHORT_BINS = 8;
    int number, longest;
    unsigned long long short_ones;  // by bin, 8 bits each: a word has 16 runs at most

    // Longer ones go to `bins`.
    __device__ __forceinline__ Runs(unsigned free, bool free_behind, int start, int last, int* bins) : longest(0), short_ones(0) {
        unsigned ends = free & ~(free >> 1 | (unsigned)free_behind << 31);
        number = __popc(ends);
        while (ends) {
            const int end = __ffs((int)ends) - 1;
            ends &= ends - 1;
            const unsigned before = ~free & ((1u << end) - 1);
            const int length = before ? end - 31 + __clz(before) : start + end - last, bin = 31 - __clz(length);
            longest = max(longest, length);
            if (bin < SHORT_BINS) short_ones += 1ull << (8 * bin);
            else atomicAdd(&bins[bin], 1);
        }
    }
    __device__ __forceinline__ void add_short_ones(int* bins) const {
#pragma unroll
        for (int bin = 0; bin < SHORT_BINS; ++bin) {
            const int found = warp_total((int)(short_ones >> (8 * bin) & 0xff));
            if (threadIdx.x % WARP_SIZE == 0 && found) atomicAdd(&bins[bin], found);
        }
    }
};

// The last block that is not free before each lane's word, of a warp's words in turn; -1: none of these.
__device__ __forceinline__ int last_before_word(unsigned taken, int start, int* last_of_all) {
    const int lane = threadIdx.x % WARP_SIZE;
    int last = taken ? start + 31 - __clz(taken) : -1;
    for (int width = 1; width < WARP_SIZE; width *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, last, width);
        if (lane >= width) last = max(last, before);
    }
    *last_of_all = __shfl_sync(FULL_WARP, last, WARP_SIZE - 1);
    last = __shfl_up_sync(FULL_WARP, last, 1);
    return lane == 0 ? -1 : last;
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

// What super-pages come to.
struct Pages {
    int held = 0, pinned = 0;

    __device__ __forceinline__ void count(int64_t size, int used, int kept) {
        if (used + kept > 0) held += (int)size;
        if (used > 0) pinned += (int)size - used;
    }
};

// Up to 8192 blocks by a cluster. Three warps of a thread block count runs, states and super-pages in words of bits while
// the others read the table.
extern "C" __global__ void CLUSTER __launch_bounds__(1024, 1) fragmentation_analysis_few(FRAGMENTATION_PARAMETERS) {
    constexpr int THREADS = 1024, WARPS = THREADS / WARP_SIZE, OWN = STRETCH / CLUSTER_BLOCKS, PER_THREAD = OWN / THREADS;
    constexpr int ALL_SUMS = NUM_METRICS + RUN_BINS, MOST_SEQS = 1024, OWN_SEQS = MOST_SEQS / CLUSTER_BLOCKS;
    constexpr int WORDS = OWN / 32, READERS = WARPS - 3, AHEAD = 3;
    __shared__ int fill_of[OWN], scatter_of[2 * OWN_SEQS], sums[ALL_SUMS], sums_in[CLUSTER_BLOCKS][ALL_SUMS];
    __shared__ unsigned used_words[WORDS], kept_words[WORDS], before_words[WARPS];
    if (blockIdx.x >= CLUSTER_BLOCKS) return;
    say_started();
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, rank = cluster_rank(), first = rank * OWN;
    const int blocks = (int)num_blocks;
    const bool own_pages = super_size % 32 == 0 && OWN % super_size == 0;  // no super-page has blocks elsewhere too
    bool used[PER_THREAD], kept[PER_THREAD];
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int block = first + k * THREADS + threadIdx.x;
        used[k] = block < blocks && ref[block] > 0;
        kept[k] = block < blocks && cached[block] != 0;
    }
    const int earlier = first - THREADS + (int)threadIdx.x, behind = first + OWN;
    const bool taken_before = earlier >= 0 && earlier < blocks && (ref[earlier] > 0 || cached[earlier] != 0);
    const bool free_behind = behind < blocks && ref[behind] <= 0 && cached[behind] == 0;
    const int parts = (int)parts_of_row(max_blocks_per_seq), items = (int)num_seqs * parts;
    Stretch stretch[AHEAD];
    const auto fetch = [&](Stretch& next, int item) {
        if (item >= items) return;
        const int seq = item / parts;
        next.fetch(seq, (int64_t)(item - seq * parts) * ENTRIES_PER_WARP, block_table, seq_lens, max_blocks_per_seq);
    };
#pragma unroll
    for (int k = 0; warp < READERS && k < AHEAD; ++k) fetch(stretch[k], warp + k * READERS);
    for (int i = threadIdx.x; i < OWN; i += THREADS) fill_of[i] = 0;
    for (int i = threadIdx.x; i < 2 * OWN_SEQS; i += THREADS) scatter_of[i] = 0;
    if (threadIdx.x < ALL_SUMS) sums[threadIdx.x] = threadIdx.x == MAX_LIVE_ID ? -1 : 0;
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const unsigned in_use = __ballot_sync(FULL_WARP, used[k]), keeps = __ballot_sync(FULL_WARP, kept[k]);
        if (lane != 0) continue;
        used_words[k * WARPS + warp] = in_use;
        kept_words[k * WARPS + warp] = keeps & ~in_use;
    }
    const unsigned bits_before = __ballot_sync(FULL_WARP, taken_before);
    if (lane == 0) before_words[warp] = bits_before;
    __syncthreads();

    if (warp < READERS) {
        int pairs = 0, adjacent = 0, flags = 0;
        for (int item = warp; item < items; item += AHEAD * READERS) {
#pragma unroll
            for (int k = 0; item != warp && k < AHEAD; ++k) fetch(stretch[k], item + k * READERS);
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                if (item + k * READERS >= items) break;
                const int seq = (int)stretch[k].seq;
                flags |= stretch[k].fill(num_blocks, max_blocks_per_seq, block_size, [&](int block, int tokens) {
                    if (block / OWN == rank) atomicMax(&fill_of[block % OWN], tokens);
                });
                if (seq % CLUSTER_BLOCKS != rank) continue;
                int found, broken;
                stretch[k].scatter(num_blocks, block_size, &found, &broken);
                pairs += found;
                adjacent += found - broken;
                if (lane < 2 && found) atomicAdd(&scatter_of[2 * (seq / CLUSTER_BLOCKS) + lane], lane == 0 ? broken : found);
            }
        }
        if (flags) atomicOr(status, flags);
        if (lane == 0 && pairs) atomicAdd(&sums[PAIRS], pairs);
        if (lane == 0 && adjacent) atomicAdd(&sums[ADJACENT], adjacent);
    } else if (warp == READERS) {
        // The last block before that is not free: in the thread block before, or further back.
        int last = before_words[lane] ? first - THREADS + 32 * lane + 31 - __clz(before_words[lane]) : -1;
        last = warp_largest(last);
        constexpr int AT_ONCE = 16;
        for (int back = min(first - THREADS, blocks) - 1; last < 0 && back >= 0; back -= AT_ONCE * WARP_SIZE) {
#pragma unroll
            for (int k = 0; k < AT_ONCE; ++k) {
                const int block = back - k * WARP_SIZE - lane;
                if (block >= 0 && (ref[block] > 0 || cached[block] != 0)) last = max(last, block);
            }
            last = warp_largest(last);
        }
#pragma unroll 1
        for (int k = 0; k < WORDS; k += WARP_SIZE) {
            const int word = k + lane, start = first + 32 * word;
            const unsigned in_use = used_words[word], keeps = kept_words[word], taken = in_use | keeps;
            const unsigned inside = start + 32 <= blocks ? ~0u : start < blocks ? (1u << (blocks - start)) - 1 : 0;
            const unsigned free = inside & ~taken;
            int last_here;
            const int before = max(last_before_word(taken, start, &last_here), last);
            const bool next = word + 1 < WORDS ? start + 32 < blocks && ((used_words[word + 1] | kept_words[word + 1]) & 1) == 0
                                               : free_behind;
            const Runs runs(free, next, start, before, sums + NUM_METRICS);
            runs.add_short_ones(sums + NUM_METRICS);
            last = max(last, last_here);
            const int longest = warp_largest(runs.longest), num_runs = warp_total(runs.number);
            if (lane == 0) sums[NUM_RUNS] += num_runs, sums[LONGEST_FREE_RUN] = max(sums[LONGEST_FREE_RUN], longest);
        }
    } else if (warp == READERS + 1) {
        int num_used = 0, num_kept = 0, top = -1;
        for (int word = lane; word < WORDS; word += WARP_SIZE) {
            const unsigned in_use = used_words[word];
            num_used += __popc(in_use), num_kept += __popc(kept_words[word]);
            if (in_use) top = first + 32 * word + 31 - __clz(in_use);
        }
        num_used = warp_total(num_used), num_kept = warp_total(num_kept), top = warp_largest(top);
        if (lane == 0) {
            sums[USED] = num_used, sums[CACHED_FREE] = num_kept, sums[MAX_LIVE_ID] = top;
            sums[FREE] = min(max(blocks - first, 0), OWN) - num_used - num_kept;
        }
    } else {
        Pages pages;
        for (int from = lane * super_size; own_pages && from < OWN && first + from < blocks; from += WARP_SIZE * super_size) {
            pages.count(min(super_size, blocks - first - from), count_bits(used_words, from, from + super_size, 0, 1),
                        count_bits(kept_words, from, from + super_size, 0, 1));
        }
        const int held = warp_total(pages.held), pinned = warp_total(pages.pinned);
        if (lane == 0) sums[SUPER_HELD] = held, sums[SUPER_PINNED] = pinned;
    }
    __syncthreads();

#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int at = k * THREADS + threadIdx.x, tokens = fill_of[at];
        if (first + at < blocks) fill[first + at] = tokens;
        const int lives = __popc(__ballot_sync(FULL_WARP, tokens != 0)), stored = warp_total(tokens);
        if (lane != 0 || lives == 0) continue;
        atomicAdd(&sums[LIVE], lives);
        atomicAdd(&sums[TOKENS], stored);
    }
    if (!own_pages) {
        Pages pages;
        for (int64_t page = rank * WARPS + warp; page * super_size < num_blocks; page += CLUSTER_BLOCKS * WARPS) {
            const int64_t start = page * super_size, end = min(start + super_size, num_blocks);
            int page_used = 0, page_kept = 0;
            for (int64_t id = start + lane; id < end; id += WARP_SIZE) {
                const bool in_use = ref[id] > 0;
                page_used += in_use;
                page_kept += !in_use && cached[id] != 0;
            }
            page_used = warp_total(page_used);
            page_kept = warp_total(page_kept);
            if (lane == 0) pages.count(end - start, page_used, page_kept);
        }
        if (pages.held) atomicAdd(&sums[SUPER_HELD], pages.held);
        if (pages.pinned) atomicAdd(&sums[SUPER_PINNED], pages.pinned);
    }
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
    follow_launch();
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
    last = warp_largest(last_of_warp[lane]);
    if (lane == 0) bits.last[blockIdx.x] = last;
}

extern "C" __global__ void fragmentation_analysis_walk(FRAGMENTATION_PARAMETERS) {
    __shared__ int pairs_here[2];  // adjacent, all
    const int64_t parts = parts_of_row(max_blocks_per_seq), step = (int64_t)gridDim.x * blockDim.x / WARP_SIZE;
    int flags = 0;
    if (threadIdx.x < 2) pairs_here[threadIdx.x] = 0;
    __syncthreads();
    Stretch stretch;
    const int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP_SIZE;
    const auto fetch = [&](int64_t item) {
        const int64_t seq = item / parts;
        stretch.fetch(seq, (item - seq * parts) * ENTRIES_PER_WARP, block_table, seq_lens, max_blocks_per_seq);
    };
    if (first < num_seqs * parts) fetch(first);
    follow_launch();  // everything is zero
    for (int64_t item = first; item < num_seqs * parts; item += step) {
        if (item != first) fetch(item);
        const int64_t seq = stretch.seq;
        flags |= stretch.fill(num_blocks, max_blocks_per_seq, block_size,
                              [&](int block, int tokens) { atomicMax(&fill[block], tokens); });
        int found, broken;
        stretch.scatter(num_blocks, block_size, &found, &broken);
        if (threadIdx.x % WARP_SIZE != 0 || found == 0) continue;
        atomicAdd(&scatter[2 * seq], broken);
        atomicAdd(&scatter[2 * seq + 1], found);
        atomicAdd(&pairs_here[0], found - broken);
        atomicAdd(&pairs_here[1], found);
    }
    if (flags) atomicOr(status, flags);
    __syncthreads();
    if (threadIdx.x < 2) add(&metrics[threadIdx.x == 0 ? ADJACENT : PAIRS], pairs_here[threadIdx.x]);
}

extern "C" __global__ void __launch_bounds__(256, 1) fragmentation_analysis(
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
    follow_launch();
    constexpr int THREADS = 256, WARPS = THREADS / WARP_SIZE, PER_THREAD = STRETCH / THREADS;
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
    int last_here, last = last_before_word(taken, (int)start, &last_here);
    if (lane == 0) last_of_warp[warp] = last_here;
    __syncthreads();
    if (earlier_last >= 0) atomicMax(&last_before, earlier_last);
    for (int i = 0; i < warp; ++i) last = max(last, last_of_warp[i]);
    __syncthreads();
    last = max(last, last_before);
    const Runs runs(free, (~behind & 1) != 0, (int)start, last, bins);
    runs.add_short_ones(bins);
    const int64_t threads = (int64_t)gridDim.x * THREADS;
    Pages pages;
    if (super_size <= 256) {
        for (int64_t from = word * super_size; from < num_blocks; from += threads * super_size) {
            const int64_t end = min(from + super_size, num_blocks);
            pages.count(end - from, count_bits(bits.used, from, end, 0, 1), count_bits(bits.kept, from, end, 0, 1));
        }
    } else {
        for (int64_t from = word / WARP_SIZE * super_size; from < num_blocks; from += threads / WARP_SIZE * super_size) {
            const int64_t end = min(from + super_size, num_blocks);
            const int page_used = warp_total(count_bits(bits.used, from, end, lane, WARP_SIZE));
            const int page_kept = warp_total(count_bits(bits.kept, from, end, lane, WARP_SIZE));
            if (lane == 0) pages.count(end - from, page_used, page_kept);
        }
    }
    const int own[] = {__popc(used), __popc(kept), __popc(free), live, tokens, 0, runs.number, 0, pages.held, pages.pinned};
#pragma unroll
    for (int metric = 0; metric <= SUPER_PINNED; ++metric) {
        if (metric == LONGEST_FREE_RUN || metric == MAX_LIVE_ID) continue;
        const int found = warp_total(own[metric]);
        if (lane == 0 && found) atomicAdd(&sums[metric], found);
    }
    const int longest = warp_largest(runs.longest);
    const int top = warp_largest(used ? (int)start + 31 - __clz(used) : -1);
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
