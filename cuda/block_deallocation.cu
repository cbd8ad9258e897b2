// Take one reference back per request, clear its table entry, and list the blocks whose last reference went, in request
// order. Up to 256 requests: one thread block. Up to 1024: one cluster of eight, each with an eighth of the requests. Both
// take entries and references at once, by atomics; only where a block had other than one reference or an entry gave nothing
// do they look who else named the entry or the block. More: the same, a thread per request, and where each block had one
// reference that is all. Else a thread block per 1024 requests in two launches, where one waits for the earlier ones; the
// first gives what was taken to the first request that names the entry and counts the releases of each block. The freed
// list comes from an exclusive scan, never in atomic order.
// TinyServe's published code (not in its README).
#include "cluster.cuh"
#include "requests.cuh"

constexpr int FREES = 1, WITHOUT_REFERENCE = 2;

// Workspace where one cluster does not do: whether some request found other than a block with one reference, and arrivals
// [2]; releases of each block and, plus 1, the last request that releases it [2 * num_blocks]; of each entry the first
// request that found nothing in it [num_seqs * max_blocks_per_seq], counted from behind, from 1; what each request
// releases, see NOTHING [num_requests]; what each thread block says in the second launch and in the third [2 * tiles]. All
// but the fourth are zero before the first call; what the third launch says is still there behind it.
struct Releases {
    int *odd, *arrivals, *count, *last, *first, *block, *marked, *listed;

    __device__ __forceinline__ Releases(int* workspace, int64_t num_requests, int64_t num_blocks, int64_t num_entries)
        : odd(workspace), arrivals(odd + 1), count(odd + 2), last(count + num_blocks), first(last + num_blocks),
          block(first + num_entries), marked(block + num_requests),
          listed(marked + (num_requests + FirstOfKey::MOST_KEYS - 1) / FirstOfKey::MOST_KEYS) {}
};
constexpr int NOTHING = -1, NO_BLOCK = -2;  // what a request releases if it is no block: the entry's content

#define DEALLOCATION_PARAMETERS                                                                                       \
    const int *reqs, int *block_table, int *ref, int *released, int *freed, int *num_freed, int *workspace,           \
        int64_t num_requests, int64_t num_seqs, int64_t max_blocks_per_seq, int64_t num_blocks,                       \
        int64_t workspace_words, int *status

// Many requests: each takes what its entry holds and one of the block's references. `released` keeps what it found.
extern "C" __global__ void block_deallocation_take(DEALLOCATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    const int64_t i = request_of_thread();
    if (i >= num_requests) return;
    const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
    const int found = entry >= 0 ? atomicExch(&block_table[entry], -1) : -1;
    const bool content = found >= 0 && found < num_blocks;
    if (!content || atomicAdd(&ref[found], -1) != 1) {
        *Releases(workspace, num_requests, num_blocks, num_seqs * max_blocks_per_seq).odd = 1;
    }
    released[i] = freed[i] = found;
    if (i == 0) num_freed[0] = (int)num_requests;
}

extern "C" __global__ void block_deallocation_count(DEALLOCATION_PARAMETERS) {
    start_next_launch();
    follow_launch();
    const Releases of(workspace, num_requests, num_blocks, num_seqs * max_blocks_per_seq);
    if (*of.odd == 0) return;
    const int64_t i = request_of_thread();
    const bool asked = i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int found = asked ? released[i] : -1, own = (int)(num_requests - i);
    if (asked) {
        freed[i] = -1;
        of.block[i] = NOTHING;
    }
    if (entry >= 0 && found == -1) atomicMax(&of.first[entry], own);
    if (threadIdx.x == 0) of.listed[blockIdx.x] = 0;
    say(of.marked, 1);
    heard_from_earlier(of.marked);
    if (found == -1) return;
    // Of those that name an entry one took its content: it is the first one's, and all before have been here.
    const int64_t first = num_requests - max(*(volatile int*)&of.first[entry], own);
    const bool held = found >= 0 && found < num_blocks;
    of.block[first] = held ? found : NO_BLOCK;
    if (!held) return;
    atomicAdd(&of.count[found], 1);
    atomicMax(&of.last[found], (int)first + 1);
}

