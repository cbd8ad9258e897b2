// Take one reference back per request, clear its table entry, and list the blocks whose last reference went, in request
// order. Up to 1024 requests: one thread block with a request per thread, everything in shared memory. More: a thread
// block per 1024 requests and launches before it, with an entry as the mark of the first request that names it and the
// workspace for the releases of each block. The freed list comes from an exclusive scan, never in atomic order.
// TinyServe's published code (not in its README).
#include "requests.cuh"

constexpr int TAKEN = 0x7fffffff;            // in an entry: somebody holds what it held; beyond every block id
constexpr int HELD = 1, HELD_BY_OTHER = 2;   // in `freed` until the last launch: this request took the entry's content
constexpr int FREES = 1, WITHOUT_REFERENCE = 2;

// Workspace [2 * num_blocks + num_requests + tiles]: releases of each block and, plus 1, the last request that releases
// it (both zero before and after), what each request comes to, blocks freed by each thread block.
#define DEALLOCATION_PARAMETERS                                                                                       \
    const int *reqs, int *block_table, int *ref, int *released, int *freed, int *num_freed, int *workspace,           \
        int64_t num_requests, int64_t num_seqs, int64_t max_blocks_per_seq, int64_t num_blocks,                       \
        int64_t workspace_words, int *status

// One of the requests that name an entry takes its content; it speaks for the first one from here on.
extern "C" __global__ void block_deallocation_take(DEALLOCATION_PARAMETERS) {
    const int64_t i = request_of_thread();
    if (i >= num_requests) return;
    const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
    const int content = entry < 0 ? TAKEN : atomicExch(&block_table[entry], TAKEN);
    released[i] = content == TAKEN ? -1 : content;
    freed[i] = content == TAKEN ? 0 : HELD;
    if (entry < 0) atomicOr(status, STATUS_RANGE);
}

extern "C" __global__ void block_deallocation_first(DEALLOCATION_PARAMETERS) {
    const int64_t i = request_of_thread();
    if (i >= num_requests) return;
    const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
    if (entry >= 0) atomicMin(&block_table[entry], (int)i);
}

