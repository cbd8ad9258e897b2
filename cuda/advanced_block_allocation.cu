// Serve the valid requests in order: each takes the least block by (wrong region, cached, level, last use, id).
// One thread block of 1024 threads. Per region a radix select over the 128-bit keys finds the blocks that so many
// requests can reach at all, a bitonic sort puts them in victim order; then ranks by scan over the requests. Two queues
// suffice: until one runs dry everybody takes the head of the own region's, from then on the head of the other.
// A warp per block that was given out forgets its former life, in a second launch.
// TinyServe S:557-567 (a sketch) and its published code, where two requests could take one block.
#include "requests.cuh"

// Place of a block in victim order: the less, the earlier. Signed numbers are turned so that they compare unsigned.
struct VictimKey {
    unsigned long long high, low;

    __device__ bool operator<(const VictimKey& other) const {
        return high < other.high || (high == other.high && low < other.low);
    }

    __device__ unsigned byte(int at) const {  // 0 is the first, most significant one
        return (unsigned)((at < 8 ? high >> (56 - 8 * at) : low >> (120 - 8 * at)) & 255);
    }
};

// (cached 1 bit, level 32, last use 64, id 31) in 128 bits.
__device__ __forceinline__ VictimKey victim_key(int64_t block, const uint8_t* cached, const int* level,
                                                const int64_t* last_use) {
    const unsigned long long seldom = (unsigned)level[block] ^ 0x80000000u;
    const unsigned long long used = (unsigned long long)last_use[block] ^ 0x8000000000000000ull;
    return {(unsigned long long)(cached[block] != 0) << 63 | seldom << 31 | used >> 33,
            used << 31 | (unsigned long long)block};
}

