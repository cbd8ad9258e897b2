// Give the i-th valid request the i-th id of the free order, or nobody any; or let the threads race for blocks (cas).
// Up to 1024 requests: one thread block with a request per thread, everything in shared memory. More: a thread block per
// 1024 requests and launches before it, since who is first to name an entry and how many ask is known only when all have
// looked. cas: one thread block. Then one warp per block that was given out empties the block's boxes.
// TinyServe S:213-239. cas is its search; there a failed request left the table entry as it was.
#include "requests.cuh"

constexpr int SCAN = 0, CAS = 1;

#define ALLOCATION_PARAMETERS                                                                                         \
    const int *reqs, const int *free_order, int *block_table, int *ref, int *gen, int *allocated, int *cas_failures,  \
        int *num_allocated, int *uses, int *freq, int *level, int *hits, int *lookups, int *history, half *box,       \
        int *workspace, int64_t num_requests, int64_t num_free, int64_t num_seqs, int64_t max_blocks_per_seq,         \
        int64_t num_blocks, int64_t num_layers, int64_t layer_stride, int64_t num_kv_heads, int64_t head_dim,         \
        int64_t workspace_words, int mode, int all_or_nothing, int *status

// The entry gets the block, which starts a new life; gen is how often it was allocated before.
__device__ __forceinline__ void hand_out(int block, int gen_before, int64_t entry, int* block_table, int* ref, int* gen,
                                         int* uses, int* freq, int* level, int* hits, int* lookups, int* history) {
    block_table[entry] = block;
    ref[block] = 1;
    gen[block] = gen_before + 1;
    if (uses) uses[block] = 0;
    if (freq) freq[block] = 0;
    if (level) level[block] = 0;
    if (hits) hits[block] = 0;
    if (lookups) lookups[block] = 0;
    if (history) history[entry] = 0;
}

// Which requests name an empty entry, and are the first to; `allocated` says so until the last launch.
extern "C" __global__ void block_allocation_look(ALLOCATION_PARAMETERS) {
    if (request_of_thread() == 0) num_allocated[0] = 0;
    if (mode == CAS) return;
    if (request_of_thread() < num_requests) cas_failures[request_of_thread()] = 0;
    look_at_entry(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq, status);
}

extern "C" __global__ void block_allocation_mark(ALLOCATION_PARAMETERS) {
    if (mode == CAS) return;
    mark_entry(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq);
}

// workspace[thread block] counts the valid ones.
extern "C" __global__ void block_allocation_count(ALLOCATION_PARAMETERS) {
    if (mode == CAS) return;
    const int count = __syncthreads_count(
        is_first(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq, status));
    if (threadIdx.x == 0) workspace[blockIdx.x] = count;
}

// Up to one request per thread: what a request needs is fetched before it is known whether it is served.
__device__ __forceinline__ void allocate_at_once(ALLOCATION_PARAMETERS) {
    __shared__ FirstOfKey entries;
    __shared__ int id[FirstOfKey::MOST_KEYS], gen_of[FirstOfKey::MOST_KEYS], flags_of[FirstOfKey::MOST_KEYS];
    const int64_t i = threadIdx.x;
    const bool asked = i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int candidate = i < num_free && asked ? free_order[i] : -1;
    const bool empty = entry >= 0 && block_table[entry] == -1;
    const bool in_pool = candidate >= 0 && candidate < num_blocks;
    flags_of[i] = !in_pool ? STATUS_RANGE : ref[candidate] != 0 ? STATUS_CONFLICT : 0;
    gen_of[i] = in_pool ? gen[candidate] : 0;
    id[i] = candidate;
    entries.clear();
    const int slot = empty ? entries.enter(entry) : 0;
    __syncthreads();
    const bool valid = empty && entries.first[slot] == i;
    int asking, given;
    const int rank = block_rank(valid, &asking);
    const int64_t served = asking <= num_free ? asking : all_or_nothing ? 0 : num_free;
    int flags = asking > num_free ? STATUS_OOM : 0;
    if (asked && !valid) flags |= entry < 0 ? STATUS_RANGE : STATUS_ALREADY_MAPPED;
    const bool taking = valid && rank < served;
    if (taking) flags |= flags_of[rank];
    const int block = taking && flags_of[rank] == 0 ? id[rank] : -1;
    block_rank(block >= 0, &given);
    if (i == 0) num_allocated[0] = given;
    if (asked) {
        allocated[i] = block;
        cas_failures[i] = 0;
    }
    if (block >= 0) {
        hand_out(block, gen_of[rank], entry, block_table, ref, gen, uses, freq, level, hits, lookups, history);
    }
    if (flags) atomicOr(status, flags);
}

