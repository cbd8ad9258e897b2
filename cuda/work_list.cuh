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

// Bring an array's lines into the L2 cache, as far as a line per thread goes.
__device__ __forceinline__ void ask_for(const void* array, int64_t bytes) {
    const int64_t at = (int64_t)threadIdx.x * 128;
    if (at < bytes) asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(array) + at));
}

// The segments [first, end) of this thread block. Where the workers' ranges are not in order, its first thread block
// makes all that any worker has, one after the other, and the others make none. The whole thread block calls it.
__device__ __forceinline__ void own_segments(WorkList& list, const int* seq_lens, int* first, int* end, int* covered,
                                             int* status) {
    const int64_t worker = blockIdx.x;
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

// The segments that the list names, inside the `covered` ones.
__device__ __forceinline__ Parts clamped(int first, int count, int covered) {
    first = min(max(first, 0), covered);
    return {first, first + min(max(count, 0), covered - first)};
}

__device__ __forceinline__ Parts parts_of(const WorkList& list, int64_t seq, int covered) {
    return clamped(list.seq_segments[2 * seq], list.seq_segments[2 * seq + 1], covered);
}

// Whether each thread's part of the first `blockDim.x` is one: asked before the work, needed behind it.
__device__ __forceinline__ bool brings_first(const WorkList& list, const Parts& parts, int64_t seq) {
    const int at = parts.first + (int)threadIdx.x;
    return at < parts.end && list.brings(at, seq);
}

// A barrier that counts: parts of a sequence, from each thread's answer of brings_first. The whole thread block calls it.
__device__ __forceinline__ int count_parts(const WorkList& list, const Parts& parts, int64_t seq, bool brings_first) {
    int count = __syncthreads_count(brings_first);
    for (int tile = parts.first + blockDim.x; tile < parts.end; tile += blockDim.x) {
        const int at = tile + threadIdx.x;
        count += __syncthreads_count(at < parts.end && list.brings(at, seq));
    }
    return count;
}

// Whether this thread block brings the last of `count` parts of a sequence; all that the others wrote is then to be seen.
// The whole thread block calls it, behind a barrier behind its part.
__device__ __forceinline__ bool is_last(const WorkList& list, int64_t seq, int64_t kv_head, int count) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        int* const ticket = &list.tickets[seq * list.num_kv_heads + kv_head];
        int before;
        asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(ticket) : "memory");
        last = before == count - 1;
        if (last) *ticket = 0;
    }
    __syncthreads();
    return last;
}

// Both, when the part is written; `whole` tells whether every segment from the first to the last is a part.
__device__ __forceinline__ bool last_part(const WorkList& list, const Parts& parts, int64_t seq, int64_t kv_head,
                                          bool brings_first, bool* whole) {
    const int count = count_parts(list, parts, seq, brings_first);
    *whole = count == parts.end - parts.first;
    return is_last(list, seq, kv_head, count);
}

// One or four floats from the L2 cache, or zeros, without a branch, so that many are under way.
__device__ __forceinline__ void load_if(float (&held)[1], const float* from, bool there) {
    held[0] = 0.0f;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %2, 0; @p ld.global.cg.f32 %0, [%1]; }"
                 : "+f"(held[0])
                 : "l"(from), "r"((int)there));
}

__device__ __forceinline__ void load_if(float (&held)[4], const float* from, bool there) {
    held[0] = held[1] = held[2] = held[3] = 0.0f;
    asm volatile("{ .reg .pred p; setp.ne.s32 p, %5, 0; @p ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4]; }"
                 : "+f"(held[0]), "+f"(held[1]), "+f"(held[2]), "+f"(held[3])
                 : "l"(from), "r"((int)there));
}

