// The work list of dynamic_workload_balancing, and how the parts of a sequence meet in the launch that makes them: the
// last part of a sequence and KV head to arrive puts all of them together, in segment order.
#pragma once

#include "attention.cuh"

struct WorkList {
    const int* segments;           // [max_segments][3] sequence, first unit, end unit, or null: no list
    const int64_t* segment_range;  // [num_workers][2]
    const int* seq_segments;       // [num_seqs][2] first segment, number of segments
    float* partial_output;         // [max_segments][num_heads][head_dim], not yet divided
    float* partial_ml;             // [max_segments][num_heads][4] maximum in powers of two, sum, blocks and tokens read
    int* tickets;                  // [num_seqs][num_kv_heads] parts that have arrived; 0 before and after
    int64_t max_segments, num_seqs, num_workers, num_kv_heads;
    bool ordered;  // as ranges_in_order finds

    // Whether some worker makes a segment.
    __device__ bool claimed(int64_t segment) const {
        for (int64_t worker = 0; !ordered && worker < num_workers; ++worker) {
            const int64_t first = segment_range[2 * worker], end = segment_range[2 * worker + 1];
            if (first >= 0 && end <= max_segments && first <= segment && segment < end) return true;
        }
        return ordered;
    }

    // Whether a segment is a part of the sequence; without a list the launch's own parts lie one behind the other.
    __device__ bool brings(int64_t segment, int64_t seq) const {
        return !segments || (segments[3 * segment] == seq && claimed(segment));
    }
};

struct Segment {
    int seq, low, high;  // seq -1: it belongs to nobody
};

// A segment as the list has it; one outside its sequence of `units_of(seq)` units is empty, and flagged.
template <typename UnitsOf>
__device__ __forceinline__ Segment segment_of(const WorkList& list, int at, UnitsOf units_of, int* status) {
    const int* const row = list.segments + 3 * (int64_t)at;
    Segment part = {row[0], row[1], row[2]};
    const bool known = part.seq >= 0 && part.seq < list.num_seqs;
    if (!known) part.seq = -1;
    if (known && part.low >= 0 && part.low <= part.high && part.high <= units_of(part.seq)) return part;
    if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
    part.low = part.high = 0;
    return part;
}

// Whether the workers' ranges follow each other without gap or overlap from segment 0 on, so that every segment below
// `covered` is made once. The whole thread block calls it.
__device__ __forceinline__ bool ranges_in_order(const WorkList& list, int* covered) {
    bool ordered = true;
    for (int64_t worker = threadIdx.x; worker < list.num_workers; worker += blockDim.x) {
        const int64_t first = list.segment_range[2 * worker], end = list.segment_range[2 * worker + 1];
        const int64_t before = worker > 0 ? list.segment_range[2 * worker - 1] : 0;
        ordered &= first == before && first <= end && end <= list.max_segments;
    }
    *covered = list.num_workers > 0 ? (int)list.segment_range[2 * list.num_workers - 1] : 0;
    return __syncthreads_and(ordered);
}

// The segments [first, end) of this thread block. Where the workers' ranges are not in order, its first thread block
// makes all that any worker has, one after the other, and the others make none. The whole thread block calls it.
__device__ __forceinline__ void own_segments(WorkList& list, const int* seq_lens, int* first, int* end, int* covered,
                                             int* status) {
    const int64_t worker = blockIdx.x;
    // What is looked up one after the other is asked for at once, as far as a thread block of lines goes.
    const auto ask_for = [](const void* array, int64_t bytes) {
        const int64_t at = (int64_t)threadIdx.x * 128;
        if (at < bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(array) + at));
    };
    ask_for(list.segments, 12 * list.max_segments);
    ask_for(list.seq_segments, 8 * list.num_seqs);
    ask_for(seq_lens, 4 * list.num_seqs);
    const int64_t given_first = worker < list.num_workers ? list.segment_range[2 * worker] : 0;
    const int64_t given_end = worker < list.num_workers ? list.segment_range[2 * worker + 1] : 0;
    const bool legal = given_first >= 0 && given_first <= given_end && given_end <= list.max_segments;
    if (!legal && threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
    list.ordered = ranges_in_order(list, covered);
    *first = list.ordered ? (int)given_first : 0;
    *end = list.ordered ? (int)given_end : worker == 0 ? (int)list.max_segments : 0;
    if (!list.ordered) *covered = (int)list.max_segments;
}

// Segments that the list names for a sequence.
struct Parts {
    int first, end;
};

