// What is wasted inside blocks, between them, and by where they lie, as whole numbers.
// Up to 8192 blocks: one cluster; a thread per table entry and per block, fill kept in shared memory by the thread block
// that has the block. More: three launches. Clear; a warp per 128 table entries of a row for fill and scatter, and the last
// block that is not free of every 1024; a thread per block for states and runs, a warp per super-page. A run ends at a free
// block with none behind it and begins behind the last that is not free, found by looking back. All sums are of integers:
// order is no matter.
// Ours: the published formula is utilisation; super-pages: kvcached.
#include "cluster.cuh"

constexpr int RUN_BINS = 32, ENTRIES_PER_WARP = 128;
enum Metric {
    USED, CACHED_FREE, FREE, LIVE, TOKENS, LONGEST_FREE_RUN, NUM_RUNS, MAX_LIVE_ID, SUPER_HELD, SUPER_PINNED, ADJACENT,
    PAIRS, NUM_METRICS
};

#define FRAGMENTATION_PARAMETERS                                                                                      \
    const int *ref, const uint8_t *cached, const int *block_table, const int *seq_lens, int *fill, int *scatter,      \
        int64_t *run_histogram, int64_t *metrics, int *workspace, int64_t num_blocks, int64_t num_seqs,               \
        int64_t max_blocks_per_seq, int64_t workspace_words, int block_size, int super_size, int *status

__device__ __forceinline__ int warp_sum(int value) {
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) value += __shfl_xor_sync(FULL_WARP, value, width);
    return value;
}

__device__ __forceinline__ void add(int64_t* total, int64_t value) {
    if (value) atomicAdd(reinterpret_cast<unsigned long long*>(total), (unsigned long long)value);
}

extern "C" __global__ void fragmentation_analysis_clear(FRAGMENTATION_PARAMETERS) {
    start_next_launch();
    const int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first; i < num_blocks; i += step) fill[i] = 0;
    for (int64_t i = first; i < 2 * num_seqs; i += step) scatter[i] = 0;
    if (first < RUN_BINS) run_histogram[first] = 0;
    if (first < NUM_METRICS) metrics[first] = first == MAX_LIVE_ID ? -1 : 0;
}

extern "C" __global__ void fragmentation_analysis_walk(FRAGMENTATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    __shared__ int last_taken, pairs_here[2];  // adjacent, all
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    const int64_t parts = max((max_blocks_per_seq + ENTRIES_PER_WARP - 1) / ENTRIES_PER_WARP, (int64_t)1);
    const auto is_block = [&](int id) { return id >= 0 && id < num_blocks; };
    int flags = 0;
    if (threadIdx.x < 2) pairs_here[threadIdx.x] = 0;
    if (threadIdx.x == 0) last_taken = -1;
    __syncthreads();
    for (int64_t item = first / WARP_SIZE; item < num_seqs * parts; item += step / WARP_SIZE) {
        const int64_t seq = item / parts, start = item % parts * ENTRIES_PER_WARP, given = seq_lens[seq];
        const int64_t length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
        const int* const row = block_table + seq * max_blocks_per_seq;
        if (length != given) flags |= STATUS_RANGE;
        int pairs = 0, broken = 0;
        for (int64_t logical = start + lane; logical < start + ENTRIES_PER_WARP; logical += WARP_SIZE) {
            if (logical * block_size >= length) break;
            const int block = row[logical];
            if (!is_block(block)) {
                flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
                continue;
            }
            atomicMax(&fill[block], (int)min(length - logical * block_size, (int64_t)block_size));
            if (logical == 0 || !is_block(row[logical - 1])) continue;
            ++pairs;
            broken += block - (int64_t)row[logical - 1] != 1;
        }
        pairs = warp_sum(pairs);
        broken = warp_sum(broken);
        if (lane != 0 || pairs == 0) continue;
        atomicAdd(&scatter[2 * seq], broken);
        atomicAdd(&scatter[2 * seq + 1], pairs);
        atomicAdd(&pairs_here[0], pairs - broken);
        atomicAdd(&pairs_here[1], pairs);
    }
    if (flags) atomicOr(status, flags);
    const bool taken = first < num_blocks && (ref[first] > 0 || cached[first] != 0);
    const unsigned set = __ballot_sync(FULL_WARP, taken);
    if (lane == 0 && set) atomicMax(&last_taken, (int)(first + 31 - __clz(set)));
    __syncthreads();
    if (threadIdx.x == 0 && (int64_t)blockIdx.x * blockDim.x < num_blocks) workspace[blockIdx.x] = last_taken;
    if (threadIdx.x < 2) add(&metrics[threadIdx.x == 0 ? ADJACENT : PAIRS], pairs_here[threadIdx.x]);
}

