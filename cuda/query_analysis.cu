// How demanding each query row is: the mean square of its channels, or the normalised entropy of its block scores or
// masses; and the cache requirement that follows.
// One warp per row; lane l adds elements l, l + 32, … in order, then the lanes by the xor butterfly; lane 0 writes.
// TinyServe S:261-300, whose loop read one channel only.
#include "decision_math.cuh"

// Score of a block summed over the heads, in head order; -0 becomes +0.
__device__ float summed(const float* row, int64_t block, int64_t num_score_heads, int64_t width) {
    float total = row[block];
    for (int64_t head = 1; head < num_score_heads; ++head) total = __fadd_rn(total, row[head * width + block]);
    return positive_zero(total);
}

constexpr int MOST_WARPS = 4, STAGE_LOADS = 4, STAGE = STAGE_LOADS * 8 * WARP_SIZE;

// Add the squares of the channels of whole stages of 1,024 as lane l adds l, l + 32, …, but load them 16 bytes per lane,
// the next stage while this one is added. Gives the first channel that is left.
__device__ __forceinline__ int64_t squares_in_stages(const half* q, int64_t channels, half* staged, float* lane_total) {
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t stages = channels / STAGE;
    const uint4* from = reinterpret_cast<const uint4*>(q);
    uint4* const to = reinterpret_cast<uint4*>(staged);
    uint4 held[STAGE_LOADS] = {};
    for (int64_t stage = 0; stage <= stages; ++stage) {
        if (stage > 0) {
#pragma unroll
            for (int k = 0; k < STAGE_LOADS; ++k) to[k * WARP_SIZE + lane] = held[k];
        }
        __syncwarp();
#pragma unroll
        for (int k = 0; k < STAGE_LOADS; ++k) {
            if (stage < stages) held[k] = __ldcs(from + (stage * STAGE_LOADS + k) * WARP_SIZE + lane);
        }
        if (stage > 0) {
#pragma unroll
            for (int i = 0; i < STAGE / WARP_SIZE; ++i) {
                const float x = __half2float(staged[i * WARP_SIZE + lane]);
                *lane_total = __fadd_rn(*lane_total, __fmul_rn(x, x));
            }
        }
        __syncwarp();
    }
    return stages * STAGE;
}

extern "C" __global__ void query_analysis(
    const half* query,         // [num_rows][num_heads][head_dim]
    float* complexity,         // [num_rows]
    int* requirement,          // [num_rows] 2 high, 1 medium, 0 low
    const float* block_score,  // [num_rows][num_score_heads][max_blocks_per_seq], or null
    const int* num_scored,     // [num_rows] blocks that count, or null
    int64_t num_rows,
    int64_t num_heads,
    int64_t head_dim,
    int64_t num_score_heads,
    int64_t max_blocks_per_seq,
    int mode,  // 0 energy, 1 entropy of softmax(scale · score), 2 entropy of masses
    float scale,
    int high_permille,
    int medium_permille,
    int* status) {
    __shared__ __align__(16) half staged[MOST_WARPS][STAGE];
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t row = (int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (row >= num_rows) return;  // whole warps leave
    float value = 0.0f;
    int flags = 0;
    if (mode == 0) {
        const int64_t channels = num_heads * head_dim;
        const half* q = query + row * channels;
        float lane_total = 0.0f;
        int64_t start = 0;
        if (((unsigned long long)q & 15) == 0 && blockDim.x <= MOST_WARPS * WARP_SIZE) {
            start = squares_in_stages(q, channels, staged[threadIdx.x / WARP_SIZE], &lane_total);
        }
        for (int64_t i = start + lane; i < channels; i += WARP_SIZE) {
            const float x = __half2float(q[i]);
            lane_total = __fadd_rn(lane_total, __fmul_rn(x, x));
        }
        value = __fdiv_rn(lane_sum(lane_total), __ll2float_rn(max(channels, (int64_t)1)));
    } else {
        const int64_t given = num_scored[row];
        const int64_t counted = min(max(given, (int64_t)0), max_blocks_per_seq);
        if (counted != given) flags |= STATUS_RANGE;
        const float* scores = block_score + row * num_score_heads * max_blocks_per_seq;
        float entropy = 0.0f;
        if (mode == 1) {
            float top = -INFINITY;
            bool undefined = false;
            for (int64_t i = lane; i < counted; i += WARP_SIZE) {
                const float scaled = __fmul_rn(summed(scores, i, num_score_heads, max_blocks_per_seq), scale);
                undefined |= isnan(scaled);
                top = fmaxf(top, scaled);
            }
            top = warp_reduce_max(top);
            if (__any_sync(FULL_WARP, undefined)) top = positive_nan();
            float lane_total = 0.0f, lane_weighted = 0.0f;
            for (int64_t i = lane; i < counted; i += WARP_SIZE) {
                const float scaled = __fmul_rn(summed(scores, i, num_score_heads, max_blocks_per_seq), scale);
                const float y = __fmul_rn(__fsub_rn(scaled, top), LOG2_E);
                const float e = decision_exp2(y);
                lane_total = __fadd_rn(lane_total, e);
                lane_weighted = __fadd_rn(lane_weighted, e == 0.0f ? 0.0f : __fmul_rn(e, y));
            }
            const float total = lane_sum(lane_total);
            entropy = __fsub_rn(decision_log2(total), __fdiv_rn(lane_sum(lane_weighted), total));
        } else {
            float lane_total = 0.0f, lane_weighted = 0.0f;
            for (int64_t i = lane; i < counted; i += WARP_SIZE) {
                const float mass = summed(scores, i, num_score_heads, max_blocks_per_seq);
                lane_total = __fadd_rn(lane_total, mass);
                lane_weighted =
                    __fadd_rn(lane_weighted, mass == 0.0f ? 0.0f : __fmul_rn(mass, decision_log2(mass)));
            }
            const float total = lane_sum(lane_total);
            entropy = __fsub_rn(decision_log2(total), __fdiv_rn(lane_sum(lane_weighted), total));
        }
        value = __fdiv_rn(entropy, decision_log2(__ll2float_rn(counted > 1 ? counted : 2)));
        value = counted <= 1 ? 0.0f : value > 1.0f ? 1.0f : value < 0.0f ? 0.0f : value;
    }
    if (isnan(value)) {
        flags |= STATUS_NOT_A_NUMBER;
        value = 0.0f;
    }
    if (lane != 0) return;
    value = positive_zero(value);
    complexity[row] = value;
    requirement[row] = value > permille(high_permille) ? 2 : value > permille(medium_permille) ? 1 : 0;
    if (flags) atomicOr(status, flags);
}