// The published search, for all requests by one thread block.
__device__ __forceinline__ void allocate_by_search(ALLOCATION_PARAMETERS) {
    first_to_name_empty(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq, status);
    int64_t own = 0, own_free = 0, given = 0, before = 0;
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) own += allocated[i];
    for (int64_t block = threadIdx.x; block < num_blocks; block += blockDim.x) own_free += ref[block] == 0;
    const int64_t asking = block_sum(own), supply = block_sum(own_free);
    const int64_t served = asking <= supply ? asking : all_or_nothing ? 0 : supply;
    if (asking > supply && threadIdx.x == 0) atomicOr(status, STATUS_OOM);
    for (int64_t start = 0; start < num_requests; start += blockDim.x) {
        const int64_t i = start + threadIdx.x;
        const bool valid = i < num_requests && allocated[i] != 0;
        int in_tile;
        const int64_t rank = before + block_rank(valid, &in_tile);
        before += in_tile;
        if (i >= num_requests) continue;
        int block = -1, failures = 0;
        // No more threads search than blocks are free, so each finds one.
        for (int64_t at = 0; valid && rank < served && at < num_blocks && block < 0; ++at) {
            if (atomicCAS(&ref[at], 0, 1) == 0) block = (int)at;
            else ++failures;
        }
        if (valid && rank >= supply) failures = (int)num_blocks;
        allocated[i] = block;
        cas_failures[i] = failures;
        if (block < 0) continue;
        ++given;
        hand_out(block, gen[block], entry_of(reqs, i, num_seqs, max_blocks_per_seq), block_table, ref, gen, uses, freq,
                 level, hits, lookups, history);
    }
    given = block_sum(given);
    if (threadIdx.x == 0) num_allocated[0] = (int)given;
}

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
    if (mode == CAS) {
        if (blockIdx.x == 0) {
            allocate_by_search(reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses,
                               freq, level, hits, lookups, history, box, workspace, num_requests, num_free, num_seqs,
                               max_blocks_per_seq, num_blocks, num_layers, layer_stride, num_kv_heads, head_dim,
                               workspace_words, mode, all_or_nothing, status);
        }
        return;
    }
    if (gridDim.x == 1) {
        allocate_at_once(reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses, freq,
                         level, hits, lookups, history, box, workspace, num_requests, num_free, num_seqs,
                         max_blocks_per_seq, num_blocks, num_layers, layer_stride, num_kv_heads, head_dim,
                         workspace_words, mode, all_or_nothing, status);
        return;
    }
    const int64_t i = request_of_thread();
    const bool valid = i < num_requests && allocated[i] != 0;
    int before, asking, in_tile;
    sums_before(workspace, blockIdx.x, gridDim.x, &before, &asking);
    const int64_t rank = before + (int64_t)block_rank(valid, &in_tile);
    const int64_t served = asking <= num_free ? asking : all_or_nothing ? 0 : num_free;
    int flags = asking > num_free ? STATUS_OOM : 0, block = -1;
    if (valid && rank < served) {
        block = free_order[rank];
        const bool in_pool = block >= 0 && block < num_blocks;
        if (!in_pool || ref[block] != 0) {
            flags |= in_pool ? STATUS_CONFLICT : STATUS_RANGE;
            block = -1;
        }
    }
    if (i < num_requests) allocated[i] = block;
    if (valid) {
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        if (block < 0) block_table[entry] = -1;  // no mark stays
        else hand_out(block, gen[block], entry, block_table, ref, gen, uses, freq, level, hits, lookups, history);
    }
    const int given = __syncthreads_count(block >= 0);
    if (threadIdx.x == 0 && given) atomicAdd(num_allocated, given);
    if (flags) atomicOr(status, flags);
}

// One warp per request, eight to a thread block: a new owner finds empty boxes.
extern "C" __global__ void block_allocation_forget(ALLOCATION_PARAMETERS) {
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t i = (int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= num_requests || allocated[i] < 0) return;
    empty_box(box, allocated[i], num_layers, layer_stride, num_kv_heads, head_dim, lane, WARP_SIZE);
}