extern "C" __global__ void advanced_block_allocation(
    const int* reqs,          // [num_requests][2] sequence, logical block
    const int* request_freq,  // [num_requests] above hot_frequency the request is hot
    int* block_table,         // [num_seqs][max_blocks_per_seq], -1 = no block
    int* ref,                 // [num_blocks], as the next five
    int* gen,
    uint8_t* cached,
    int* level,
    int64_t* last_use,
    int* uses,
    int* allocated,      // [num_requests], -1 = none, as the next three
    int* region,         // 0 hot, 1 cold
    int* reason,         // 0 own region, free · 1 own, evicted · 2 other, free · 3 other, evicted
    int* runner_up,      // the next block that it would have taken
    int* num_allocated,  // [1]
    int* freq,           // [num_blocks] or null, as the next two
    int* hits,
    int* lookups,
    int* history,    // [num_seqs][max_blocks_per_seq] or null
    half* box,       // [num_layers][layer_stride][num_kv_heads][2][head_dim] or null
    int* workspace,  // [workspace_words] two queues of a power of two above num_requests
    int64_t num_requests,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t num_blocks,
    int64_t num_layers,
    int64_t layer_stride,
    int64_t num_kv_heads,
    int64_t head_dim,
    int64_t workspace_words,
    int64_t cache_size,
    int64_t clock,
    int hot_frequency,
    int all_or_nothing,
    int* status) {
    __shared__ int histogram[256];
    __shared__ int gathered;
    __shared__ int64_t still;
    __shared__ VictimKey bound;
    first_to_name_empty(reqs, block_table, allocated, num_requests, num_seqs, max_blocks_per_seq, status);
    int64_t own = 0;
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        own += allocated[i];
        region[i] = reason[i] = runner_up[i] = -1;
    }
    const int64_t valid = block_sum(own);
    int64_t room = 1;
    while (room <= num_requests) room *= 2;

    int64_t sizes[2];
    for (int side = 0; side < 2; ++side) {
        int* const queue = workspace + side * room;
        const auto candidate = [&](int64_t block) { return ref[block] == 0 && (block < cache_size) == (side == 0); };
        int64_t free = 0;
        for (int64_t block = threadIdx.x; block < num_blocks; block += blockDim.x) free += candidate(block);
        sizes[side] = block_sum(free);
        // As many requests cannot reach behind the valid-th block, and one more is the last one's runner-up.
        const int64_t reachable = min(sizes[side], valid + 1);
        if (threadIdx.x == 0) {
            bound = {~0ull, ~0ull};
            if (reachable < sizes[side]) bound = {0, 0};
            still = reachable;
            gathered = 0;
        }
        __syncthreads();
        for (int at = 0; at < 16 && reachable < sizes[side]; ++at) {
            for (int i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
            __syncthreads();
            const VictimKey prefix = bound;
            for (int64_t block = threadIdx.x; block < num_blocks; block += blockDim.x) {
                if (!candidate(block)) continue;
                const VictimKey key = victim_key(block, cached, level, last_use);
                const bool same_high = at >= 8 ? key.high == prefix.high
                                       : at == 0 || key.high >> (64 - 8 * at) == prefix.high >> (64 - 8 * at);
                const bool same_low = at <= 8 || key.low >> (128 - 8 * at) == prefix.low >> (128 - 8 * at);
                if (same_high && same_low) atomicAdd(&histogram[key.byte(at)], 1);
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                int64_t left = still;
                unsigned long long bucket = 0;
                while (bucket < 255 && histogram[bucket] < left) left -= histogram[bucket++];
                still = left;
                if (at < 8) bound.high |= bucket << (56 - 8 * at);
                else bound.low |= bucket << (120 - 8 * at);
            }
            __syncthreads();
        }
        for (int64_t block = threadIdx.x; block < num_blocks; block += blockDim.x) {
            if (!candidate(block)) continue;
            if (bound < victim_key(block, cached, level, last_use)) continue;
            queue[atomicAdd(&gathered, 1)] = (int)block;  // in any order: the sort that follows has one result
        }
        __syncthreads();
        int64_t width = 1;
        while (width < reachable) width *= 2;
        for (int64_t i = reachable + threadIdx.x; i < width; i += blockDim.x) queue[i] = -1;  // behind all others
        __syncthreads();
        const auto before = [&](int a, int b) {
            if (a < 0 || b < 0) return a >= 0 && b < 0;
            return victim_key(a, cached, level, last_use) < victim_key(b, cached, level, last_use);
        };
        for (int64_t run = 2; run <= width; run *= 2) {
            for (int64_t gap = run / 2; gap > 0; gap /= 2) {
                for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
                    const int64_t partner = i ^ gap;
                    if (partner < i) continue;
                    const int a = queue[i], b = queue[partner];
                    if ((i & run) == 0 ? before(b, a) : before(a, b)) {
                        queue[i] = b;
                        queue[partner] = a;
                    }
                }
                __syncthreads();
            }
        }
    }

    const int64_t supply = sizes[0] + sizes[1];
    const int64_t served = valid <= supply ? valid : all_or_nothing ? 0 : supply;
    if (threadIdx.x == 0 && valid > supply) atomicOr(status, STATUS_OOM);
    // The first request that finds its own queue dry; `region` keeps each one's kind until it is known.
    int64_t asked = 0, of_kind[2] = {0, 0}, none = 0x7fffffffffffffff;
    int64_t own_switch = none;
    for (int64_t start = 0; start < num_requests; start += blockDim.x) {
        const int64_t i = start + threadIdx.x;
        const bool asks = i < num_requests && allocated[i] != 0;
        const int kind = asks && request_freq[i] <= hot_frequency;
        int64_t tile_asks, tile_cold;
        const int64_t rank = asked + block_exclusive_scan(asks, &tile_asks);
        const int64_t cold_rank = of_kind[1] + block_exclusive_scan(kind, &tile_cold);
        const int64_t kind_rank = kind ? cold_rank : rank - cold_rank;
        if (asks && rank < served && kind_rank >= sizes[kind]) own_switch = min(own_switch, rank);
        asked += tile_asks;
        of_kind[1] += tile_cold;
    }
    const int64_t dry = -block_max(-own_switch);
    const int64_t switch_at = min(dry, served);
    // Cold requests before the switch, and the kind of the one that switches.
    int64_t taken_cold = 0, switching_kind = 0;
    asked = of_kind[1] = 0;
    for (int64_t start = 0; start < num_requests; start += blockDim.x) {
        const int64_t i = start + threadIdx.x;
        const bool asks = i < num_requests && allocated[i] != 0;
        const int kind = asks && request_freq[i] <= hot_frequency;
        int64_t tile_asks;
        const int64_t rank = asked + block_exclusive_scan(asks, &tile_asks);
        asked += tile_asks;
        if (asks && kind && rank < switch_at) ++taken_cold;
        if (asks && rank == dry) switching_kind = kind;
    }
    taken_cold = block_sum(taken_cold);
    switching_kind = block_sum(switching_kind);
    const int64_t taken[2] = {switch_at - taken_cold, taken_cold};
    const int left = dry < served ? 1 - (int)switching_kind : 0;
    asked = of_kind[1] = 0;
    for (int64_t start = 0; start < num_requests; start += blockDim.x) {
        const int64_t i = start + threadIdx.x;
        const bool asks = i < num_requests && allocated[i] != 0;
        const int kind = asks && request_freq[i] <= hot_frequency;
        int64_t tile_asks, tile_cold;
        const int64_t order = asked + block_exclusive_scan(asks, &tile_asks);
        const int64_t cold_rank = of_kind[1] + block_exclusive_scan(kind, &tile_cold);
        asked += tile_asks;
        of_kind[1] += tile_cold;
        if (i >= num_requests) continue;
        allocated[i] = -1;
        if (!asks || order >= served) continue;
        const bool late = order >= switch_at;
        const int side = late ? left : kind;
        const int64_t rank = late ? taken[left] + order - switch_at : kind ? cold_rank : order - cold_rank;
        // What the other queue has lost by now, this request not counted.
        const int64_t other_taken = late ? taken[1 - left] : kind ? order - cold_rank : cold_rank;
        const int block = workspace[side * room + rank];
        if (rank + 1 < sizes[side]) runner_up[i] = workspace[side * room + rank + 1];
        else if (other_taken < sizes[1 - side]) runner_up[i] = workspace[(1 - side) * room + other_taken];
        allocated[i] = block;
        region[i] = side;
        reason[i] = 2 * (side != kind) + (cached[block] != 0);
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        block_table[entry] = block;
        ref[block] = 1;
        gen[block] += 1;
        uses[block] = 1;
        cached[block] = 0;
        level[block] = 0;
        last_use[block] = clock + 1 + order;
        if (history) history[entry] = 0;
    }
    if (threadIdx.x == 0) num_allocated[0] = (int)served;
}

// One warp per request, eight to a thread block.
extern "C" __global__ void advanced_block_allocation_forget(
    const int* reqs, const int* request_freq, int* block_table, int* ref, int* gen, uint8_t* cached, int* level,
    int64_t* last_use, int* uses, int* allocated, int* region, int* reason, int* runner_up, int* num_allocated,
    int* freq, int* hits, int* lookups, int* history, half* box, int* workspace, int64_t num_requests,
    int64_t num_seqs, int64_t max_blocks_per_seq, int64_t num_blocks, int64_t num_layers, int64_t layer_stride,
    int64_t num_kv_heads, int64_t head_dim, int64_t workspace_words, int64_t cache_size, int64_t clock,
    int hot_frequency, int all_or_nothing, int* status) {
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t i = (int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= num_requests || allocated[i] < 0) return;
    const int64_t block = allocated[i];
    int* const counters[] = {freq, hits, lookups};
    for (int k = 0; k < 3; ++k) {
        if (lane == k && counters[k]) counters[k][block] = 0;
    }
    if (box) empty_box(box, block, num_layers, layer_stride, num_kv_heads, head_dim, lane, WARP_SIZE);
}
