// Set or add to single entries of the block tables and of the blocks' counters, as the host decided.
// One thread per edit (2 · array + operation, flat index, value). Additions are integer atomics, so their order does not
// matter; an entry that is set is named once.
#include "common.cuh"

constexpr int NUM_ARRAYS = 9, NUM_TABLES = 2, CACHED = 8, ADD = 1;

extern "C" __global__ void block_bookkeeping(
    const int64_t* edits,  // [num_edits][3]
    int* block_table,      // [num_seqs][max_blocks_per_seq], -1 = no block
    int* history,          // [num_seqs][max_blocks_per_seq]
    int* ref,              // [num_blocks], as all that follow
    int* gen,
    int* level,
    int* freq,
    int* hits,
    int* lookups,
    uint8_t* cached,
    int64_t num_edits,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int* status) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= num_edits) return;
    int* const arrays[] = {block_table, history, ref, gen, level, freq, hits, lookups};
    const int64_t which = edits[3 * i], index = edits[3 * i + 1], value = edits[3 * i + 2];
    const int64_t array = which >> 1;
    const bool adds = (which & 1) == ADD;
    const int64_t size = array < NUM_TABLES ? num_seqs * max_blocks_per_seq : num_blocks;
    if (which < 0 || array >= NUM_ARRAYS || index < 0 || index >= size || (array == CACHED && adds)) {
        atomicOr(status, STATUS_RANGE);
    } else if (array == CACHED) {
        cached[index] = (uint8_t)value;
    } else if (adds) {
        atomicAdd(&arrays[array][index], (int)value);
    } else {
        arrays[array][index] = (int)value;
    }
}