// The content goes to the first request, which counts as a release of the block.
extern "C" __global__ void block_deallocation_count(DEALLOCATION_PARAMETERS) {
    const int64_t i = request_of_thread();
    if (i >= num_requests || freed[i] != HELD) return;
    const int block = released[i];
    const bool held = block >= 0 && block < num_blocks;
    const int first = block_table[entry_of(reqs, i, num_seqs, max_blocks_per_seq)];
    if (first != i) {
        released[i] = -1;
        freed[first] = HELD_BY_OTHER;
    }
    released[first] = held ? block : -1;
    if (!held) {
        atomicOr(status, block == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
        return;
    }
    atomicAdd(&workspace[block], 1);
    atomicMax(&workspace[num_blocks + block], first + 1);
}

// What request i, the releases of its block and its references come to.
__device__ __forceinline__ int outcome(const int* released, int64_t i, int block, int releases, bool last, int references) {
    if (releases <= references) return last && releases == references ? FREES : 0;
    // More releases than references, a mistake: the first ones have them, so this one counts those before it.
    int64_t earlier = 0;
    for (int64_t j = 0; j < i; ++j) earlier += released[j] == block;
    return references - earlier == 1 ? FREES : references <= earlier ? WITHOUT_REFERENCE : 0;
}

extern "C" __global__ void block_deallocation_list(DEALLOCATION_PARAMETERS) {
    const int64_t i = request_of_thread();
    int found = 0, flags = 0;
    if (i < num_requests) {
        const int block = released[i];
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        if (block >= 0) {
            found = outcome(released, i, block, workspace[block], workspace[num_blocks + block] == i + 1, ref[block]);
        }
        if (found == WITHOUT_REFERENCE) flags |= STATUS_DOUBLE_FREE;
        if (entry >= 0 && block_table[entry] != i) flags |= STATUS_UNMAPPED;
        else if (entry >= 0 && freed[i] == 0) flags |= STATUS_RANGE;  // nobody got a content: it was TAKEN itself
        workspace[2 * num_blocks + i] = found;
    }
    const int count = __syncthreads_count(found == FREES);
    if (threadIdx.x == 0) workspace[2 * num_blocks + num_requests + blockIdx.x] = count;
    if (flags) atomicOr(status, flags);
}

// Up to one request per thread.
__device__ __forceinline__ void release_at_once(DEALLOCATION_PARAMETERS) {
    __shared__ FirstOfKey keys;  // of entries, then of blocks
    __shared__ int releases[FirstOfKey::SLOTS], last_of[FirstOfKey::SLOTS], block_of[FirstOfKey::MOST_KEYS];
    const int i = threadIdx.x;
    const bool asked = i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int content = entry >= 0 ? block_table[entry] : -1;
    for (int slot = i; slot < FirstOfKey::SLOTS; slot += blockDim.x) releases[slot] = last_of[slot] = 0;
    keys.clear();
    int slot = entry >= 0 ? keys.enter(entry) : 0;
    __syncthreads();
    const bool first = entry >= 0 && keys.first[slot] == i;
    const bool held = first && content >= 0 && content < num_blocks;
    const int block = held ? content : -1, references = held ? ref[block] : 0;
    block_of[i] = block;
    int flags = 0;
    if (asked && !held) flags |= entry < 0 || (first && content != -1) ? STATUS_RANGE : STATUS_UNMAPPED;
    __syncthreads();  // all have read keys.first
    keys.clear();
    if (held) {
        slot = keys.enter(block);
        atomicAdd(&releases[slot], 1);
        atomicMax(&last_of[slot], i + 1);
    }
    __syncthreads();
    const bool last = held && last_of[slot] == i + 1;
    const int found = held ? outcome(block_of, i, block, releases[slot], last, references) : 0;
    if (found == WITHOUT_REFERENCE) flags |= STATUS_DOUBLE_FREE;
    int listed;
    const int rank = block_rank(found == FREES, &listed);
    if (asked) released[i] = found == WITHOUT_REFERENCE ? -1 : block;
    if (asked && i >= listed) freed[i] = -1;
    if (found == FREES) freed[rank] = block;
    if (entry >= 0) block_table[entry] = -1;
    if (last) ref[block] = references - min(releases[slot], max(references, 0));
    if (i == 0) num_freed[0] = listed;
    if (flags) atomicOr(status, flags);
}

extern "C" __global__ void block_deallocation(
    const int* reqs,   // [num_requests][2] sequence, logical block
    int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    int* ref,          // [num_blocks]
    int* released,     // [num_requests] block given up, -1 = none
    int* freed,        // [num_requests] blocks that became free, then -1
    int* num_freed,    // [1]
    int* workspace,    // [workspace_words] see DEALLOCATION_PARAMETERS, or null with one thread block
    int64_t num_requests,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int64_t workspace_words,
    int* status) {
    if (gridDim.x == 1) {
        release_at_once(reqs, block_table, ref, released, freed, num_freed, workspace, num_requests, num_seqs,
                        max_blocks_per_seq, num_blocks, workspace_words, status);
        return;
    }
    const int64_t i = request_of_thread();
    const int found = i < num_requests ? workspace[2 * num_blocks + i] : 0;
    int before, listed, in_tile;
    sums_before(workspace + 2 * num_blocks + num_requests, blockIdx.x, gridDim.x, &before, &listed);
    const int64_t rank = before + (int64_t)block_rank(found == FREES, &in_tile);
    if (i == 0) num_freed[0] = listed;
    if (i >= num_requests) return;
    const int block = released[i];
    const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
    if (i >= listed) freed[i] = -1;
    if (found == FREES) freed[rank] = block;
    if (found == WITHOUT_REFERENCE) released[i] = -1;
    if (entry >= 0) block_table[entry] = -1;
    if (block < 0 || workspace[num_blocks + block] != i + 1) return;
    // The last request that releases a block settles its count: as many references less, but no more than it had.
    ref[block] -= min(workspace[block], max(ref[block], 0));
    workspace[block] = 0;
    workspace[num_blocks + block] = 0;
}