// Put the parts of `heads` query heads from `head` on together, in the order of the segments; blocks and tokens read are
// summed to the last two where they are not null. The whole thread block calls it: a warp per head, or several that share
// its segments; lanes over 32 segments for their weights and over channels, WIDTH each, for the values, of which 8
// segments' are under way.
template <int WIDTH>
__device__ __forceinline__ void merge_heads(const WorkList& list, const Parts& parts, bool whole, int64_t seq, int head,
                                            int heads, int num_heads, int head_dim, half* output, float* lse,
                                            int* blocks_read, int* tokens_read) {
    constexpr int UNDER_WAY = 8, MOST_WARPS = 8;
    __shared__ float shared_mixed[MOST_WARPS][WARP_SIZE][WIDTH], shared_top[MOST_WARPS], shared_sum[MOST_WARPS];
    __shared__ int shared_read[MOST_WARPS][2];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    const int columns = (head_dim + WIDTH * WARP_SIZE - 1) / (WIDTH * WARP_SIZE), items = heads * columns;
    const int slices = items * 8 <= warps ? 8 : items * 4 <= warps ? 4 : items * 2 <= warps ? 2 : 1;
    const int share = (parts.end - parts.first + slices - 1) / slices, slice = warp % slices;
    const int low = parts.first + slice * share, high = min(low + share, parts.end);
#pragma unroll 1
    for (int item = warp / slices; item < items; item += warps / slices) {
        const int h = item / columns, d = (item - h * columns) * WIDTH * WARP_SIZE + lane * WIDTH;
        const bool inside = d < head_dim;
        const float4* const ml = reinterpret_cast<const float4*>(list.partial_ml) + head + h;
        const float* const values = list.partial_output + (int64_t)(head + h) * head_dim + (inside ? d : 0);
        const int64_t stride = (int64_t)num_heads * head_dim;
        float top = -INFINITY, sum = 0.0f, mixed[WIDTH] = {};
        int blocks = 0, tokens = 0;
#pragma unroll 1
        for (int start = low; start < high; start += WARP_SIZE) {
            const int at = start + lane, count = min(WARP_SIZE, high - start);
            float4 own = {-INFINITY, 0.0f, 0.0f, 0.0f};
            if (at < high && (whole || list.brings(at, seq))) own = __ldcg(ml + (int64_t)at * num_heads);
            float weight = 0.0f;
#pragma unroll 1
            for (int i = 0; i < count; i += UNDER_WAY) {
                float held[UNDER_WAY][WIDTH];
#pragma unroll
                for (int k = 0; k < UNDER_WAY; ++k) load_if(held[k], values + (start + i + k) * stride, i + k < count);
                if (i == 0) {
                    const float highest = fmaxf(top, warp_reduce_max(own.x)), shrink = rescale(top, highest);
                    weight = rescale(own.x, highest);
                    top = highest;
                    sum = sum * shrink + weight * own.y;
                    blocks += __float_as_int(own.z);
                    tokens += __float_as_int(own.w);
#pragma unroll
                    for (int j = 0; j < WIDTH; ++j) mixed[j] *= shrink;
                }
#pragma unroll
                for (int k = 0; k < UNDER_WAY; ++k) {
                    const float w = __shfl_sync(FULL_WARP, weight, (i + k) % WARP_SIZE);
                    // What a weight of 0 is for may never have been written.
#pragma unroll
                    for (int j = 0; j < WIDTH; ++j) mixed[j] += w != 0.0f ? w * held[k][j] : 0.0f;
                }
            }
        }
        sum = warp_reduce_sum(sum);
        if (blocks_read) {
            for (int step = WARP_SIZE / 2; step > 0; step /= 2) {
                blocks += __shfl_xor_sync(FULL_WARP, blocks, step);
                tokens += __shfl_xor_sync(FULL_WARP, tokens, step);
            }
        }
        if (slices > 1) {  // then every warp has one item at most
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) shared_mixed[warp][lane][j] = mixed[j];
            shared_top[warp] = top;
            shared_sum[warp] = sum;
            shared_read[warp][0] = blocks;
            shared_read[warp][1] = tokens;
            asm volatile("bar.sync %0, %1;" ::"r"(1), "r"(items * slices * WARP_SIZE) : "memory");
            if (slice != 0) break;
#pragma unroll 1
            for (int w = warp + 1; w < warp + slices; ++w) {
                const float highest = fmaxf(top, shared_top[w]);
                const float own = rescale(top, highest), others = rescale(shared_top[w], highest);
                top = highest;
                sum = sum * own + shared_sum[w] * others;
                blocks += shared_read[w][0];
                tokens += shared_read[w][1];
#pragma unroll
                for (int j = 0; j < WIDTH; ++j) mixed[j] = mixed[j] * own + shared_mixed[w][lane][j] * others;
            }
        }
        const int64_t to = seq * num_heads + head + h;
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) {
            if (inside) output[to * head_dim + d + j] = __float2half(mixed[j] * inverse);
        }
        if (lane != 0 || item != h * columns) continue;
        lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
        if (blocks_read) blocks_read[to] = blocks;
        if (tokens_read) tokens_read[to] = tokens;
    }
}

