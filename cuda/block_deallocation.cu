// Take one reference back per request, clear its table entry, and list the blocks whose last reference went, in request
// order. Up to 1024 requests: one cluster of eight thread blocks, each with an eighth of the requests; who is first to name
// an entry, and who else releases a block, each finds for itself. More: a thread block per 1024 requests in two launches,
// where one waits for the earlier ones; the first gives each entry's content to the first request that names it and counts
// the releases of each block. The freed list comes from an exclusive scan, never in atomic order.
// TinyServe's published code (not in its README).
#include "cluster.cuh"
#include "requests.cuh"

constexpr int FREES = 1, WITHOUT_REFERENCE = 2;

// Workspace where one cluster does not do: releases of each block and, plus 1, the last request that releases it
// [2 * num_blocks]; what each entry's first request is [num_seqs * max_blocks_per_seq], counted from behind, from 1; the
// block that each request releases [num_requests]; what each thread block says in the first launch and in the second
// [2 * tiles]. All but the third are zero before the first call; what the second launch says is still there behind it.
struct Releases {
    int *count, *last, *first, *block, *marked, *listed;

    __device__ __forceinline__ Releases(int* workspace, int64_t num_requests, int64_t num_blocks, int64_t num_entries)
        : count(workspace), last(count + num_blocks), first(last + num_blocks), block(first + num_entries),
          marked(block + num_requests), listed(marked + (num_requests + FirstOfKey::MOST_KEYS - 1) / FirstOfKey::MOST_KEYS) {}
};

#define DEALLOCATION_PARAMETERS                                                                                       \
    const int *reqs, int *block_table, int *ref, int *released, int *freed, int *num_freed, int *workspace,           \
        int64_t num_requests, int64_t num_seqs, int64_t max_blocks_per_seq, int64_t num_blocks,                       \
        int64_t workspace_words, int *status

extern "C" __global__ void block_deallocation_count(DEALLOCATION_PARAMETERS) {
    const Releases of(workspace, num_requests, num_blocks, num_seqs * max_blocks_per_seq);
    const int64_t i = request_of_thread();
    const int64_t entry = i < num_requests ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int content = entry >= 0 ? block_table[entry] : -1;
    const int own = (int)(num_requests - i);
    if (entry >= 0) atomicMax(&of.first[entry], own);
    if (threadIdx.x == 0) of.listed[blockIdx.x] = 0;
    say(of.marked, 1);
    heard_from_earlier(of.marked);
    if (i >= num_requests) return;
    const bool first = entry >= 0 && *(volatile int*)&of.first[entry] == own;
    const bool held = first && content >= 0 && content < num_blocks;
    of.block[i] = held ? content : -1;
    freed[i] = -1;
    if (!held) {
        atomicOr(status, entry < 0 || (first && content != -1) ? STATUS_RANGE : STATUS_UNMAPPED);
        return;
    }
    atomicAdd(&of.count[content], 1);
    atomicMax(&of.last[content], (int)i + 1);
}

// What request i, the releases of its block and its references come to.
__device__ __forceinline__ int outcome(const int* released, int64_t i, int block, int releases, bool last, int references) {
    if (releases <= references) return last && releases == references ? FREES : 0;
    // More releases than references, a mistake: the first ones have them, so this one counts those before it.
    int64_t earlier = 0;
    for (int64_t j = 0; j < i; ++j) earlier += released[j] == block;
    return references - earlier == 1 ? FREES : references <= earlier ? WITHOUT_REFERENCE : 0;
}

