// Attention over a paged cache in one pass over K and V; split over workers when a work list is given.
// One thread block per (sequence, KV head), or per (worker, KV head) over the worker's segments; the query heads of a
// group share what is read. attention_stream.cuh draws it for head_dim 64 and 128 and blocks of a multiple of 16 tokens,
// with four warps, or eight (_wide) where there are no more thread blocks than SMs; attention.cuh for every other shape
// (_plain). With a list, a segment that is not its whole sequence leaves its values, maximum and sum, and the last one of
// a sequence to be done puts them together in segment order (work_list.cuh). It may start before the launch before it has
// ended (common.cuh). Text that runs once is kept short: fetching it takes longer than executing it.
// TinyServe S:541-553; online softmax: Milakov & Gimelshein, arXiv 1805.02867; split KV: Flash-Decoding.
#include "attention_stream.cuh"

#define FLASH_PARAMETERS                                                                                              \
    const half *query, const half *key_cache, const half *value_cache, const int *block_table, const int *seq_lens,   \
        half *output, float *lse, const int *segments, const int64_t *segment_range, const int *seq_segments,         \
        float *partial_output, float *partial_ml, int *tickets, int64_t num_seqs, int64_t num_heads,                  \
        int64_t head_dim, int64_t num_blocks, int64_t block_size, int64_t num_kv_heads, int64_t max_blocks_per_seq,   \
        int64_t max_segments, int64_t num_workers, float scale, int *status

// What a thread block of either form is at: the call, the part under way, and where its values go.
struct Flash {
    const half* query;
    const int* block_table;
    const int* seq_lens;
    half* output;
    float* lse;
    int num_blocks, max_blocks_per_seq, block_size, most_tokens;  // of a sequence
    int num_heads, head_dim, worker, kv_head, group, head, covered;
    int* status;
    WorkList list;
    int2 named;  // first segment and number of segments of the part's sequence, as the list has it
    Parts parts;
    int seq;
    int count;  // of the sequence's parts
    int asked;  // the sequence of this thread's one of the parts
    bool inside, whole, own_ordered;

    // Quotients by block_size and by the tiles of a block, which is mostly one.
    __device__ __forceinline__ unsigned blocks_of(unsigned tokens) const {
        return block_size == TILE ? (tokens + TILE - 1) / TILE : (tokens + block_size - 1) / (unsigned)block_size;
    }

    // A quotient that is only a guess where the numbers are large.
    __device__ __forceinline__ static int about(int numerator, int denominator) {
        return (int)__fdividef((float)numerator + 0.5f, (float)denominator);
    }