// Up to 8192 blocks by a cluster: thread block `rank` has an eighth of the pool.
__device__ __forceinline__ void analyse_at_once(FRAGMENTATION_PARAMETERS) {
    constexpr int STRETCH = 1024, OWN = 8 * STRETCH / CLUSTER_BLOCKS, PER_THREAD = OWN / STRETCH, ALL_SUMS = NUM_METRICS + RUN_BINS;
    __shared__ int fill_of[OWN], sums_in[CLUSTER_BLOCKS][ALL_SUMS], sums[ALL_SUMS];
    __shared__ int last_of_warp[OWN / WARP_SIZE], last_in[CLUSTER_BLOCKS];
    __shared__ unsigned free_of_warp[OWN / WARP_SIZE + 1];  // bits: free blocks
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = STRETCH / WARP_SIZE;
    const int first = cluster_rank() * OWN, thread = cluster_rank() * STRETCH + threadIdx.x, all_warps = CLUSTER_BLOCKS * warps;
    const auto is_block = [&](int id) { return id >= 0 && id < num_blocks; };
    int flags = 0;
    for (int64_t i = thread; i < 2 * num_seqs; i += CLUSTER_BLOCKS * STRETCH) scatter[i] = 0;
    for (int i = threadIdx.x; i < ALL_SUMS; i += STRETCH) sums[i] = i == MAX_LIVE_ID ? -1 : 0;

    // States and runs' borders, which need nothing of the tables.
    bool used[PER_THREAD], kept[PER_THREAD], free[PER_THREAD];
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int block = first + k * STRETCH + threadIdx.x;
        const bool inside = block < num_blocks;
        fill_of[k * STRETCH + threadIdx.x] = 0;
        used[k] = inside && ref[block] > 0;
        kept[k] = inside && !used[k] && cached[block] != 0;
        free[k] = inside && !used[k] && !kept[k];
    }
    if (threadIdx.x == 0) {
        const int behind = first + OWN;
        free_of_warp[OWN / WARP_SIZE] = behind < num_blocks && ref[behind] <= 0 && cached[behind] == 0;
    }
    int held = 0, pinned = 0;
    for (int64_t page = thread / WARP_SIZE; page * super_size < num_blocks; page += all_warps) {
        const int64_t start = page * super_size, end = min(start + super_size, num_blocks);
        int page_used = 0, page_cached = 0;
        for (int64_t id = start + lane; id < end; id += WARP_SIZE) {
            const bool in_use = ref[id] > 0;
            page_used += in_use;
            page_cached += !in_use && cached[id] != 0;
        }
        page_used = warp_sum(page_used);
        page_cached = warp_sum(page_cached);
        if (page_used + page_cached > 0) held += (int)(end - start);
        if (page_used > 0) pinned += (int)(end - start) - page_used;
    }
    cluster_barrier();  // everybody's fill and scatter are zero

    const int64_t parts = max((max_blocks_per_seq + WARP_SIZE - 1) / WARP_SIZE, (int64_t)1);
    int pairs_here = 0, broken_here = 0;
    for (int64_t item = thread / WARP_SIZE; item < num_seqs * parts; item += all_warps) {
        const int64_t seq = item / parts, logical = item % parts * WARP_SIZE + lane, given = seq_lens[seq];
        const int64_t length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
        const bool entry = logical < max_blocks_per_seq;
        const int block = entry ? block_table[seq * max_blocks_per_seq + logical] : -1;
        int before = __shfl_up_sync(FULL_WARP, block, 1);
        if (lane == 0) before = entry && logical > 0 ? block_table[seq * max_blocks_per_seq + logical - 1] : -1;
        if (length != given) flags |= STATUS_RANGE;
        const bool asked = logical * block_size < length, resident = asked && is_block(block);
        if (asked && !resident) flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
        if (resident) {
            atomicMax(shared_of(&fill_of[block % OWN], block / OWN), (int)min(length - logical * block_size, (int64_t)block_size));
        }
        const bool pair = resident && is_block(before);
        const int pairs = __popc(__ballot_sync(FULL_WARP, pair));
        const int broken = __popc(__ballot_sync(FULL_WARP, pair && block - (int64_t)before != 1));
        if (lane != 0 || pairs == 0) continue;
        if (broken) atomicAdd(&scatter[2 * seq], broken);
        atomicAdd(&scatter[2 * seq + 1], pairs);
        pairs_here += pairs;
        broken_here += broken;
    }
    if (flags) atomicOr(status, flags);
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int start = first + k * STRETCH + warp * WARP_SIZE;
        const unsigned taken = __ballot_sync(FULL_WARP, used[k] || kept[k]), frees = __ballot_sync(FULL_WARP, free[k]);
        if (lane != 0) continue;
        last_of_warp[k * warps + warp] = taken ? start + 31 - __clz(taken) : -1;
        free_of_warp[k * warps + warp] = frees;
    }
    __syncthreads();
    if (threadIdx.x < WARP_SIZE) {
        int last = -1;
        for (int i = lane; i < OWN / WARP_SIZE; i += WARP_SIZE) last = max(last, last_of_warp[i]);
        for (int width = WARP_SIZE / 2; width > 0; width /= 2) last = max(last, __shfl_xor_sync(FULL_WARP, last, width));
        tell_cluster(last_in, last);
    }
    cluster_barrier();  // fill is complete, and who is taken last is known

    int last_before = -1;
    for (int i = 0; i < cluster_rank(); ++i) last_before = max(last_before, last_in[i]);
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int at = k * STRETCH + threadIdx.x, block = first + at, slot = k * warps + warp;
        const int tokens = fill_of[at];
        if (block < num_blocks) fill[block] = tokens;
        const unsigned frees = free_of_warp[slot], next = lane < WARP_SIZE - 1 ? frees >> (lane + 1) & 1 : free_of_warp[slot + 1] & 1;
        int longest = 0;
        if (free[k] && !next) {
            const unsigned before = ~frees & ((1u << lane) - 1);  // in a warp with a free block, all before it are blocks
            int begin = before ? block - lane + 31 - __clz(before) : -1;
            for (int earlier = slot - 1; begin < 0 && earlier >= 0; --earlier) begin = last_of_warp[earlier];
            if (begin < 0) begin = last_before;
            longest = block - begin;
            atomicAdd(&sums[NUM_METRICS + 31 - __clz(longest)], 1);
            atomicMax(&sums[LONGEST_FREE_RUN], longest);
        }
        const unsigned ends = __ballot_sync(FULL_WARP, longest > 0), in_use = __ballot_sync(FULL_WARP, used[k]);
        const unsigned keeps = __ballot_sync(FULL_WARP, kept[k]), lives = __ballot_sync(FULL_WARP, tokens != 0);
        const int stored = warp_sum(tokens);
        if (lane != 0) continue;
        if (in_use) {
            atomicAdd(&sums[USED], __popc(in_use));
            atomicMax(&sums[MAX_LIVE_ID], block + 31 - __clz(in_use));
        }
        if (keeps) atomicAdd(&sums[CACHED_FREE], __popc(keeps));
        if (frees) atomicAdd(&sums[FREE], __popc(frees));
        if (lives) atomicAdd(&sums[LIVE], __popc(lives));
        if (ends) atomicAdd(&sums[NUM_RUNS], __popc(ends));
        if (stored) atomicAdd(&sums[TOKENS], stored);
    }
    if (lane == 0) {
        if (held) atomicAdd(&sums[SUPER_HELD], held);
        if (pinned) atomicAdd(&sums[SUPER_PINNED], pinned);
        if (pairs_here) atomicAdd(&sums[PAIRS], pairs_here);
        if (pairs_here - broken_here) atomicAdd(&sums[ADJACENT], pairs_here - broken_here);
    }
    __syncthreads();
    if (threadIdx.x < ALL_SUMS) *shared_of(&sums_in[cluster_rank()][threadIdx.x], 0) = sums[threadIdx.x];
    cluster_barrier();
    if (cluster_rank() > 0 || threadIdx.x >= ALL_SUMS) return;
    const bool largest = threadIdx.x == LONGEST_FREE_RUN || threadIdx.x == MAX_LIVE_ID;
    int64_t total = sums_in[0][threadIdx.x];
    for (int i = 1; i < CLUSTER_BLOCKS; ++i) {
        total = largest ? max(total, (int64_t)sums_in[i][threadIdx.x]) : total + sums_in[i][threadIdx.x];
    }
    if (threadIdx.x < NUM_METRICS) metrics[threadIdx.x] = total;
    else run_histogram[threadIdx.x - NUM_METRICS] = total;
}

