// Give the i-th valid request the i-th id of the free order, or nobody any; or let the threads race for blocks (cas).
// One thread block of 1024 threads: the requests in tiles, ranks by an exclusive scan over the valid ones. Then one warp
// per block that was given out forgets the block's former life, in a second launch over the whole grid.
// TinyServe S:213-239. cas is its search; there a failed request left the table entry as it was.
#include "requests.cuh"

constexpr int SCAN = 0, CAS = 1;

extern "C" __global__ void block_allocation(
    const int* reqs,        // [num_requests][2] sequence, logical block
    const int* free_order,  // [num_free] distinct free ids in the order in which they are given out
    int* block_table,       // [num_seqs][max_blocks_per_seq], -1 = no block
    int* ref,               // [num_blocks]
    int* gen,               // [num_blocks] times allocated
    int* allocated,         // [num_requests], -1 = none
    int* cas_failures,      // [num_requests] blocks found taken
    int* num_allocated,     // [1]
    int* uses,              // [num_blocks] or null, as the next four
    int* freq,
    int* level,
    int* hits,
    int* lookups,
    int* history,    // [num_seqs][max_blocks_per_seq] or null
    half* box,       // [num_layers][layer_stride][num_kv_heads][2][head_dim] or null
    int* workspace,  // not used
    int64_t num_requests,
    int64_t num_free,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int64_t num_layers,
    int64_t layer_stride,
    int64_t num_kv_heads,
    int64_t head_dim,
    int64_t workspace_words,
    int mode,
    int all_or_nothing,
    int* status) {
    first_to_name_empty(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq, status);
    int64_t own = 0, own_free = 0;
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) own += allocated[i];
    const int64_t asking = block_sum(own);
    if (mode == CAS) {
        for (int64_t block = threadIdx.x; block < num_blocks; block += blockDim.x) own_free += ref[block] == 0;
    }
    const int64_t supply = mode == CAS ? block_sum(own_free) : num_free;
    const int64_t served = asking <= supply ? asking : all_or_nothing ? 0 : supply;
    int flags = asking > supply ? STATUS_OOM : 0;
    int64_t before = 0, given = 0;
    for (int64_t start = 0; start < num_requests; start += blockDim.x) {
        const int64_t i = start + threadIdx.x;
        const bool valid = i < num_requests && allocated[i] != 0;
        int64_t in_tile;
        const int64_t rank = before + block_exclusive_scan(valid, &in_tile);
        before += in_tile;
        if (i >= num_requests) continue;
        int block = -1, failures = 0;
        if (valid && rank < served) {
            if (mode == SCAN) {
                block = free_order[rank];
                if (block < 0 || block >= num_blocks) {
                    flags |= STATUS_RANGE;
                    block = -1;
                } else if (ref[block] != 0) {
                    flags |= STATUS_CONFLICT;
                    block = -1;
                }
            } else {
                // No more threads search than blocks are free, so each finds one.
                for (int64_t at = 0; at < num_blocks && block < 0; ++at) {
                    if (atomicCAS(&ref[at], 0, 1) == 0) block = (int)at;
                    else ++failures;
                }
            }
        }
        if (valid && rank >= supply && mode == CAS) failures = (int)num_blocks;
        allocated[i] = block;
        cas_failures[i] = failures;
        if (block < 0) continue;
        ++given;
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        block_table[entry] = block;
        ref[block] = 1;
        gen[block] += 1;
        if (history) history[entry] = 0;
    }
    const int64_t all = block_sum(given);
    if (threadIdx.x == 0) num_allocated[0] = (int)all;
    if (flags) atomicOr(status, flags);
}

// One warp per request, eight to a thread block.
extern "C" __global__ void block_allocation_forget(
    const int* reqs, const int* free_order, int* block_table, int* ref, int* gen, int* allocated, int* cas_failures,
    int* num_allocated, int* uses, int* freq, int* level, int* hits, int* lookups, int* history, half* box,
    int* workspace, int64_t num_requests, int64_t num_free, int64_t num_seqs, int64_t max_blocks_per_seq,
    int64_t num_blocks, int64_t num_layers, int64_t layer_stride, int64_t num_kv_heads, int64_t head_dim,
    int64_t workspace_words, int mode, int all_or_nothing, int* status) {
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t i = (int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= num_requests || allocated[i] < 0) return;
    const int64_t block = allocated[i];
    int* const counters[] = {uses, freq, level, hits, lookups};
    for (int k = 0; k < 5; ++k) {
        if (lane == k && counters[k]) counters[k][block] = 0;
    }
    if (box) empty_box(box, block, num_layers, layer_stride, num_kv_heads, head_dim, lane, WARP_SIZE);
}
