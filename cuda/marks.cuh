// A batch of operations is checked as a whole before anything is written: marks per block, and one decision for all.
// Workspace [num_blocks + 4]: marks, then findings and a count (status bits and what the kernel counts, both collected
// over the checking launch), its arrivals, and the decision that the next launch reads (status bits; not 0: refused).
#pragma once

#include "common.cuh"

constexpr int MARK_SOURCE = 1, MARK_TARGET = 2;
enum BatchCell { FINDINGS, COUNTED, ARRIVALS, DECISION };

__device__ __forceinline__ bool refused(const int* workspace, int64_t num_blocks) {
    return workspace[num_blocks + DECISION] != 0;
}

// Called by all thread blocks of the checking launch once theirs is in FINDINGS and COUNTED: the last to arrive decides,
// reports, and leaves both at zero. `expected`: what must have been counted, else the batch contradicts the state. An id
// outside comes first.
__device__ __forceinline__ void decide(int* workspace, int64_t num_blocks, int64_t expected, int* status) {
    int* const cells = workspace + num_blocks;
    if (!last_to_arrive(&cells[ARRIVALS]) || threadIdx.x != 0) return;
    const int counted = atomicExch(&cells[COUNTED], 0);
    const int found = atomicExch(&cells[FINDINGS], 0) | (counted != expected ? STATUS_CONFLICT : 0);
    cells[DECISION] = found;
    if (found) atomicOr(status, found & STATUS_RANGE ? STATUS_RANGE : STATUS_CONFLICT);
}