__device__ __forceinline__ Parts parts_of(const WorkList& list, int64_t seq, int covered) {
    const int first = min(max(list.seq_segments[2 * seq], 0), covered);
    return {first, first + min(max(list.seq_segments[2 * seq + 1], 0), covered - first)};
}

// Whether each thread's part of the first `blockDim.x` is one: asked before the work, needed behind it.
__device__ __forceinline__ bool brings_first(const WorkList& list, const Parts& parts, int64_t seq) {
    const int at = parts.first + (int)threadIdx.x;
    return at < parts.end && list.brings(at, seq);
}

// Whether this thread block brings the last of a sequence's parts; all that the others wrote is then to be seen. `whole`
// tells whether every segment from the first to the last is a part. The whole thread block calls it, when its part is
// written.
__device__ __forceinline__ bool last_part(const WorkList& list, const Parts& parts, int64_t seq, int64_t kv_head,
                                          bool brings_first, bool* whole) {
    __shared__ bool last;
    int expected = __syncthreads_count(brings_first);
    for (int tile = parts.first + blockDim.x; tile < parts.end; tile += blockDim.x) {
        const int at = tile + threadIdx.x;
        expected += __syncthreads_count(at < parts.end && list.brings(at, seq));
    }
    *whole = expected == parts.end - parts.first;
    if (threadIdx.x == 0) {
        int* const ticket = &list.tickets[seq * list.num_kv_heads + kv_head];
        __threadfence();
        last = atomicAdd(ticket, 1) == expected - 1;
        if (last) *ticket = 0;
        __threadfence();
    }
    __syncthreads();
    return last;
}

// Put the parts of `heads` query heads from `head` on together, in the order of the segments; blocks and tokens read are
// summed to the last two where they are not null. The whole thread block calls it: warps over heads and lanes over
// segments for the weights, threads over four channels of a head each with the loads of many segments under way.
__device__ __forceinline__ void merge_parts(const WorkList& list, const Parts& parts, bool whole, int64_t seq,
                                            int64_t head, int64_t heads, int64_t num_heads, int64_t head_dim,
                                            half* output, float* lse, int* blocks_read, int* tokens_read) {
    constexpr int THREADS = WARP_SIZE * ATTENTION_WARPS, MERGED = 8, ITEMS = MERGED * MAX_HEAD_DIM / 4 / THREADS;
    constexpr int OWN_HEADS = MERGED / ATTENTION_WARPS, UNDER_WAY = 16;
    __shared__ float weight[MERGED][THREADS];
    __shared__ float total[MERGED];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    const bool wide = head_dim % 4 == 0;
    const int vectors = (int)((head_dim + 3) / 4);
    const auto ours = [&](int segment) { return segment < parts.end && (whole || list.brings(segment, seq)); };
    const auto element = [&](const float* from, int d) { return d < head_dim ? __ldcg(from + d) : 0.0f; };
    for (int begin = 0; begin < (int)heads; begin += MERGED) {
        const int some = min(MERGED, (int)heads - begin);
        float4 value[ITEMS] = {}, held[UNDER_WAY];
        // The values of the segments from `from` on for the thread's k-th item; behind the last one the last again.
        const auto ask = [&](int k, int from) {
            const int item = min((int)threadIdx.x + k * THREADS, some * vectors - 1), h = item / vectors, d = item % vectors;
            const float* const first = list.partial_output + (head + begin + h) * head_dim;
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) {
                const float* const row = first + min(from + i, parts.end - 1) * num_heads * head_dim;
                if (wide) held[i] = __ldcg(reinterpret_cast<const float4*>(row) + d);
                else held[i] = {element(row, 4 * d), element(row, 4 * d + 1), element(row, 4 * d + 2), element(row, 4 * d + 3)};
            }
        };
        ask(0, parts.first);
        // Maximum, sum, blocks and tokens of a part: of the first 32 parts in registers, the lane's own.
        const auto ml = [&](int at, int h) {
            const float4 none = {-INFINITY, 0.0f, 0.0f, 0.0f};
            if (h >= some || !ours(at)) return none;
            return __ldcg(reinterpret_cast<const float4*>(list.partial_ml) + at * num_heads + head + begin + h);
        };
        float4 own[OWN_HEADS];
        float top[OWN_HEADS], sum[OWN_HEADS] = {};
        int blocks[OWN_HEADS] = {}, tokens[OWN_HEADS] = {};
#pragma unroll
        for (int i = 0; i < OWN_HEADS; ++i) own[i] = ml(parts.first + lane, warp + i * ATTENTION_WARPS);
#pragma unroll
        for (int i = 0; i < OWN_HEADS; ++i) {
            top[i] = own[i].x;
            for (int at = parts.first + lane + WARP_SIZE; at < parts.end; at += WARP_SIZE) {
                top[i] = fmaxf(top[i], ml(at, warp + i * ATTENTION_WARPS).x);
            }
            top[i] = warp_reduce_max(top[i]);
        }
        for (int tile = parts.first; tile < parts.end; tile += THREADS) {
            __syncthreads();  // the weights of the tile before have been read
#pragma unroll
            for (int i = 0; i < OWN_HEADS; ++i) {
                const int h = warp + i * ATTENTION_WARPS;
                for (int at = lane; h < some && at < THREADS && tile + at < parts.end; at += WARP_SIZE) {
                    const float4 part = tile + at < parts.first + WARP_SIZE ? own[i] : ml(tile + at, h);
                    weight[h][at] = rescale(part.x, top[i]);
                    sum[i] += part.x != -INFINITY ? weight[h][at] * part.y : 0.0f;
                    blocks[i] += __float_as_int(part.z);
                    tokens[i] += __float_as_int(part.w);
                }
            }
            __syncthreads();
            const int count = min(THREADS, parts.end - tile);
#pragma unroll
            for (int k = 0; k < ITEMS; ++k) {
                const int h = ((int)threadIdx.x + k * THREADS) / vectors;
                if (h >= some) continue;
                float4 mixed = value[k];
                for (int start = 0; start < count; start += UNDER_WAY) {
                    if (k > 0 || start > 0 || tile > parts.first) ask(k, tile + start);
#pragma unroll
                    for (int i = 0; i < UNDER_WAY; ++i) {
                        // What a weight of 0 is for may never have been written.
                        const float w = start + i < count ? weight[h][start + i] : 0.0f;
                        mixed.x += w != 0.0f ? w * held[i].x : 0.0f;
                        mixed.y += w != 0.0f ? w * held[i].y : 0.0f;
                        mixed.z += w != 0.0f ? w * held[i].z : 0.0f;
                        mixed.w += w != 0.0f ? w * held[i].w : 0.0f;
                    }
                }
                value[k] = mixed;
            }
        }
#pragma unroll
        for (int i = 0; i < OWN_HEADS; ++i) {
            const int h = warp + i * ATTENTION_WARPS;
            if (h >= some) continue;
            const float all = warp_reduce_sum(sum[i]);
            for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
                blocks[i] += __shfl_xor_sync(FULL_WARP, blocks[i], width);
                tokens[i] += __shfl_xor_sync(FULL_WARP, tokens[i], width);
            }
            if (lane != 0) continue;
            const int64_t at = seq * num_heads + head + begin + h;
            total[h] = all;
            lse[at] = all == 0.0f ? -INFINITY : top[i] * LN_2 + logf(all);
            if (blocks_read) blocks_read[at] = blocks[i];
            if (tokens_read) tokens_read[at] = tokens[i];
        }
        __syncthreads();
        half* const to = output + (seq * num_heads + head + begin) * head_dim;
