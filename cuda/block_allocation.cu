// Give the i-th valid request the i-th id of the free order, or nobody any; or let the threads race for blocks (cas).
// An entry takes the mark of the first request that names it, in place of -1. Up to 256 requests: one thread block. Up to
// 1024: one cluster of eight, each with an eighth of the requests, for whose sectors of memory one multiprocessor would take
// longer. More: each takes its entry and the id at its own place at once, and where all could, that is the answer. Else
// what was taken is put back, and a thread block per 1024 requests waits for the earlier ones, first until their marks are
// there, then for their counts; when there may be too few blocks, launches before it instead, since nobody may take one
// before all have asked. cas: one thread block. At last one warp per block that was given out makes it forget.
// TinyServe S:213-239. cas is its search; there a failed request left the table entry as it was.
#include "cluster.cuh"
#include "requests.cuh"

constexpr int CAS = 1;  // mode; 0 is scan

#define ALLOCATION_PARAMETERS                                                                                         \
    const int *reqs, const int *free_order, int *block_table, int *ref, int *gen, int *allocated, int *cas_failures,  \
        int *num_allocated, int *uses, int *freq, int *level, int *hits, int *lookups, int *history, half *box,       \
        int *workspace, int64_t num_requests, int64_t num_free, int64_t num_seqs, int64_t max_blocks_per_seq,         \
        int64_t num_blocks, int64_t num_layers, int64_t layer_stride, int64_t num_kv_heads, int64_t head_dim,         \
        int64_t workspace_words, int mode, int all_or_nothing, int *status

// The entry gets the block; gen is how often it was allocated before.
__device__ __forceinline__ void hand_out(int block, int gen_before, int64_t entry, int* block_table, int* ref, int* gen) {
    block_table[entry] = block;
    ref[block] = 1;
    gen[block] = gen_before + 1;
}

// Which requests name an empty entry, and are the first to; `allocated` says so until the last launch.
extern "C" __global__ void block_allocation_look(ALLOCATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    if (request_of_thread() == 0) num_allocated[0] = 0;
    if (mode == CAS) return;
    if (request_of_thread() < num_requests) cas_failures[request_of_thread()] = 0;
    look_at_entry(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq, status);
}

extern "C" __global__ void block_allocation_mark(ALLOCATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    if (mode == CAS) return;
    mark_entry(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq);
}

// Workspace of several thread blocks [3 * tiles + 4]: what each says of its marks and of its valid requests (zero before
// and after), its valid requests when there may be too few blocks; then these cells (zero before and after).
enum Cell { GIVEN, MARKS_LEFT, ARRIVALS, ODD, NUM_CELLS };

__device__ __forceinline__ int64_t tiles_of(int64_t workspace_words) { return (workspace_words - NUM_CELLS) / 3; }

extern "C" __global__ void block_allocation_count(ALLOCATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    if (mode == CAS) return;
    const int count = __syncthreads_count(
        is_first(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq, status));
    if (threadIdx.x == 0) workspace[2 * tiles_of(workspace_words) + blockIdx.x] = count;
}

// For many requests, as many as there are ids or fewer: the i-th takes the i-th id and its entry, whatever the others do.
// An entry or a block that was not free, or is none, is for the next launches; who got only one of them lets go.
extern "C" __global__ void block_allocation_take(ALLOCATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    if (mode == CAS) return;
    const int64_t i = request_of_thread();
    if (i >= num_requests) return;
    const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
    const int block = free_order[i];
    const bool is_block = block >= 0 && block < num_blocks;
    const bool got_entry = entry >= 0 && is_block && atomicCAS(&block_table[entry], -1, block) == -1;
    const bool got_block = is_block && atomicCAS(&ref[block], 0, 1) == 0;
    if (got_entry && got_block) {
        atomicAdd(&gen[block], 1);
    } else {
        if (got_entry) block_table[entry] = -1;
        if (got_block) ref[block] = 0;
        atomicOr(&workspace[3 * tiles_of(workspace_words) + ODD], 1);
    }
    allocated[i] = got_entry && got_block ? block : -1;
    cas_failures[i] = 0;
    if (i == 0) num_allocated[0] = (int)num_requests;
}

