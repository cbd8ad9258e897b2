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
constexpr int MAX_WARP_HEADS = 4;
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
struct Meeting {
    float value[ATTENTION_WARPS * MAX_WARP_HEADS * MAX_HEAD_DIM];
    float max[ATTENTION_WARPS * MAX_WARP_HEADS];
    float sum[ATTENTION_WARPS * MAX_WARP_HEADS];
};

// exp2(a - b) where b is the larger of the two; two -inf give 0.
__device__ __forceinline__ float rescale(float a, float b) { return b == -INFINITY ? 0.0f : exp2f(a - b); }

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
    else if (group == 2) attend_rows<ROW_LANES, 2>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else attend_rows<ROW_LANES, 4>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
}

template <typename UnitOf, typename Sink>
__device__ void attend(const half* query, int64_t group, const Cache& cache, int64_t kv_head, float scale, int64_t low,
                       int64_t high, UnitOf unit_of, Sink sink) {
    __shared__ Meeting meeting;
    if (cache.head_dim <= 32) attend_heads<4>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else if (cache.head_dim <= 64) attend_heads<8>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else if (cache.head_dim <= 128) attend_heads<16>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    else attend_heads<32>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
}

// The work list of dynamic_workload_balancing and where the parts of a sequence wait for each other.
struct WorkList {
    const int* segments;           // [max_segments][3] sequence, first unit, end unit, or null: no list
    const int64_t* segment_range;  // [num_workers][2]
    const int* seq_segments;       // [num_seqs][2] first segment, number of segments
    float* partial_output;         // [max_segments][num_heads][head_dim], not yet divided
    float* partial_ml;             // [max_segments][num_heads][2] maximum in powers of two, sum
    int64_t max_segments, num_seqs;
};

struct Segment {
    int64_t seq, low, high;  // seq -1: it belongs to nobody
};

// A segment as the list has it; one outside its sequence of `units_of(seq)` units is empty, and flagged.
template <typename UnitsOf>
__device__ __forceinline__ Segment segment_of(const WorkList& list, int64_t at, UnitsOf units_of, int* status) {
    Segment part = {list.segments[3 * at], list.segments[3 * at + 1], list.segments[3 * at + 2]};
    const bool known = part.seq >= 0 && part.seq < list.num_seqs;
    if (!known) part.seq = -1;
    if (known && part.low >= 0 && part.low <= part.high && part.high <= units_of(part.seq)) return part;
    if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
    part.low = part.high = 0;
    return part;
}

// Put the parts of one query head together, in the order of its sequence's segments. The whole thread block calls it:
// first threads over segments for the maximum and the weights, then threads over channels with the loads of many
// segments in flight.
__device__ __forceinline__ void merge_parts(const WorkList& list, int64_t seq, int64_t head, int64_t num_heads,
                                            int64_t head_dim, half* output, float* lse) {
    __shared__ float weight[WARP_SIZE * ATTENTION_WARPS];
    __shared__ float warp_top[ATTENTION_WARPS];
    const int64_t first = max(list.seq_segments[2 * seq], 0);
    const int64_t end = min(first + max(list.seq_segments[2 * seq + 1], 0), list.max_segments);
    const auto ml = [&](int64_t segment) { return list.partial_ml + (segment * num_heads + head) * 2; };
    float top = -INFINITY;
    for (int64_t segment = first + threadIdx.x; segment < end; segment += blockDim.x) {
        if (list.segments[3 * segment] == seq) top = fmaxf(top, ml(segment)[0]);
    }
    top = warp_reduce_max(top);
    if (threadIdx.x % WARP_SIZE == 0) warp_top[threadIdx.x / WARP_SIZE] = top;
    __syncthreads();
    for (int w = 0; w < ATTENTION_WARPS; ++w) top = fmaxf(top, warp_top[w]);
    float sum = 0.0f, value[MAX_HEAD_DIM / (WARP_SIZE * ATTENTION_WARPS)] = {};
    for (int64_t tile = first; tile < end; tile += blockDim.x) {
        const int64_t own = tile + threadIdx.x;
        const bool there = own < end && list.segments[3 * own] == seq;
        const float part = there ? rescale(ml(own)[0], top) : 0.0f;
        __syncthreads();  // the weights of the tile before have been read
        weight[threadIdx.x] = part;
        sum += part != 0.0f ? part * ml(own)[1] : 0.0f;
        __syncthreads();
        const int parts = (int)min((int64_t)blockDim.x, end - tile);
        for (int k = 0; k * (int)blockDim.x < head_dim; ++k) {
            const int64_t d = threadIdx.x + k * (int64_t)blockDim.x;
            if (d >= head_dim) break;
            const float* from = list.partial_output + (tile * num_heads + head) * head_dim + d;
            float total = value[k];
#pragma unroll 8
            for (int i = 0; i < parts; ++i) {
                const float w = weight[i];
                const float held = w != 0.0f ? from[i * num_heads * head_dim] : 0.0f;
                total += w * held;
            }
            value[k] = total;
        }
    }
    sum = warp_reduce_sum(sum);
    __syncthreads();
    if (threadIdx.x % WARP_SIZE == 0) warp_top[threadIdx.x / WARP_SIZE] = sum;
    __syncthreads();
    sum = 0.0f;
    for (int w = 0; w < ATTENTION_WARPS; ++w) sum += warp_top[w];
    for (int k = 0; k * (int)blockDim.x < head_dim; ++k) {
        const int64_t d = threadIdx.x + k * (int64_t)blockDim.x;
        if (d >= head_dim) break;
        output[(seq * num_heads + head) * head_dim + d] = __float2half(sum == 0.0f ? 0.0f : value[k] / sum);
    }
    if (threadIdx.x == 0) lse[seq * num_heads + head] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
}