// Up to 1024 requests by a cluster.
__device__ __forceinline__ void release_at_once(DEALLOCATION_PARAMETERS) {
    constexpr int OWN = FirstOfKey::MOST_KEYS / CLUSTER_BLOCKS;
    __shared__ FirstOfKey keys;  // of entries, then of blocks
    __shared__ int releases[FirstOfKey::SLOTS], last_of[FirstOfKey::SLOTS], block_of[FirstOfKey::MOST_KEYS];
    __shared__ int listed_in[CLUSTER_BLOCKS];
    const int i = cluster_rank() * OWN + threadIdx.x;
    const bool asked = threadIdx.x < OWN && i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int64_t entry_here = threadIdx.x < num_requests ? entry_of(reqs, threadIdx.x, num_seqs, max_blocks_per_seq) : -1;
    const int content = entry >= 0 ? block_table[entry] : -1;
    for (int slot = threadIdx.x; slot < FirstOfKey::SLOTS; slot += blockDim.x) releases[slot] = last_of[slot] = 0;
    keys.enter(entry_here);
    __syncthreads();
    const bool first = entry >= 0 && keys.first[keys.find(entry)] == i;
    const bool held = first && content >= 0 && content < num_blocks;
    const int block = held ? content : -1, references = held ? ref[block] : 0;
    for (int rank = 0; threadIdx.x < OWN && rank < CLUSTER_BLOCKS; ++rank) *shared_of(&block_of[i], rank) = block;
    int flags = 0;
    if (asked && !held) flags |= entry < 0 || (first && content != -1) ? STATUS_RANGE : STATUS_UNMAPPED;
    cluster_barrier();  // all know all blocks, and have read keys.first
    const int slot = keys.enter(block_of[threadIdx.x]);
    if (block_of[threadIdx.x] >= 0) {
        atomicAdd(&releases[slot], 1);
        atomicMax(&last_of[slot], (int)threadIdx.x + 1);
    }
    __syncthreads();
    const int own_slot = held ? keys.find(block) : 0;
    const bool last = held && last_of[own_slot] == i + 1;
    const int found = held ? outcome(block_of, i, block, releases[own_slot], last, references) : 0;
    if (found == WITHOUT_REFERENCE) flags |= STATUS_DOUBLE_FREE;
    int here, before, listed;
    const int rank_here = block_rank(found == FREES, &here);
    tell_cluster(listed_in, here);
    cluster_barrier();
    sums_told(listed_in, &before, &listed);
    if (asked) released[i] = found == WITHOUT_REFERENCE ? -1 : block;
    if (asked && i >= listed) freed[i] = -1;
    if (found == FREES) freed[before + rank_here] = block;
    if (entry >= 0) block_table[entry] = -1;
    if (last) ref[block] = references - min(releases[own_slot], max(references, 0));
    if (i == 0) num_freed[0] = listed;
    if (flags) atomicOr(status, flags);
}

extern "C" __global__ void CLUSTER block_deallocation(
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
    if (num_requests <= FirstOfKey::MOST_KEYS) {
        if (blockIdx.x < CLUSTER_BLOCKS) {
            release_at_once(reqs, block_table, ref, released, freed, num_freed, workspace, num_requests, num_seqs,
                            max_blocks_per_seq, num_blocks, workspace_words, status);
        }
        return;
    }
    const Releases of(workspace, num_requests, num_blocks, num_seqs * max_blocks_per_seq);
    const int64_t i = request_of_thread(), tiles = (num_requests + blockDim.x - 1) / blockDim.x;
    if (blockIdx.x >= tiles) return;
    const int64_t entry = i < num_requests ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int block = i < num_requests ? of.block[i] : -1;
    const int releases = block >= 0 ? of.count[block] : 0, references = block >= 0 ? ref[block] : 0;
    const bool last = block >= 0 && of.last[block] == i + 1;
    const int found = block >= 0 ? outcome(of.block, i, block, releases, last, references) : 0;
    int listed;
    const int rank = block_rank(found == FREES, &listed);
    say(of.listed, listed + 1);
    if (i < num_requests) released[i] = found == WITHOUT_REFERENCE ? -1 : block;
    if (entry >= 0) {
        block_table[entry] = -1;
        of.first[entry] = 0;
    }
    if (threadIdx.x == 0) of.marked[blockIdx.x] = 0;
    if (found == WITHOUT_REFERENCE) atomicOr(status, STATUS_DOUBLE_FREE);
    const int64_t before = heard_from_earlier(of.listed) - blockIdx.x;
    if (found == FREES) freed[before + rank] = block;
    if (threadIdx.x == 0 && blockIdx.x == tiles - 1) num_freed[0] = (int)before + listed;
    if (!last) return;
    // The last request that releases a block settles its count, once the others have seen it: as many references less,
    // but no more than it had.
    ref[block] = references - min(releases, max(references, 0));
    of.count[block] = 0;
    of.last[block] = 0;
}