extern "C" __global__ void block_allocation_undo(ALLOCATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    if (mode == CAS || workspace[3 * tiles_of(workspace_words) + ODD] == 0) return;
    const int64_t i = request_of_thread();
    const int block = i < num_requests ? allocated[i] : -1;
    if (block < 0) return;
    block_table[entry_of(reqs, i, num_seqs, max_blocks_per_seq)] = -1;
    ref[block] = 0;
    gen[block] -= 1;
}

// An id of the free order with what its block was; `wrong`: the status bit for which nobody gets it, or 0.
struct Candidate {
    int block, gen, wrong;
};

__device__ __forceinline__ Candidate candidate_at(int64_t rank, const int* free_order, const int* ref, const int* gen,
                                                  int64_t num_free, int64_t num_blocks) {
    const int block = rank < num_free ? free_order[rank] : -1;
    if (block < 0 || block >= num_blocks) return {-1, 0, STATUS_RANGE};
    return {block, gen[block], ref[block] != 0 ? STATUS_CONFLICT : 0};
}

// Shared memory of one of BLOCKS thread blocks that serve up to 1024 requests.
template <int BLOCKS>
struct Share {
    static constexpr int OWN = FirstOfKey::MOST_KEYS / BLOCKS;
    Candidate candidates[OWN];
    int odd_in[BLOCKS], asking_in[BLOCKS], first_in[BLOCKS], given_in[BLOCKS];
};

// Up to 1024 requests by BLOCKS thread blocks: what a request needs is fetched before it is known whether it is served.
template <int BLOCKS>
__device__ __forceinline__ void allocate_at_once(Share<BLOCKS>& share, ALLOCATION_PARAMETERS) {
    constexpr int OWN = Share<BLOCKS>::OWN, DOUBLED = 1 << 16;
    say_started<BLOCKS>();
    const Marks marks(block_table, num_requests);
    const int64_t i = cluster_rank<BLOCKS>() * OWN + threadIdx.x;
    const bool asked = threadIdx.x < OWN && i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    Candidate candidate = {-1, 0, STATUS_RANGE};
    if (asked) candidate = candidate_at(i, free_order, ref, gen, num_free, num_blocks);
    bool doubled = false;
    bool valid = entry >= 0 && marks.put(entry, i, &doubled);
    if (threadIdx.x < OWN) share.candidates[threadIdx.x] = candidate;
    int here, before, asking, all_odd;
    const bool odd = __syncthreads_or(doubled || (asked && (!valid || candidate.wrong != 0)));
    all_started<BLOCKS>();
    tell_cluster<BLOCKS>(share.odd_in, odd);
    cluster_barrier<BLOCKS>();
    sums_told<BLOCKS>(share.odd_in, &before, &all_odd);
    if (all_odd == 0 && num_requests <= num_free) {  // the i-th request gets the i-th id
        if (i == 0) num_allocated[0] = (int)num_requests;
        if (!asked) return;
        allocated[i] = candidate.block;
        cas_failures[i] = 0;
        hand_out(candidate.block, candidate.gen, entry, block_table, ref, gen);
        return;
    }
    int rank = block_rank(valid, &here);
    const int any_doubled = __syncthreads_or(doubled);
    tell_cluster<BLOCKS>(share.asking_in, here + (any_doubled ? DOUBLED : 0));
    cluster_barrier<BLOCKS>();
    sums_told<BLOCKS>(share.asking_in, &before, &asking);
    if (asking >= DOUBLED) {  // somewhere an entry was named twice: now all marks are there
        valid = valid && marks.stands(entry, i);
        rank = block_rank(valid, &here);
        tell_cluster<BLOCKS>(share.first_in, here);
        cluster_barrier<BLOCKS>();
        sums_told<BLOCKS>(share.first_in, &before, &asking);
    }
    rank += before;
    const int64_t served = asking <= num_free ? asking : all_or_nothing ? 0 : num_free;
    int flags = asking > num_free ? STATUS_OOM : 0;
    if (asked && !valid) flags |= entry < 0 ? STATUS_RANGE : STATUS_ALREADY_MAPPED;
    const bool taking = valid && rank < served;
    if (taking && rank != i) candidate = *shared_of<BLOCKS>(&share.candidates[rank % OWN], rank / OWN);
    if (taking) flags |= candidate.wrong;
    const int block = taking && candidate.wrong == 0 ? candidate.block : -1;
    if (asked) {
        allocated[i] = block;
        cas_failures[i] = 0;
    }
    if (block >= 0) {
        hand_out(block, candidate.gen, entry, block_table, ref, gen);
    } else if (valid) {
        block_table[entry] = -1;  // no mark stays
    }
    const int given = __syncthreads_count(block >= 0);
    tell_cluster<BLOCKS>(share.given_in, given);
    if (flags) atomicOr(status, flags);
    cluster_barrier<BLOCKS>();  // nobody leaves while another may still look into its shared memory
    if (i != 0) return;
    int all_given;
    sums_told<BLOCKS>(share.given_in, &before, &all_given);
    num_allocated[0] = all_given;
}