    // While the launch before this one may still be running: bring into L2 what will be needed if all sequences are as long
    // as the one guessed and workers share them evenly, lines of the list and each warp's first AHEAD tiles of K and V.
    // What is read here, lengths and table entries, may be about to change: it only says where to look.
    template <int AHEAD>
    __device__ __forceinline__ void ask_ahead(const Cache& cache) const {
        const int at = worker, num_seqs = (int)list.num_seqs, workers = (int)list.num_workers;
        const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
        const auto ask = [](const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); };
        const int each = list.segments ? max(about(workers, num_seqs), 1) : 1;  // workers of a sequence
        const int seq = about(at, each);
        if (seq < num_seqs && block_size == TILE) {
            // Past L1, which must not keep what may be about to change.
            const int units = min((int)blocks_of((unsigned)max(__ldcg(seq_lens + seq), 0)), max_blocks_per_seq);
            const int of = at - seq * each, low = max(about(of * units, each), 0);
            const int high = min(about((of + 1) * units, each), units);
            const int* const entries = block_table + (int64_t)seq * max_blocks_per_seq;
            int block[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                const int unit = low + warp + k * warps;
                block[k] = unit < high ? __ldcg(entries + unit) : -1;
            }
            if (list.segments && warp == 0 && 8 * lane < workers) ask(list.segment_range + 16 * lane);
            if (list.segments && warp == 1 && at < list.max_segments) {
                if (lane < 2) ask(lane ? list.seq_segments + 2 * seq : list.segments + 3 * at);
            }
            if (warp == 2 && 64 * lane < group * head_dim) {
                ask(query + ((int64_t)seq * num_heads + head) * head_dim + 64 * lane);
            }
            if (warp == 3 && low + 32 * lane < high) ask(entries + low + 32 * lane);
#pragma unroll
            for (int k = 0; k < AHEAD; ++k) {
                if (block[k] < 0 || block[k] >= num_blocks) continue;
                const int64_t row = ((int64_t)block[k] * TILE + lane / 2) * cache.num_kv_heads + kv_head;
                ask(cache.key + row * head_dim + lane % 2 * (head_dim / 2));
                ask(cache.value + row * head_dim + lane % 2 * (head_dim / 2));
            }
        }
    }

    // Read what the list says: its segments for this thread block are [first, end). Returns the first, without its length.
    __device__ __forceinline__ Part start(int& first, int& end) {
        const int at = worker, num_seqs = (int)list.num_seqs, workers = (int)list.num_workers;
        first = at;
        end = at < num_seqs ? at + 1 : at;
        Part part = {at < num_seqs ? at : -1, 0, max_blocks_per_seq, 0};
        if (list.segments) {
            int64_t given_first = 0, given_end = 0;
            if (at < workers) {
                given_first = list.segment_range[2 * at];
                given_end = list.segment_range[2 * at + 1];
            }
            if (at < list.max_segments) part = listed(at);  // what it is where every worker has one
            own_ordered = in_order(threadIdx.x);
            if (workers > 0) covered = (int)min(max(list.segment_range[2 * workers - 1], (int64_t)0), list.max_segments);
            const bool legal = given_first >= 0 && given_first <= given_end && given_end <= list.max_segments;
            if (!legal && threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
            first = legal ? (int)given_first : 0;
            end = legal ? (int)given_end : 0;
            if (first != at || end <= first) part = end > first ? row(first) : Part{-1, 0, 0, 0};
            else known(part);
        }
        return part;
    }

    // Whether a worker's range follows the one before.
    __device__ __forceinline__ bool in_order(int worker) const {
        if (worker >= list.num_workers) return true;
        const int64_t first = list.segment_range[2 * worker], end = list.segment_range[2 * worker + 1];
        const int64_t before = worker > 0 ? list.segment_range[2 * worker - 1] : 0;
        return first == before && first <= end && end <= list.max_segments;
    }

    // Once the first tiles are under way: whether the workers' ranges are not in order after all. Then the first thread
    // block makes all that any worker has, one after the other, and the others make none.
    __device__ __forceinline__ bool again(int& first, int& end) {
        if (!list.segments) return false;
        bool ordered = own_ordered;
        for (int one = threadIdx.x + blockDim.x; one < list.num_workers; one += blockDim.x) ordered &= in_order(one);
        list.ordered = __syncthreads_and(ordered);
        if (list.ordered) return false;
        covered = (int)list.max_segments;
        first = 0;
        end = worker == 0 ? covered : 0;
        return true;
    }

    __device__ __forceinline__ void known(Part& part) const {
        if (part.seq >= 0 && part.seq < list.num_seqs) return;
        if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        part.seq = -1;
    }

    // A part as the list has it, without its length.
    __device__ __forceinline__ Part listed(int at) const {
        if (!list.segments) return {at, 0, max_blocks_per_seq, 0};
        const int* const own = list.segments + 3 * (int64_t)at;
        return {own[0], own[1], own[2], 0};
    }

    // The same, and none where no worker makes it.
    __device__ __forceinline__ Part row(int at) const {
        Part part = listed(at);
        if (!list.segments) return part;
        if (list.claimed(at)) known(part);
        else part.seq = -1;
        return part;
    }

    __device__ __forceinline__ void check(Part& part) const {
        if (part.seq < 0) return;
        const int given = seq_lens[part.seq], length = min(max(given, 0), most_tokens);
        part.length = length;
        const int blocks = (int)blocks_of((unsigned)length);
        if (!list.segments) part.high = blocks;
        const bool inside = part.low >= 0 && part.low <= part.high && part.high <= blocks;
        if ((!inside || given != length) && threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        if (!inside) part.low = part.high = 0;
    }

    __device__ __forceinline__ int entry(const Part& part, int unit) const {
        const bool there = part.seq >= 0 && unit >= 0 && unit < part.high && unit < max_blocks_per_seq;
        return there ? block_table[(int64_t)part.seq * max_blocks_per_seq + unit] : -1;
    }

    __device__ __forceinline__ unsigned unit(const Part& part, int unit, int entry, int& tokens) const {
        tokens = min(block_size, part.length - unit * block_size);
        if (entry >= 0 && entry < num_blocks) return entry;
        atomicOr(status, entry == -1 ? STATUS_UNMAPPED : STATUS_RANGE);
        return tokens = 0;
    }

    __device__ __forceinline__ void begin(int at, const Part& part) {
        named = {at, 1};
        const int* const own = list.seq_segments + 2 * (int64_t)part.seq;
        if (list.segments) named = {own[0], own[1]};
    }

    __device__ __forceinline__ void settle(int at, const Part& part) {
        parts = {named.x, named.x + 1};
        if (list.segments) parts = clamped(named.x, named.y, covered);
        inside = parts.first <= at && at < parts.end;
        whole = inside && parts.end - parts.first == 1;
        const int own = parts.first + (int)threadIdx.x;
        asked = inside && !whole && own < parts.end ? list.segments[3 * own] : -1;
        seq = part.seq;
    }

    __device__ __forceinline__ void sink(int at, const Part& part, int h, int d, float value, float top,
                                         float sum) const {
        if (whole) {
            const int64_t to = (int64_t)part.seq * num_heads + head + h;
            output[to * head_dim + d] = __float2half(sum == 0.0f ? 0.0f : value / sum);
            if (d == 0) lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
        } else {
            const int64_t to = (int64_t)at * num_heads + head + h;
            list.partial_output[to * head_dim + d] = value;
            if (d == 0) reinterpret_cast<float2*>(list.partial_ml)[2 * to] = {top, sum};
        }
    }

    // The same for two channels, the first of them even.
    __device__ __forceinline__ void sink(int at, const Part& part, int h, int d, float2 value, float top,
                                         float sum) const {
        if (whole) {
            const int64_t to = (int64_t)part.seq * num_heads + head + h;
            const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
            const half2 pair = __floats2half2_rn(value.x * inverse, value.y * inverse);
            *reinterpret_cast<half2*>(output + to * head_dim + d) = pair;
            if (d == 0) lse[to] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
        } else {
            const int64_t to = (int64_t)at * num_heads + head + h;
            *reinterpret_cast<float2*>(list.partial_output + to * head_dim + d) = value;
            if (d == 0) reinterpret_cast<float2*>(list.partial_ml)[2 * to] = {top, sum};
        }
    }

    // A barrier behind the warps' meeting.
    __device__ __forceinline__ void meet() {
        const bool brings = asked == seq && list.claimed(parts.first + (int)threadIdx.x);
        count = count_parts(list, parts, seq, brings);
    }

    // Whether all of the sequence's parts are there now, and this thread block is to put them together.
    __device__ __forceinline__ bool is_finished() const {
        return !whole && inside && is_last(list, seq, kv_head, count);
    }

    // Whether every segment from its first to its last part is one.
    __device__ __forceinline__ bool every() const { return count == parts.end - parts.first; }

    // What is left to the first worker: sequences without a part are nobody else's to flag and to write.
    __device__ __forceinline__ void others() const {
        if (!list.segments || worker != 0) return;
        for (int64_t seq = threadIdx.x; seq < list.num_seqs; seq += blockDim.x) {
            if (seq_lens[seq] < 0 || seq_lens[seq] > most_tokens) atomicOr(status, STATUS_RANGE);
        }
        write_empty(list, covered, kv_head, group, num_heads, head_dim, output, lse);
    }
};

#define FLASH_CALL(worker, kv_head)                                                                                   \
    const int group = (int)num_heads / (int)num_kv_heads;                                                             \
    const Cache cache = {key_cache, value_cache, num_blocks, block_size, num_kv_heads, head_dim};                     \
    Flash call = {query, block_table, seq_lens, output, lse, (int)num_blocks, (int)max_blocks_per_seq,                \
                  (int)block_size, (int)min(max_blocks_per_seq * block_size, (int64_t)0x7fffffff), (int)num_heads,    \
                  (int)head_dim, worker, kv_head, group, kv_head * group, 0, status,                                  \
                  {segments, segment_range, seq_segments, partial_output, partial_ml, tickets, max_segments,          \
                   num_seqs, num_workers, num_kv_heads, true}}

// What the fast forms do, with a thread block of WARPS warps; the three arrays of halfs start at multiples of 16 bytes.
template <int WARPS>
__device__ __forceinline__ void attend_fast(Flash& call, const half* query, const Cache& cache, float scale,
                                            StreamMeeting<WARPS>& meeting) {
    const int heads = call.num_heads, head = call.head, group = call.group, kv_head = call.kv_head;
    const auto address = [](const void* pointer) { return (unsigned long long)pointer; };
    if (((address(query) | address(cache.key) | address(cache.value)) & 15) != 0) {
        atomicOr(call.status, STATUS_RANGE);
        return;
    }
    int first, end;
    const Part part = call.start(first, end);
    if (cache.head_dim == 128) {
        attend_stream<2, WARPS>(call, query, heads, head, group, cache, kv_head, scale, part, first, end, meeting);
    } else {
        attend_stream<1, WARPS>(call, query, heads, head, group, cache, kv_head, scale, part, first, end, meeting);
    }
}

extern "C" __global__ void __launch_bounds__(128, 2) flash_paged_attention(
    const half* query,             // [num_seqs][num_heads][head_dim]
    const half* key_cache,         // [num_blocks][block_size][num_kv_heads][head_dim]
    const half* value_cache,       // as key_cache
    const int* block_table,        // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,           // [num_seqs] tokens
    half* output,                  // [num_seqs][num_heads][head_dim]
    float* lse,                    // [num_seqs][num_heads], -inf for no token
    const int* segments,           // [max_segments][3] sequence, first block, end block, or null, as the next five
    const int64_t* segment_range,  // [num_workers][2]
    const int* seq_segments,       // [num_seqs][2]
    float* partial_output,         // [max_segments][num_heads][head_dim]
    float* partial_ml,             // [max_segments][num_heads][4]
    int* tickets,                  // [num_seqs][num_kv_heads]
    int64_t num_seqs,
    int64_t num_heads,
    int64_t head_dim,
    int64_t num_blocks,
    int64_t block_size,
    int64_t num_kv_heads,
    int64_t max_blocks_per_seq,
    int64_t max_segments,
    int64_t num_workers,
    float scale,
    int* status) {
    __shared__ StreamMeeting<4> meeting;
    FLASH_CALL((int)(blockIdx.z * gridDim.y + blockIdx.y), (int)blockIdx.x);
    call.ask_ahead<2>(cache);
    follow_launch();
    start_next_launch();
    attend_fast<4>(call, query, cache, scale, meeting);
}

// The same with eight warps, for as many thread blocks as there are SMs: a sequence then has fewer parts.
extern "C" __global__ void __launch_bounds__(256, 1) flash_paged_attention_wide(FLASH_PARAMETERS) {
    __shared__ StreamMeeting<8> meeting;
    FLASH_CALL((int)(blockIdx.z * gridDim.y + blockIdx.y), (int)blockIdx.x);
    call.ask_ahead<1>(cache);
    follow_launch();
    start_next_launch();
    attend_fast<8>(call, query, cache, scale, meeting);
}

// The plain form, for every shape.
extern "C" __global__ void __launch_bounds__(128, 2) flash_paged_attention_plain(FLASH_PARAMETERS) {
    __shared__ Meeting meeting;
    const int kv_head = blockIdx.y;
    FLASH_CALL((int)blockIdx.x, kv_head);
    int first = blockIdx.x, end = first < num_seqs ? first + 1 : first;
    follow_launch();
    start_next_launch();
    if (segments) own_segments(call.list, seq_lens, &first, &end, &call.covered, status);
    for (int at = first; at < end; ++at) {
        Part part = call.row(at);
        if (part.seq < 0) continue;
        call.check(part);
        call.begin(at, part);
        call.settle(at, part);
        const auto unit_of = [&](int64_t unit, int64_t& block, int& tokens) {
            block = call.unit(part, (int)unit, call.entry(part, (int)unit), tokens);
        };
        const auto sink = [&](int64_t i, int d, float value, float top, float sum) {
            call.sink(at, part, (int)i, d, value, top, sum);
        };
        const half* const rows = query + ((int64_t)part.seq * num_heads + call.head) * head_dim;
        attend_plainly(rows, group, cache, kv_head, scale, part.low, part.high, unit_of, sink, meeting);
        __syncthreads();
        call.meet();
        if (call.whole || !call.inside || !is_last(call.list, part.seq, kv_head, call.count)) continue;
        const bool every = call.count == call.parts.end - call.parts.first;
        merge_parts(call.list, call.parts, every, part.seq, call.head, group, num_heads, head_dim, output, lse, nullptr,
                    nullptr);
    }
    call.others();
}