#pragma unroll
        for (int k = 0; k < ITEMS; ++k) {
            const int item = threadIdx.x + k * THREADS, h = item / vectors, d = item % vectors;
            if (h >= some) continue;
            const auto put = [&](int at, float mixed) {
                const half out = __float2half(total[h] == 0.0f ? 0.0f : mixed / total[h]);
                if (at < head_dim) to[h * head_dim + at] = out;
            };
            put(4 * d, value[k].x);
            put(4 * d + 1, value[k].y);
            put(4 * d + 2, value[k].z);
            put(4 * d + 3, value[k].w);
        }
        __syncthreads();
    }
}

// A sequence of which no worker brings a part has none: output 0. The thread block of a KV head calls it.
__device__ __forceinline__ void write_empty(const WorkList& list, int covered, int64_t kv_head, int64_t group,
                                            int64_t num_heads, int64_t head_dim, half* output, float* lse,
                                            int* blocks_read = nullptr, int* tokens_read = nullptr) {
    for (int64_t seq = threadIdx.x; seq < list.num_seqs; seq += blockDim.x) {
        const Parts parts = parts_of(list, seq, covered);
        bool any = false;
        for (int at = parts.first; at < parts.end && !any; ++at) any = list.brings(at, seq);
        for (int64_t h = 0; h < group && !any; ++h) {
            const int64_t at = seq * num_heads + kv_head * group + h;
            for (int64_t d = 0; d < head_dim; ++d) output[at * head_dim + d] = __float2half(0.0f);
            lse[at] = -INFINITY;
            if (blocks_read) blocks_read[at] = tokens_read[at] = 0;
        }
    }
}
