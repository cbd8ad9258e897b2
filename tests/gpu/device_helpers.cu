// Test kernels: each calls one device helper of cuda/*.cuh on values that the host chose and returns what came of it.
// Not shipped. tests/gpu/test_device_helpers.py launches them and compares with NumPy.
#include "common.cuh"
#include "decision_math.cuh"
#include "runs.cuh"

constexpr int SHARED_HALFS = 4096;

// One thread block per case (source offset, target offset, count), all in halfs: the thread block fills shared memory
// with `poison`, loads, and hands all of it back: found[cases][SHARED_HALFS].
extern "C" __global__ void loads(const half* source, const int* cases, half* found, half poison) {
    __shared__ __align__(16) half target[SHARED_HALFS];
    const int* one = cases + 3 * blockIdx.x;
    for (int i = threadIdx.x; i < SHARED_HALFS; i += blockDim.x) target[i] = poison;
    __syncthreads();
    coalesced_load(source + one[0], target + one[1], one[2], threadIdx.x, blockDim.x);
    __syncthreads();
    for (int i = threadIdx.x; i < SHARED_HALFS; i += blockDim.x) {
        found[(int64_t)blockIdx.x * SHARED_HALFS + i] = target[i];
    }
}

// The same cases between places in global memory, by COPY_THREADS threads; what is around the target stays as it was.
// found[cases][room].
extern "C" __global__ void copies(const half* source, const int* cases, half* found, int room) {
    const int* one = cases + 3 * blockIdx.x;
    const half* from = source + one[0];
    half* target = found + (int64_t)blockIdx.x * room + one[1];
    Piece piece = piece_of(from, target, one[2], 0);
    piece.fetch();
    piece.put();
    put_rest(from, target, one[2]);
}

// One warp per row [32] of values; every lane leaves what it got: [num_rows][32].
extern "C" __global__ void warp_maxima(const float* values, float* found) {
    const int64_t at = (int64_t)blockIdx.x * WARP_SIZE + threadIdx.x;
    found[at] = warp_reduce_max(values[at]);
}

extern "C" __global__ void warp_sums(const float* values, float* found) {
    const int64_t at = (int64_t)blockIdx.x * WARP_SIZE + threadIdx.x;
    found[at] = warp_reduce_sum(values[at]);
}

// One warp per row [length]: lanes add their elements in order, then the butterfly.
extern "C" __global__ void lane_sums(const float* values, float* found, int length) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < length; i += WARP_SIZE) {
        const float value = values[(int64_t)blockIdx.x * length + i];
        sum = i < WARP_SIZE ? value : __fadd_rn(sum, value);
    }
    found[(int64_t)blockIdx.x * WARP_SIZE + threadIdx.x] = lane_sum(sum);
}

extern "C" __global__ void exp2s(const float* values, float* found, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) found[i] = decision_exp2(values[i]);
}

extern "C" __global__ void log2s(const float* values, float* found, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) found[i] = decision_log2(values[i]);
}

extern "C" __global__ void permilles(const int* values, float* found, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) found[i] = permille(values[i]);
}

// One thread block: found[0] sums before each thread, [1] the total, [2] the maximum, [3] how many threads before this
// one hold an odd value, [4] how many in all: [5][threads].
extern "C" __global__ void block_scans(const int64_t* values, int64_t* found) {
    int64_t total;
    const int64_t value = values[threadIdx.x], before = block_exclusive_scan(value, &total);
    found[threadIdx.x] = before;
    found[blockDim.x + threadIdx.x] = total;
    found[2 * blockDim.x + threadIdx.x] = block_max(value);
    int odd;
    found[3 * blockDim.x + threadIdx.x] = block_rank(value & 1, &odd);
    found[4 * blockDim.x + threadIdx.x] = odd;
}

// Every thread block adds 1 to seen[0] before it arrives; the last one writes what it sees to seen[1] and counts
// itself in seen[2].
extern "C" __global__ void arrivals(int* counter, int* seen) {
    if (threadIdx.x == 0) atomicAdd(&seen[0], 1);
    if (last_to_arrive(counter) && threadIdx.x == 0) {
        seen[1] = atomicAdd(&seen[0], 0);
        atomicAdd(&seen[2], 1);
    }
}