// What request i, the releases of its block and its references come to.
__device__ __forceinline__ int outcome(const int* released, int64_t i, int block, int releases, bool last, int references) {
    if (releases <= references) return last && releases == references ? FREES : 0;
    // More releases than references, a mistake: the first ones have them, so this one counts those before it.
    int64_t earlier = 0;
    for (int64_t j = 0; j < i; ++j) earlier += released[j] == block;
    return references - earlier == 1 ? FREES : references <= earlier ? WITHOUT_REFERENCE : 0;
}

// Requests of the whole batch, where some must know of each other.
struct Batch {
    static constexpr int MOST = FirstOfKey::MOST_KEYS;
    FirstOfKey keys;  // of entries, then of blocks
    int block[MOST], references[MOST];  // what a request took and how many references the block had then; -1: nothing
    int releases[MOST], last[MOST], held[MOST];  // of a block, at the first request that releases it
};

// Up to 1024 requests by BLOCKS thread blocks.
template <int BLOCKS>
__device__ __forceinline__ void release_at_once(Batch& batch, int* told, DEALLOCATION_PARAMETERS) {
    constexpr int OWN = FirstOfKey::MOST_KEYS / BLOCKS, OTHERWISE = 1 << 16;
    say_started<BLOCKS>();
    const int i = cluster_rank<BLOCKS>() * OWN + threadIdx.x;
    const bool asked = threadIdx.x < OWN && i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int block = entry >= 0 ? atomicExch(&block_table[entry], -1) : -1;
    const bool content = block >= 0 && block < num_blocks;
    const int references = content ? atomicAdd(&ref[block], -1) : 0;
    const bool plain = !asked || (content && references == 1);
    int here, before, listed;
    const int rank = block_rank(asked && plain, &here);
    const bool otherwise = __syncthreads_or(!plain);
    all_started<BLOCKS>();
    tell_cluster<BLOCKS>(told, here + (otherwise ? OTHERWISE : 0));
    cluster_barrier<BLOCKS>();
    sums_told<BLOCKS>(told, &before, &listed);
    if (listed >= OTHERWISE) {
        // Every thread block of the cluster looks at the whole batch, thread k at request k.
        for (int to = 0; threadIdx.x < OWN && to < BLOCKS; ++to) {
            *shared_of<BLOCKS>(&batch.block[i], to) = block;
            *shared_of<BLOCKS>(&batch.references[i], to) = references;
        }
        cluster_barrier<BLOCKS>();
        const int k = threadIdx.x, taken = batch.block[k], with_references = batch.references[k];
        const int64_t entry_of_k = k < num_requests ? entry_of(reqs, k, num_seqs, max_blocks_per_seq) : -1;
        batch.block[k] = -1;
        batch.releases[k] = batch.last[k] = 0;
        batch.held[k] = (int)0x80000000;
        int slot = batch.keys.enter(entry_of_k);
        __syncthreads();
        const int first = batch.keys.first[slot];
        if (entry_of_k >= 0 && taken != -1) {  // one of those that name the entry took its content: it is the first one's
            batch.block[first] = taken;
            batch.references[first] = with_references;
        }
        __syncthreads();
        const int found = batch.block[k];
        const bool held = found >= 0 && found < num_blocks;
        int wrong = 0;
        if (k < num_requests && !held) wrong = entry_of_k < 0 || found != -1 ? STATUS_RANGE : STATUS_UNMAPPED;
        if (!held) batch.block[k] = -1;
        slot = batch.keys.enter(held ? found : -1);
        __syncthreads();
        const int with = batch.keys.first[slot];
        if (held) {
            atomicAdd(&batch.releases[with], 1);
            atomicMax(&batch.last[with], k + 1);
            atomicMax(&batch.held[with], batch.references[k]);
        }
        __syncthreads();
        int comes_to = 0;
        if (held) {
            const int releases = batch.releases[with], had = batch.held[with];
            const bool last = batch.last[with] == k + 1;
            comes_to = outcome(batch.block, k, found, releases, last, had);
            if (comes_to == WITHOUT_REFERENCE) wrong |= STATUS_DOUBLE_FREE;
            // As many references less as releases, but no more than it had.
            if (last && k / OWN == cluster_rank<BLOCKS>() && releases > had) ref[found] = min(had, 0);
        }
        // A request's thread of its own thread block writes; every thread block knows all.
        const int rank_of_k = block_rank(comes_to == FREES, &listed);
        if (k < num_requests && k / OWN == cluster_rank<BLOCKS>()) {
            released[k] = held && comes_to != WITHOUT_REFERENCE ? found : -1;
            if (k >= listed) freed[k] = -1;
            if (comes_to == FREES) freed[rank_of_k] = found;
            if (wrong) atomicOr(status, wrong);
        }
    } else if (asked) {
        released[i] = block;
        if (i >= listed) freed[i] = -1;
        freed[before + rank] = block;
    }
    if (i == 0) num_freed[0] = listed;
}