// More requests, as many as there are ids or fewer, of which some could not take what they asked for.
__device__ __forceinline__ void allocate_in_order(ALLOCATION_PARAMETERS) {
    __shared__ int given_here;
    const int64_t tiles = tiles_of(workspace_words), i = request_of_thread();
    int* const cells = workspace + 3 * tiles;
    const bool asked = i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const Marks marks(block_table, num_requests);
    Candidate candidate = {-1, 0, STATUS_RANGE};
    if (asked) candidate = candidate_at(i, free_order, ref, gen, num_free, num_blocks);
    bool doubled = false;
    const bool empty = entry >= 0 && marks.put(entry, i, &doubled);
    say(workspace, 1);
    heard_from_earlier(workspace);
    const bool valid = empty && marks.stands(entry, i);
    int here;
    const int rank_here = block_rank(valid, &here);
    say(workspace + tiles, here + 1);
    const int64_t rank = heard_from_earlier(workspace + tiles) - blockIdx.x + rank_here;
    int flags = 0;
    if (asked && !valid) flags |= entry < 0 ? STATUS_RANGE : STATUS_ALREADY_MAPPED;
    if (valid && rank != i) candidate = candidate_at(rank, free_order, ref, gen, num_free, num_blocks);
    if (valid) flags |= candidate.wrong;
    const int block = valid && candidate.wrong == 0 ? candidate.block : -1;
    if (asked) {
        allocated[i] = block;
        cas_failures[i] = 0;
    }
    if (block >= 0) {
        hand_out(block, candidate.gen, entry, block_table, ref, gen);
    }
    if (flags) atomicOr(status, flags);
    // A mark without a block stays for now: to later requests the entry is asked for.
    const int left = __syncthreads_count(valid && block < 0), given = __syncthreads_count(block >= 0);
    if (threadIdx.x == 0) {
        if (left) atomicAdd(&cells[MARKS_LEFT], left);
        atomicAdd(&cells[GIVEN], given);
    }
    if (!last_to_arrive(&cells[ARRIVALS])) return;
    if (threadIdx.x == 0) given_here = atomicExch(&cells[GIVEN], 0);
    const int marks_left = *(volatile int*)&cells[MARKS_LEFT];
    __syncthreads();
    if (threadIdx.x == 0) {
        num_allocated[0] = given_here;
        cells[MARKS_LEFT] = cells[ODD] = 0;
    }
    for (int64_t k = threadIdx.x; k < 2 * tiles; k += blockDim.x) workspace[k] = 0;
    for (int64_t k = threadIdx.x; marks_left && k < num_requests; k += blockDim.x) {
        const int64_t of_k = entry_of(reqs, k, num_seqs, max_blocks_per_seq);
        if (of_k >= 0) atomicCAS(&marks.entries[of_k], Marks::of(k), ~0u);
    }
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
        hand_out(block, gen[block], entry_of(reqs, i, num_seqs, max_blocks_per_seq), block_table, ref, gen);
    }
    given = block_sum(given);
    if (threadIdx.x == 0) num_allocated[0] = (int)given;
}

extern "C" __global__ void block_allocation_few(ALLOCATION_PARAMETERS) {
    start_next_launch();
    if (mode == CAS) {
        allocate_by_search(reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses, freq, level,
                         hits, lookups, history, box, workspace, num_requests, num_free, num_seqs, max_blocks_per_seq,
                         num_blocks, num_layers, layer_stride, num_kv_heads, head_dim, workspace_words, mode,
                         all_or_nothing, status);
    } else {
        __shared__ Share<1> share;
        allocate_at_once<1>(share, reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses, freq, level,
                         hits, lookups, history, box, workspace, num_requests, num_free, num_seqs, max_blocks_per_seq,
                         num_blocks, num_layers, layer_stride, num_kv_heads, head_dim, workspace_words, mode,
                         all_or_nothing, status);
    }
}

