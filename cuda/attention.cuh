// Attention of a KV head's query heads over a run of blocks, in one pass with a running maximum and sum: what
// flash_paged_attention and query_aware_paged_attention share (Milakov & Gimelshein, arXiv 1805.02867).
//
// A warp reads a block's tokens in rows of 16 bytes per lane:
//
//     lane        0 … ROW_LANES-1 | ROW_LANES … | …       ROW_LANES lanes hold one token's head_dim channels
//     load j      token t0 + j·ROWS + 0 | … + 1 | …       UNROLL loads of K and of V are in flight per lane
//
// and serves up to HEADS query heads with what it read. Further heads of the group are other warps' (which find the same
// K and V in L1) or further rounds'. Every row of lanes has its own maximum, sum and values; they meet at the end.
#pragma once

#include "common.cuh"

constexpr int ATTENTION_WARPS = 4;
constexpr int UNROLL = 4;
constexpr int LANE_CHANNELS = 8;
constexpr int MAX_HEAD_DIM = WARP_SIZE * LANE_CHANNELS;
constexpr float LOG2_OF_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;

// One layer's pools and the shape of its tokens.
struct Cache {
    const half* key;    // [num_blocks][block_size][num_kv_heads][head_dim]
    const half* value;  // as key
    int64_t num_blocks, block_size, num_kv_heads, head_dim;
};

// Shared memory in which the warps of a thread block meet, large enough for every form.
struct __align__(16) Meeting {
    float value[ATTENTION_WARPS * 4 * MAX_HEAD_DIM];
    float max[ATTENTION_WARPS * 8];
    float sum[ATTENTION_WARPS * 8];
};

// exp2(a - b) where b is the larger of the two; two -inf give 0.
__device__ __forceinline__ float rescale(float a, float b) { return b == -INFINITY ? 0.0f : exp2f(a - b); }

// exp2, 0 where it is below the smallest normal number: one instruction.
__device__ __forceinline__ float power_of_two(float exponent) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
    return power;
}

// Eight channels of a row, 0 behind its end.
__device__ __forceinline__ uint4 load_channels(const half* row, int channel, int head_dim, bool wide) {
    uint4 held = {0, 0, 0, 0};
    if (wide) {
        if (channel < head_dim) held = *reinterpret_cast<const uint4*>(row + channel);
        return held;
    }
    unsigned* words = reinterpret_cast<unsigned*>(&held);
#pragma unroll
    for (int i = 0; i < LANE_CHANNELS; ++i) {
        const unsigned bits = channel + i < head_dim ? __half_as_ushort(row[channel + i]) : 0;
        words[i / 2] |= bits << (i % 2 * 16);
    }
    return held;
}