extern "C" __global__ void block_deallocation_few(DEALLOCATION_PARAMETERS) {
    __shared__ Batch batch;
    __shared__ int told[1];
    release_at_once<1>(batch, told, reqs, block_table, ref, released, freed, num_freed, workspace, num_requests, num_seqs,
                        max_blocks_per_seq, num_blocks, workspace_words, status);
}

extern "C" __global__ void CLUSTER __launch_bounds__(1024) block_deallocation_spread(DEALLOCATION_PARAMETERS) {
    follow_launch();
    if (blockIdx.x >= CLUSTER_BLOCKS) return;
    __shared__ Batch batch;
    __shared__ int told[CLUSTER_BLOCKS];
    release_at_once<CLUSTER_BLOCKS>(batch, told, reqs, block_table, ref, released, freed, num_freed, workspace, num_requests, num_seqs,
                        max_blocks_per_seq, num_blocks, workspace_words, status);
}

extern "C" __global__ void __launch_bounds__(1024) block_deallocation(
    const int* reqs,   // [num_requests][2] sequence, logical block
    int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    int* ref,          // [num_blocks]
    int* released,     // [num_requests] block given up, -1 = none
    int* freed,        // [num_requests] blocks that became free, then -1
    int* num_freed,    // [1]
    int* workspace,    // [workspace_words] see Releases, or null up to 1024 requests
    int64_t num_requests,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int64_t workspace_words,
    int* status) {
    follow_launch();
    const Releases of(workspace, num_requests, num_blocks, num_seqs * max_blocks_per_seq);
    if (*of.odd == 0) return;
    const int64_t i = request_of_thread();
    const int64_t entry = i < num_requests ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int block = i < num_requests ? of.block[i] : NOTHING;
    const int releases = block >= 0 ? of.count[block] : 0, references = block >= 0 ? ref[block] + releases : 0;
    const bool last = block >= 0 && of.last[block] == i + 1;
    const int found = block >= 0 ? outcome(of.block, i, block, releases, last, references) : 0;
    int listed;
    const int rank = block_rank(found == FREES, &listed);
    say(of.listed, listed + 1);
    int flags = found == WITHOUT_REFERENCE ? STATUS_DOUBLE_FREE : 0;
    if (i < num_requests) {
        released[i] = found == WITHOUT_REFERENCE || block < 0 ? -1 : block;
        if (block < 0) flags |= entry < 0 || block == NO_BLOCK ? STATUS_RANGE : STATUS_UNMAPPED;
    }
    if (entry >= 0) of.first[entry] = 0;
    if (threadIdx.x == 0) of.marked[blockIdx.x] = 0;
    if (flags) atomicOr(status, flags);
    const int64_t before = heard_from_earlier(of.listed) - blockIdx.x;
    if (found == FREES) freed[before + rank] = block;
    if (threadIdx.x == 0 && blockIdx.x == gridDim.x - 1) num_freed[0] = (int)before + listed;
    // The last request that releases a block settles its count, once the others have seen it: as many references less,
    // but no more than it had.
    if (last) {
        ref[block] = references - min(releases, max(references, 0));
        of.count[block] = 0;
        of.last[block] = 0;
    }
    if (last_to_arrive(of.arrivals) && threadIdx.x == 0) *of.odd = 0;
}
