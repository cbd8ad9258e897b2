// Take one reference back per request, clear its table entry, and list the blocks whose last reference went, in request
// order. One thread block of 1024 threads, requests in tiles: entries serve as marks of the first request that names
// them, the workspace counts the releases of each block; the freed list by an exclusive scan, never in atomic order.
// TinyServe's published code (not in its README).
#include "requests.cuh"

extern "C" __global__ void block_deallocation(
    const int* reqs,   // [num_requests][2] sequence, logical block
    int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    int* ref,          // [num_blocks]
    int* released,     // [num_requests] block given up, -1 = none
    int* freed,        // [num_requests] blocks that became free, then -1
    int* num_freed,    // [1]
    int* workspace,    // [workspace_words] releases per block, then the last request of each block, plus 1
    int64_t num_requests,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int64_t workspace_words,
    int* status) {
    constexpr int FIRST_MARK = 0x7fffffff;
    int* const releases = workspace;
    int* const last_request = workspace + num_blocks;
    int flags = 0;
    // The block of each request waits in `released`, the entry turns into a mark: the lowest request that names it.
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        released[i] = entry < 0 ? -1 : block_table[entry];
        freed[i] = -1;
        if (entry < 0) flags |= STATUS_RANGE;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        if (entry >= 0) block_table[entry] = FIRST_MARK;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        if (entry >= 0) atomicMin(&block_table[entry], (int)i);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        if (entry < 0) continue;
        const int block = block_table[entry] == i ? released[i] : -1;
        const bool held = block >= 0 && block < num_blocks;
        released[i] = held ? block : -1;
        if (!held) {
            flags |= block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
            continue;
        }
        atomicAdd(&releases[block], 1);
        atomicMax(&last_request[block], (int)i + 1);
    }
    __syncthreads();
    int64_t listed = 0;
    for (int64_t start = 0; start < num_requests; start += blockDim.x) {
        const int64_t i = start + threadIdx.x;
        const int64_t entry = i < num_requests ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
        if (entry >= 0) block_table[entry] = -1;
        const int block = i < num_requests ? released[i] : -1;
        bool frees = false;
        if (block >= 0 && releases[block] <= ref[block]) {
            frees = releases[block] == ref[block] && last_request[block] == i + 1;
        } else if (block >= 0) {
            // More releases than references, a mistake: the first ones have them, so this one counts those before it.
            int64_t earlier = 0;
            for (int64_t j = 0; j < i; ++j) earlier += released[j] == block;
            frees = ref[block] - earlier == 1;
            if (ref[block] - earlier <= 0) flags |= STATUS_DOUBLE_FREE;
        }
        int64_t in_tile;
        const int64_t rank = listed + block_exclusive_scan(frees, &in_tile);
        if (frees) freed[rank] = block;
        listed += in_tile;
    }
    __syncthreads();
    // Only now do the counts change: a block loses as many references as it was released, but no more than it had.
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        const int block = released[i];
        if (block < 0 || last_request[block] != i + 1) continue;
        const int taken = min(releases[block], max(ref[block], 0));
        if (taken < releases[block]) {
            // The requests behind the first `taken` get nothing; this thread is the only one that looks at this block.
            int64_t left = taken;
            for (int64_t j = 0; j <= i; ++j) {
                if (released[j] == block && left-- <= 0) released[j] = -1;
            }
        }
        ref[block] -= taken;
        releases[block] = 0;
        last_request[block] = 0;
    }
    if (threadIdx.x == 0) num_freed[0] = (int)listed;
    if (flags) atomicOr(status, flags);
}
