// A batch of operations is checked as a whole before anything is written: the marks per block and the verdict.
// Workspace [num_blocks + 2]: marks, then the verdict (status bits; not 0: refused), then the arrivals of the last launch.
#pragma once

#include "common.cuh"

constexpr int MARK_SOURCE = 1, MARK_TARGET = 2;

__device__ __forceinline__ bool refused(const int* workspace, int64_t num_blocks) { return workspace[num_blocks] != 0; }

// Called by all thread blocks of the last launch: reports the verdict and takes it back. An id outside comes first.
__device__ __forceinline__ void report_verdict(int* workspace, int64_t num_blocks, int* status) {
    if (!last_to_arrive(&workspace[num_blocks + 1]) || threadIdx.x != 0) return;
    const int verdict = workspace[num_blocks];
    if (verdict) atomicOr(status, verdict & STATUS_RANGE ? STATUS_RANGE : STATUS_CONFLICT);
    workspace[num_blocks] = 0;
}
