// Let each child share the first blocks of its parent: copy table entries, count one reference more on each block.
// One thread block per fork, threads over the entries; every thread block checks the whole batch by itself, so that
// nothing is written when the outcome would depend on the order. References are counted with integer atomics.
// PagedAttention, arXiv 2309.06180; the published code never raises a count above 1.
#include "common.cuh"

extern "C" __global__ void block_fork(
    const int* forks,  // [num_forks][3] parent, child, blocks to share
    int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    int* ref,          // [num_blocks]
    int* history,      // [num_seqs][max_blocks_per_seq] accesses, or null
    int64_t num_forks,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int* status) {
    const auto legal = [&](int64_t i) {
        const int64_t parent = forks[3 * i], child = forks[3 * i + 1], shared = forks[3 * i + 2];
        return parent >= 0 && parent < num_seqs && child >= 0 && child < num_seqs && shared >= 0 &&
               shared <= max_blocks_per_seq;
    };
    if (blockIdx.x >= num_forks) return;
    int flags = 0;
    for (int64_t i = threadIdx.x; i < num_forks; i += blockDim.x) {
        if (!legal(i)) {
            flags |= STATUS_RANGE;
            continue;
        }
        for (int64_t j = 0; j < num_forks; ++j) {
            if (!legal(j)) continue;
            if (forks[3 * i + 1] == forks[3 * j] || (i != j && forks[3 * i + 1] == forks[3 * j + 1])) {
                flags |= STATUS_CONFLICT;
            }
        }
    }
    const bool refused = __syncthreads_or(flags & STATUS_CONFLICT);
    if (!refused && legal(blockIdx.x)) {
        const int* from = block_table + (int64_t)forks[3 * blockIdx.x] * max_blocks_per_seq;
        const int64_t child = (int64_t)forks[3 * blockIdx.x + 1] * max_blocks_per_seq;
        const int64_t parent = from - block_table;
        for (int64_t i = threadIdx.x; i < forks[3 * blockIdx.x + 2]; i += blockDim.x) {
            const int block = from[i];
            // A count above 0 stays above 0 here, so another fork's increment cannot change the answer.
            const bool inside = block >= 0 && block < num_blocks;
            const bool held = inside && ref[block] > 0;
            const bool free = block_table[child + i] == -1;
            if (!held) flags |= inside || block == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
            if (!free) flags |= STATUS_ALREADY_MAPPED;
            if (!held || !free) continue;
            block_table[child + i] = block;
            atomicAdd(&ref[block], 1);
            if (history) history[child + i] = history[parent + i];
        }
    }
    if (flags) atomicOr(status, flags);
}