// One thread block of an older multiprocessor does what a cluster does: on sm_80 the compiler would spill to fit in two.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr int LEAST_BLOCKS = 0;
#else
constexpr int LEAST_BLOCKS = 1;
#endif

extern "C" __global__ void CLUSTER __launch_bounds__(1024, LEAST_BLOCKS) fragmentation_analysis(
    const int* ref,          // [num_blocks]
    const uint8_t* cached,   // [num_blocks] 1: free but still in the prefix index
    const int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,     // [num_seqs]
    int* fill,               // [num_blocks] valid tokens
    int* scatter,            // [num_seqs][2] consecutive blocks not side by side, such pairs
    int64_t* run_histogram,  // [32] free runs by the power of two of their length
    int64_t* metrics,        // [12] see Metric
    int* workspace,          // [workspace_words] last block that is not free in each 1024, or null up to 8192
    int64_t num_blocks,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t workspace_words,
    int block_size,
    int super_size,
    int* status) {
    follow_launch();
    __shared__ int bins[RUN_BINS], warp_last[WARP_SIZE], sums[NUM_METRICS], last_before;
    if (workspace_words == 0) {
        if (blockIdx.x < CLUSTER_BLOCKS) {
            analyse_at_once(ref, cached, block_table, seq_lens, fill, scatter, run_histogram, metrics, workspace, num_blocks,
                            num_seqs, max_blocks_per_seq, workspace_words, block_size, super_size, status);
        }
        return;
    }
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const auto is_free = [&](int64_t id) { return ref[id] <= 0 && cached[id] == 0; };
    const bool inside = block < num_blocks, used = inside && ref[block] > 0, free = inside && is_free(block);
    const int tokens = inside ? fill[block] : 0;
    if (threadIdx.x < RUN_BINS) bins[threadIdx.x] = 0;
    if (threadIdx.x < NUM_METRICS) sums[threadIdx.x] = threadIdx.x == MAX_LIVE_ID ? -1 : 0;
    const unsigned taken = __ballot_sync(FULL_WARP, inside && !free), in_use = __ballot_sync(FULL_WARP, used);
    if (lane == 0) warp_last[warp] = taken ? (int)(block + 31 - __clz(taken)) : -1;
    if (threadIdx.x == 0) last_before = -1;
    __syncthreads();
    int earlier_last = -1;  // ids grow from stretch to stretch, so the largest is the last
    for (int64_t i = threadIdx.x; i < min((int64_t)blockIdx.x, workspace_words); i += blockDim.x) earlier_last = max(earlier_last, workspace[i]);
    if (earlier_last >= 0) atomicMax(&last_before, earlier_last);
    __syncthreads();
    int longest = 0;
    if (free && (block + 1 == num_blocks || !is_free(block + 1))) {
        const unsigned before = taken & ((1u << lane) - 1);
        int64_t begin = before ? block - lane + 31 - __clz(before) : -1;
        for (int earlier = warp - 1; begin < 0 && earlier >= 0; --earlier) begin = warp_last[earlier];
        if (begin < 0) begin = last_before;
        longest = (int)(block - begin);
        atomicAdd(&bins[31 - __clz(longest)], 1);
        atomicMax(&sums[LONGEST_FREE_RUN], longest);
    }
    const unsigned ends = __ballot_sync(FULL_WARP, longest > 0), frees = __ballot_sync(FULL_WARP, free);
    const unsigned lives = __ballot_sync(FULL_WARP, tokens != 0);
    const int stored = warp_sum(tokens);
    if (lane == 0) {
        atomicAdd(&sums[USED], __popc(in_use));
        atomicAdd(&sums[CACHED_FREE], __popc(taken) - __popc(in_use));
        atomicAdd(&sums[FREE], __popc(frees));
        atomicAdd(&sums[LIVE], __popc(lives));
        atomicAdd(&sums[NUM_RUNS], __popc(ends));
        atomicAdd(&sums[TOKENS], stored);
        if (in_use) atomicMax(&sums[MAX_LIVE_ID], (int)(block + 31 - __clz(in_use)));
    }
    const int64_t warps = (int64_t)gridDim.x * (blockDim.x / WARP_SIZE);
    int held = 0, pinned = 0;
    for (int64_t page = block / WARP_SIZE; page * super_size < num_blocks; page += warps) {
        const int64_t start = page * super_size, end = min(start + super_size, num_blocks);
        int page_used = 0, page_cached = 0;
        for (int64_t id = start + lane; id < end; id += WARP_SIZE) {
            page_used += ref[id] > 0;
            page_cached += ref[id] <= 0 && cached[id] != 0;
        }
        page_used = warp_sum(page_used);
        page_cached = warp_sum(page_cached);
        if (page_used + page_cached > 0) held += (int)(end - start);
        if (page_used > 0) pinned += (int)(end - start) - page_used;
    }
    if (lane == 0) {
        atomicAdd(&sums[SUPER_HELD], held);
        atomicAdd(&sums[SUPER_PINNED], pinned);
    }
    __syncthreads();
    if (threadIdx.x < RUN_BINS) add(&run_histogram[threadIdx.x], bins[threadIdx.x]);
    if (threadIdx.x < NUM_METRICS) {
        const bool largest = threadIdx.x == LONGEST_FREE_RUN || threadIdx.x == MAX_LIVE_ID;
        if (largest) atomicMax(reinterpret_cast<long long*>(&metrics[threadIdx.x]), (long long)sums[threadIdx.x]);
        else add(&metrics[threadIdx.x], sums[threadIdx.x]);
    }
}