extern "C" __global__ void CLUSTER block_allocation_spread(ALLOCATION_PARAMETERS) {
    follow_launch();
    if (mode == CAS) {
        if (blockIdx.x > 0) return;
        allocate_by_search(reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses, freq, level,
                         hits, lookups, history, box, workspace, num_requests, num_free, num_seqs, max_blocks_per_seq,
                         num_blocks, num_layers, layer_stride, num_kv_heads, head_dim, workspace_words, mode,
                         all_or_nothing, status);
    } else if (blockIdx.x < CLUSTER_BLOCKS) {
        __shared__ Share<CLUSTER_BLOCKS> share;
        allocate_at_once<CLUSTER_BLOCKS>(share, reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses, freq, level,
                         hits, lookups, history, box, workspace, num_requests, num_free, num_seqs, max_blocks_per_seq,
                         num_blocks, num_layers, layer_stride, num_kv_heads, head_dim, workspace_words, mode,
                         all_or_nothing, status);
    }
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
    int* workspace,  // [workspace_words] see Cell, or null up to 1024 requests
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
    start_next_launch();
    follow_launch();
    if (mode == CAS) {
        if (blockIdx.x == 0) {
            allocate_by_search(reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses,
                               freq, level, hits, lookups, history, box, workspace, num_requests, num_free, num_seqs,
                               max_blocks_per_seq, num_blocks, num_layers, layer_stride, num_kv_heads, head_dim,
                               workspace_words, mode, all_or_nothing, status);
        }
        return;
    }
    const int64_t tiles = tiles_of(workspace_words);
    if (num_requests <= num_free) {
        if (workspace[3 * tiles + ODD] == 0) return;
        allocate_in_order(reqs, free_order, block_table, ref, gen, allocated, cas_failures, num_allocated, uses, freq,
                          level, hits, lookups, history, box, workspace, num_requests, num_free, num_seqs,
                          max_blocks_per_seq, num_blocks, num_layers, layer_stride, num_kv_heads, head_dim,
                          workspace_words, mode, all_or_nothing, status);
        return;
    }
    const int64_t i = request_of_thread();
    const bool valid = i < num_requests && allocated[i] != 0;
    int before, asking, in_tile;
    sums_before(workspace + 2 * tiles, blockIdx.x, tiles, &before, &asking);
    const int64_t rank = before + (int64_t)block_rank(valid, &in_tile);
    const int64_t served = asking <= num_free ? asking : all_or_nothing ? 0 : num_free;
    int flags = asking > num_free ? STATUS_OOM : 0;
    Candidate candidate = {-1, 0, 0};
    if (valid && rank < served) candidate = candidate_at(rank, free_order, ref, gen, num_free, num_blocks);
    flags |= candidate.wrong;
    const int block = candidate.wrong == 0 ? candidate.block : -1;
    if (i < num_requests) allocated[i] = block;
    if (valid) {
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        if (block < 0) block_table[entry] = -1;  // no mark stays
        else hand_out(block, candidate.gen, entry, block_table, ref, gen);
    }
    const int given = __syncthreads_count(block >= 0);
    if (threadIdx.x == 0 && given) atomicAdd(num_allocated, given);
    if (flags) atomicOr(status, flags);
}

// One warp per request, eight to a thread block: a new owner finds counters at zero and empty boxes.
extern "C" __global__ void block_allocation_forget(ALLOCATION_PARAMETERS) {
    follow_launch();
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t i = (int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= num_requests || allocated[i] < 0) return;
    const int64_t block = allocated[i];
    int* const counters[] = {uses, freq, level, hits, lookups};
#pragma unroll
    for (int k = 0; k < 5; ++k) {
        if (lane == k && counters[k]) counters[k][block] = 0;
    }
    if (lane == 5 && history) history[entry_of(reqs, i, num_seqs, max_blocks_per_seq)] = 0;
    if (box) empty_box(box, block, num_layers, layer_stride, num_kv_heads, head_dim, lane, WARP_SIZE);
}