__device__ __forceinline__ void to_floats(const uint4& held, float (&out)[LANE_CHANNELS]) {
    const half2* pairs = reinterpret_cast<const half2*>(&held);
#pragma unroll
    for (int i = 0; i < LANE_CHANNELS / 2; ++i) {
        const float2 pair = __half22float2(pairs[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

// Attend `group` query heads [group][head_dim] over the units [low, high). `unit_of(unit, block, tokens)` names the block
// of a unit and its valid tokens, 0 to skip it. `sink(head, channel, value, maximum, sum)` takes the values, not yet
// divided by the sum, and for channel 0 what the log-sum-exp is made of; the maximum is in powers of two.
// The whole thread block of ATTENTION_WARPS warps calls it.
template <int ROW_LANES, int HEADS, typename UnitOf, typename Sink>
__device__ void attend_rows(const half* query, int64_t group, const Cache& cache, int64_t kv_head, float scale,
                            int64_t low, int64_t high, UnitOf unit_of, Sink sink, Meeting& meeting) {
    constexpr int ROWS = WARP_SIZE / ROW_LANES;
    constexpr int CHANNELS = ROW_LANES * LANE_CHANNELS;
    float (*const warp_value)[HEADS][CHANNELS] = reinterpret_cast<float (*)[HEADS][CHANNELS]>(meeting.value);
    float (*const warp_max)[HEADS] = reinterpret_cast<float (*)[HEADS]>(meeting.max);
    float (*const warp_sum)[HEADS] = reinterpret_cast<float (*)[HEADS]>(meeting.sum);
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const int row = lane / ROW_LANES, channel = lane % ROW_LANES * LANE_CHANNELS;
    const int head_dim = (int)cache.head_dim;
    const int64_t token_stride = cache.num_kv_heads * cache.head_dim;
    const bool wide = head_dim % LANE_CHANNELS == 0 &&
                      (((unsigned long long)cache.key | (unsigned long long)cache.value) & 15) == 0;
    int head_warps = 1;
    while (head_warps < ATTENTION_WARPS && head_warps * HEADS < group) head_warps *= 2;
    const int token_warps = ATTENTION_WARPS / head_warps;

    for (int64_t first = 0; first < group; first += head_warps * HEADS) {
        const int64_t own_head = first + warp % head_warps * HEADS;
        float q[HEADS][LANE_CHANNELS], mixed[HEADS][LANE_CHANNELS], top[HEADS], sum[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            top[h] = -INFINITY;
            sum[h] = 0.0f;
#pragma unroll
            for (int k = 0; k < LANE_CHANNELS; ++k) {
                const bool there = own_head + h < group && channel + k < head_dim;
                q[h][k] = there ? __half2float(query[(own_head + h) * head_dim + channel + k]) * scale * LOG2_OF_E : 0.0f;
                mixed[h][k] = 0.0f;
            }
        }
        for (int64_t unit = own_head < group ? low + warp / head_warps : high; unit < high; unit += token_warps) {
            int64_t block;
            int tokens;
            unit_of(unit, block, tokens);
            const int64_t at = pool_offset(block, 0, kv_head, 0, cache.block_size, cache.num_kv_heads, head_dim);
            const half* const keys = cache.key + at;
            const half* const values = cache.value + at;
            for (int start = 0; start < tokens; start += UNROLL * ROWS) {
                uint4 key[UNROLL], value[UNROLL];
                float score[HEADS][UNROLL];
#pragma unroll
                for (int j = 0; j < UNROLL; ++j) {
                    const int token = start + j * ROWS + row;
                    const bool there = token < tokens;  // what lies behind the end may be anything, NaN included
                    key[j] = load_channels(keys + token * token_stride, channel, there ? head_dim : 0, wide);
                    value[j] = load_channels(values + token * token_stride, channel, there ? head_dim : 0, wide);
                }
#pragma unroll
                for (int j = 0; j < UNROLL; ++j) {
                    float k[LANE_CHANNELS];
                    to_floats(key[j], k);
#pragma unroll
                    for (int h = 0; h < HEADS; ++h) {
                        float dot = 0.0f;
#pragma unroll
                        for (int i = 0; i < LANE_CHANNELS; ++i) dot += q[h][i] * k[i];
#pragma unroll
                        for (int width = ROW_LANES / 2; width > 0; width /= 2) {
                            dot += __shfl_xor_sync(FULL_WARP, dot, width);
                        }
                        score[h][j] = start + j * ROWS + row < tokens ? dot : -INFINITY;
                    }
                }
#pragma unroll
                for (int h = 0; h < HEADS; ++h) {
                    float highest = top[h];
#pragma unroll
                    for (int j = 0; j < UNROLL; ++j) highest = fmaxf(highest, score[h][j]);
                    const float base = highest == -INFINITY ? 0.0f : highest;
                    const float shrink = exp2f(top[h] - base);
                    top[h] = highest;
                    sum[h] *= shrink;
#pragma unroll
                    for (int j = 0; j < UNROLL; ++j) {
                        score[h][j] = exp2f(score[h][j] - base);
                        sum[h] += score[h][j];
                    }
#pragma unroll
                    for (int i = 0; i < LANE_CHANNELS; ++i) mixed[h][i] *= shrink;
                }
#pragma unroll
                for (int j = 0; j < UNROLL; ++j) {
                    float v[LANE_CHANNELS];
                    to_floats(value[j], v);
#pragma unroll
                    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
                        for (int i = 0; i < LANE_CHANNELS; ++i) mixed[h][i] += score[h][j] * v[i];
                    }
                }
            }
        }
        // The rows of a warp meet by shuffles, the warps in shared memory.
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
#pragma unroll
            for (int width = ROW_LANES; width < WARP_SIZE; width *= 2) {
                const float other = __shfl_xor_sync(FULL_WARP, top[h], width);
                const float highest = fmaxf(top[h], other);
                const float own_part = rescale(top[h], highest), other_part = rescale(other, highest);
                sum[h] = sum[h] * own_part + __shfl_xor_sync(FULL_WARP, sum[h], width) * other_part;
#pragma unroll
                for (int i = 0; i < LANE_CHANNELS; ++i) {
                    const float there = __shfl_xor_sync(FULL_WARP, mixed[h][i], width);
                    mixed[h][i] = mixed[h][i] * own_part + there * other_part;
                }
                top[h] = highest;
            }
            if (row == 0) {
#pragma unroll
                for (int i = 0; i < LANE_CHANNELS; ++i) warp_value[warp][h][channel + i] = mixed[h][i];
            }
            if (lane == 0) {
                warp_max[warp][h] = top[h];
                warp_sum[warp][h] = sum[h];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < head_warps * HEADS * head_dim; i += blockDim.x) {
            const int h = i / head_dim, d = i % head_dim, from = h / HEADS;
            if (first + h >= group) break;
            float highest = -INFINITY, total = 0.0f, value = 0.0f;
            for (int w = from; w < ATTENTION_WARPS; w += head_warps) highest = fmaxf(highest, warp_max[w][h % HEADS]);
            for (int w = from; w < ATTENTION_WARPS; w += head_warps) {
                const float part = rescale(warp_max[w][h % HEADS], highest);
                total += part * warp_sum[w][h % HEADS];
                value += part * warp_value[w][h % HEADS][d];
            }
            sink(first + h, d, value, highest, total);
        }
        __syncthreads();  // the shared memory is free again
    }
}

template <int ROW_LANES, typename UnitOf, typename Sink>
__device__ void attend_heads(const half* query, int64_t group, const Cache& cache, int64_t kv_head, float scale,
                             int64_t low, int64_t high, UnitOf unit_of, Sink sink, Meeting& meeting) {
    if (group == 1) attend_rows<ROW_LANES, 1>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else attend_rows<ROW_LANES, 2>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
}

// The plain form, for every shape.
template <typename UnitOf, typename Sink>
__device__ void attend_plainly(const half* query, int64_t group, const Cache& cache, int64_t kv_head, float scale,
                               int64_t low, int64_t high, UnitOf unit_of, Sink sink, Meeting& meeting) {
    if (cache.head_dim <= 32) attend_heads<4>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else if (cache.head_dim <= 64) attend_heads<8>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else if (cache.head_dim <= 128) attend_heads<16>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else attend_heads<32>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
}