// The same where every segment from the first to the last is a part, for head_dim 64 and 128, in as few instructions as it
// takes: they run once, and fetching them is what takes the time. A warp per head, four channels a lane, UNDER_WAY parts
// at a time.
template <int UNDER_WAY>
__device__ __forceinline__ void merge_every(const WorkList& list, const Parts& parts, int seq, int head, int heads,
                                            int num_heads, int head_dim, half* output, float* lse) {
    const int d = threadIdx.x % WARP_SIZE * 4, count = parts.end - parts.first;
    const int ml_stride = 16 * num_heads, value_stride = 4 * num_heads * head_dim;  // bytes
#pragma unroll 1
    for (int h = threadIdx.x / WARP_SIZE; h < heads; h += blockDim.x / WARP_SIZE) {
        const int64_t row = (int64_t)parts.first * num_heads + head + h, to = (int64_t)seq * num_heads + head + h;
        const char* const ml = reinterpret_cast<const char*>(list.partial_ml + 4 * row);
        const char* const values = reinterpret_cast<const char*>(list.partial_output + row * head_dim + d % head_dim);
        float top = -INFINITY, sum = 0.0f;
        float4 mixed = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
        for (int start = 0; start < count; start += UNDER_WAY) {
            float2 own[UNDER_WAY];
            float4 held[UNDER_WAY];
#pragma unroll
            for (int k = 0; k < UNDER_WAY; ++k) {
                const int at = min(start + k, count - 1);  // some twice, so that no branch keeps loads apart
                own[k] = __ldcg(reinterpret_cast<const float2*>(ml + (int64_t)at * ml_stride));
                held[k] = __ldcg(reinterpret_cast<const float4*>(values + (int64_t)at * value_stride));
            }
            float highest = top;
#pragma unroll
            for (int k = 0; k < UNDER_WAY; ++k) highest = fmaxf(highest, own[k].x);
            const float base = highest == -INFINITY ? 0.0f : highest, shrink = power_of_two(top - base);
            top = highest;
            sum *= shrink;
            mixed = {mixed.x * shrink, mixed.y * shrink, mixed.z * shrink, mixed.w * shrink};
#pragma unroll
            for (int k = 0; k < UNDER_WAY; ++k) {
                const float weight = start + k < count ? power_of_two(own[k].x - base) : 0.0f;
                sum += weight * own[k].y;
                mixed.x += weight * held[k].x;
                mixed.y += weight * held[k].y;
                mixed.z += weight * held[k].z;
                mixed.w += weight * held[k].w;
            }
        }
        const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
        if (d < head_dim) {
            half2* const out = reinterpret_cast<half2*>(output + to * head_dim + d);
            out[0] = __floats2half2_rn(mixed.x * inverse, mixed.y * inverse);
            out[1] = __floats2half2_rn(mixed.z * inverse, mixed.w * inverse);
        }
        if (d == 0) lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
    }
}

// The same for every head_dim.
__device__ __forceinline__ void merge_parts(const WorkList& list, const Parts& parts, bool whole, int64_t seq,
                                            int64_t head, int64_t heads, int64_t num_heads, int64_t head_dim,
                                            half* output, float* lse, int* blocks_read, int* tokens_read) {
    const int own = (int)head, some = (int)heads, all = (int)num_heads, dim = (int)head_dim;
    int *const blocks = blocks_read, *const tokens = tokens_read;
    if (dim % 4 == 0) merge_heads<4>(list, parts, whole, seq, own, some, all, dim, output, lse, blocks, tokens);
    else merge_heads<1>(list, parts, whole, seq, own, some, all, dim, output, lse, blocks, tokens);
    __syncthreads();  // the shared memory is free again
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
#pragma unroll 1
            for (int64_t d = 0; d < head_dim; ++d) output[at * head_dim + d] = __float2half(0.0f);
            lse[at] = -INFINITY;
            if (blocks_read) blocks_read[at] = tokens_read[at] = 0;
        }
    }
}
