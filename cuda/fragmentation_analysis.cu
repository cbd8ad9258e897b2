// What is wasted inside blocks, between them, and by where they lie, as whole numbers.
// One thread block of 1024 threads: threads over table entries for fill and scatter, over blocks for states and runs
// (the last block that is not free, by a running maximum, ends where a run begins), a warp per super-page.
// Ours: the published formula is utilisation; super-pages: kvcached.
#include "common.cuh"

constexpr int RUN_BINS = 32;

extern "C" __global__ void fragmentation_analysis(
    const int* ref,          // [num_blocks]
    const uint8_t* cached,   // [num_blocks] 1: free but still in the prefix index
    const int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,     // [num_seqs]
    int* fill,               // [num_blocks] valid tokens
    int* scatter,            // [num_seqs][2] consecutive blocks not side by side, such pairs
    int64_t* run_histogram,  // [32] free runs by the power of two of their length
    int64_t* metrics,        // [12] used, cached_free, free, live, tokens, longest_free_run, num_runs, max_live_id,
                             //      super_held, super_pinned, adjacent, pairs
    int* workspace,          // not used
    int64_t num_blocks,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t workspace_words,
    int block_size,
    int super_size,
    int* status) {
    __shared__ unsigned long long bins[RUN_BINS];
    __shared__ int64_t warp_last[WARP_SIZE];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    int flags = 0;
    for (int64_t i = threadIdx.x; i < num_blocks; i += blockDim.x) fill[i] = 0;
    for (int64_t i = threadIdx.x; i < 2 * num_seqs; i += blockDim.x) scatter[i] = 0;
    if (threadIdx.x < RUN_BINS) bins[threadIdx.x] = 0;
    __syncthreads();

    const auto is_block = [&](int64_t id) { return id >= 0 && id < num_blocks; };
    int64_t pairs = 0, broken = 0;
    for (int64_t i = threadIdx.x; i < num_seqs * max_blocks_per_seq; i += blockDim.x) {
        const int64_t seq = i / max_blocks_per_seq, logical = i % max_blocks_per_seq;
        const int64_t given = seq_lens[seq];
        const int64_t length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
        if (logical * block_size >= length) continue;
        const int block = block_table[i];
        if (!is_block(block)) {
            flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
            continue;
        }
        atomicMax(&fill[block], (int)min(length - logical * block_size, (int64_t)block_size));
        if (logical == 0 || !is_block(block_table[i - 1])) continue;
        const bool apart = block - (int64_t)block_table[i - 1] != 1;
        ++pairs;
        broken += apart;
        if (apart) atomicAdd(&scatter[2 * seq], 1);
        atomicAdd(&scatter[2 * seq + 1], 1);
    }
    for (int64_t seq = threadIdx.x; seq < num_seqs; seq += blockDim.x) {
        const int64_t length = seq_lens[seq];
        if (length < 0 || length > max_blocks_per_seq * block_size) flags |= STATUS_RANGE;
    }
    __syncthreads();

    const auto is_free = [&](int64_t block) { return ref[block] <= 0 && cached[block] == 0; };
    int64_t used = 0, kept = 0, live = 0, tokens = 0, top = -1, longest = 0, runs = 0;
    int64_t last_taken = -1;  // of all tiles before
    for (int64_t start = 0; start < num_blocks; start += blockDim.x) {
        const int64_t block = start + threadIdx.x;
        const bool inside = block < num_blocks, free = inside && is_free(block);
        // Running maximum of the blocks that are not free, up to this thread.
        int64_t taken = inside && !free ? block : -1;
        for (int width = 1; width < WARP_SIZE; width *= 2) {
            const int64_t before = __shfl_up_sync(FULL_WARP, taken, width);
            if (lane >= width) taken = max(taken, before);
        }
        __syncthreads();
        if (lane == WARP_SIZE - 1) warp_last[warp] = taken;
        __syncthreads();
        taken = max(taken, last_taken);
        for (int i = 0; i < warps; ++i) {
            if (i < warp) taken = max(taken, warp_last[i]);
            last_taken = max(last_taken, warp_last[i]);
        }
        if (!inside) continue;
        if (free && (block + 1 == num_blocks || !is_free(block + 1))) {
            const int64_t length = block - taken;
            longest = max(longest, length);
            ++runs;
            atomicAdd(&bins[63 - __clzll(length)], 1ull);
        }
        used += ref[block] > 0;
        kept += ref[block] <= 0 && cached[block] != 0;
        if (ref[block] > 0) top = block;
        live += fill[block] != 0;
        tokens += fill[block];
    }
    int64_t held = 0, pinned = 0;
    for (int64_t page = warp; page * super_size < num_blocks; page += warps) {
        const int64_t start = page * super_size, end = min(start + super_size, num_blocks);
        int in_use = 0, in_cache = 0;
        for (int64_t block = start + lane; block < end; block += WARP_SIZE) {
            in_use += ref[block] > 0;
            in_cache += ref[block] <= 0 && cached[block] != 0;
        }
        for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
            in_use += __shfl_xor_sync(FULL_WARP, in_use, width);
            in_cache += __shfl_xor_sync(FULL_WARP, in_cache, width);
        }
        if (lane == 0 && in_use + in_cache > 0) held += end - start;
        if (lane == 0 && in_use > 0) pinned += end - start - in_use;
    }
    const int64_t all_used = block_sum(used), all_kept = block_sum(kept), all_pairs = block_sum(pairs);
    const int64_t found[] = {all_used,           all_kept,        num_blocks - all_used - all_kept,
                             block_sum(live),    block_sum(tokens), block_max(longest),
                             block_sum(runs),    block_max(top),  block_sum(held),
                             block_sum(pinned),  all_pairs - block_sum(broken), all_pairs};
    if (threadIdx.x < RUN_BINS) run_histogram[threadIdx.x] = (int64_t)bins[threadIdx.x];
    if (threadIdx.x == 0) {
        for (int i = 0; i < 12; ++i) metrics[i] = found[i];
    }
    if (flags) atomicOr(status, flags);
}
