// Serve the valid requests in order: each takes the least block by (wrong region, cached, level, last use, id).
// The candidates of each region are put in victim order as far as so many requests can reach: over the pool, four blocks a
// thread, the ranges of level and last use; a histogram of the first 11 bits that this leaves of a key, which are kept; the
// blocks of the buckets in reach, in bucket order; thread blocks over these buckets sort them. Then ranks by scan over the
// requests: two queues suffice, until one runs dry everybody takes the head of the own region's, from then on the head of
// the other. Up to 1024 requests are one thread block, more a thread block per 1024 and launches before it. At last a warp
// per block that was given out forgets its former life.
// TinyServe S:557-567 (a sketch) and its published code, where two requests could take one block.
#include "requests.cuh"

constexpr int DIGIT_BITS = 11, NUM_DIGITS = 1 << DIGIT_BITS, SORTED_IN_SHARED = 2048;
constexpr unsigned NO_BIN = 0xffff;  // of a block that is held

// Place of a block in victim order: the less, the earlier. Signed numbers are turned so that they compare unsigned.
struct VictimKey {
    unsigned long long high, low;

    __device__ bool operator<(const VictimKey& other) const {
        return high < other.high || (high == other.high && low < other.low);
    }
};

__device__ __forceinline__ unsigned turned(int level) { return (unsigned)level ^ 0x80000000u; }
__device__ __forceinline__ unsigned long long turned(int64_t use) {
    return (unsigned long long)use ^ 0x8000000000000000ull;
}

// (cached 1 bit, level 32, last use 64, id 31) in 128 bits.
__device__ __forceinline__ VictimKey victim_key(int64_t block, const uint8_t* cached, const int* level,
                                                const int64_t* last_use) {
    const unsigned long long seldom = turned(level[block]), used = turned(last_use[block]);
    return {(unsigned long long)(cached[block] != 0) << 63 | seldom << 31 | used >> 33,
            used << 31 | (unsigned long long)block};
}

// At the head of the workspace, zero before and after a call; then a queue of num_blocks ids; the bin of each block in 16
// bits; then, for several thread blocks of requests, a row of their valid ones, a row of the cold ones among them, and what
// they say of their marks (zero before and after). `below` is for minima: what is kept is the maximum of the complement, so
// that zero is neutral.
struct Survey {
    unsigned long long highest_use, below_use, below_dry;
    unsigned highest_level, below_level;
    int candidates[2];  // by region: hot, cold
    int arrivals, padding;
    int histogram[2][NUM_DIGITS], filled[2][NUM_DIGITS], start[2][NUM_DIGITS];

    __device__ __forceinline__ int* queue(int side) {
        return reinterpret_cast<int*>(this + 1) + (side ? candidates[0] : 0);
    }
    __device__ __forceinline__ int* bins(int64_t num_blocks) {  // 8-byte aligned
        return reinterpret_cast<int*>(this + 1) + (num_blocks + 1) / 2 * 2;
    }
    __device__ __forceinline__ int* tiles(int64_t num_blocks) { return bins(num_blocks) + (num_blocks + 3) / 4 * 2; }
};
static_assert(sizeof(Survey) == 4 * 12300, "advanced_block_allocation.py: SURVEY_WORDS");

// The first bits of a block's key once level and last use count from their lowest. Blocks of the lowest last use (those
// never used, above all) have no bits for it, so that their ids spread over the buckets.
struct Digits {
    unsigned lowest_level;
    unsigned long long lowest_use;
    int level_bits, use_bits, id_bits;

    __device__ __forceinline__ Digits(const Survey& survey, int64_t num_blocks) {
        const auto bits = [](unsigned long long range) { return range ? 64 - __clzll((long long)range) : 0; };
        lowest_level = ~survey.below_level;
        lowest_use = ~survey.below_use;
        level_bits = bits(survey.highest_level - lowest_level);
        use_bits = bits(survey.highest_use - lowest_use);
        id_bits = bits((unsigned long long)(num_blocks - 1));
    }

    __device__ __forceinline__ int of(int64_t block, bool cached, int level, int64_t last_use) const {
        int room = DIGIT_BITS, digit = 0;
        const auto append = [&](unsigned long long field, int width) {
            const int taken = min(width, room);
            if (taken > 0) digit = digit << taken | (int)(field >> (width - taken));
            room -= max(taken, 0);
        };
        const bool used = turned(last_use) != lowest_use;
        append(cached, 1);
        append(turned(level) - lowest_level, level_bits);
        append(used, 1);
        if (used) append(turned(last_use) - lowest_use, use_bits);
        append(block, id_bits);
        return digit << room;
    }
};

#define ADVANCED_PARAMETERS                                                                                           \
    const int *reqs, const int *request_freq, int *block_table, int *ref, int *gen, uint8_t *cached, int *level,      \
        int64_t *last_use, int *uses, int *allocated, int *region, int *reason, int *runner_up, int *num_allocated,   \
        int *freq, int *hits, int *lookups, int *history, half *box, int *workspace, int64_t num_requests,            \
        int64_t num_seqs, int64_t max_blocks_per_seq, int64_t num_blocks, int64_t num_layers, int64_t layer_stride,   \
        int64_t num_kv_heads, int64_t head_dim, int64_t workspace_words, int64_t cache_size, int64_t clock,           \
        int hot_frequency, int all_or_nothing, int *status

__device__ __forceinline__ Survey& survey_of(int* workspace) { return *reinterpret_cast<Survey*>(workspace); }

// Which requests name an empty entry and are the first to; thread blocks wait for the marks of earlier ones.
extern "C" __global__ void advanced_block_allocation_count(ADVANCED_PARAMETERS) {
    const Marks marks(block_table, num_requests);
    int* const tiles = survey_of(workspace).tiles(num_blocks);
    int* const said = tiles + 2 * gridDim.x;
    const int64_t i = request_of_thread();
    const int64_t entry = i < num_requests ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const bool cold = i < num_requests && request_freq[i] <= hot_frequency;
    bool doubled = false;
    const bool empty = entry >= 0 && marks.put(entry, i, &doubled);
    say(said, 1);
    heard_from_earlier(said);
    const bool valid = empty && marks.stands(entry, i);
    if (i < num_requests) {
        allocated[i] = valid;
        if (!valid) atomicOr(status, entry < 0 ? STATUS_RANGE : STATUS_ALREADY_MAPPED);
    }
    const int asking = __syncthreads_count(valid), all_cold = __syncthreads_count(valid && cold);
    if (threadIdx.x != 0) return;
    tiles[blockIdx.x] = asking;
    tiles[gridDim.x + blockIdx.x] = all_cold;
}

// Four neighbouring blocks of the pool: what decides of them, all fetched at once.
struct Quad {
    int ref[4], level[4];
    uint8_t cached[4];
    int64_t last_use[4];

    // From block `first` on, in 16-byte loads where the addresses allow it; a block behind the end counts as held.
    __device__ __forceinline__ Quad(int64_t first, int64_t num_blocks, const int* refs, const uint8_t* cacheds,
                                    const int* levels, const int64_t* last_uses) {
        const auto aligned = [](const void* pointer, int bytes) { return ((unsigned long long)pointer & (bytes - 1)) == 0; };
        if (first + 4 <= num_blocks && aligned(refs, 16) && aligned(levels, 16) && aligned(last_uses, 16) && aligned(cacheds, 4)) {
            const int4 of_ref = *reinterpret_cast<const int4*>(refs + first);
            const int4 of_level = *reinterpret_cast<const int4*>(levels + first);
            const uchar4 of_cached = *reinterpret_cast<const uchar4*>(cacheds + first);
            const longlong2 use = *reinterpret_cast<const longlong2*>(last_uses + first);
            const longlong2 more_use = *reinterpret_cast<const longlong2*>(last_uses + first + 2);
            ref[0] = of_ref.x, ref[1] = of_ref.y, ref[2] = of_ref.z, ref[3] = of_ref.w;
            level[0] = of_level.x, level[1] = of_level.y, level[2] = of_level.z, level[3] = of_level.w;
            cached[0] = of_cached.x, cached[1] = of_cached.y, cached[2] = of_cached.z, cached[3] = of_cached.w;
            last_use[0] = use.x, last_use[1] = use.y, last_use[2] = more_use.x, last_use[3] = more_use.y;
            return;
        }
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const bool inside = first + k < num_blocks;
            ref[k] = inside ? refs[first + k] : 1;
            level[k] = inside ? levels[first + k] : 0;
            cached[k] = inside ? cacheds[first + k] : 0;
            last_use[k] = inside ? last_uses[first + k] : 0;
        }
    }
};

// How many candidates, and from where to where their levels and last uses go.
extern "C" __global__ void advanced_block_allocation_survey(ADVANCED_PARAMETERS) {
    follow_launch();
    __shared__ unsigned long long highest_use, below_use;
    __shared__ unsigned highest_level, below_level;
    __shared__ int candidates[2];
    if (threadIdx.x == 0) {
        highest_use = below_use = 0;
        highest_level = below_level = 0;
        candidates[0] = candidates[1] = 0;
    }
    __syncthreads();
    unsigned long long most_use = 0, least_use = 0;
    unsigned most_level = 0, least_level = 0;
    int own[2] = {0, 0};
    const int64_t step = 4 * (int64_t)gridDim.x * blockDim.x;
    for (int64_t first = 4 * request_of_thread(); first < num_blocks; first += step) {
        const Quad quad(first, num_blocks, ref, cached, level, last_use);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (quad.ref[k] != 0) continue;
            const unsigned long long used = turned(quad.last_use[k]);
            const unsigned seldom = turned(quad.level[k]);
            most_use = max(most_use, used);
            least_use = max(least_use, ~used);
            most_level = max(most_level, seldom);
            least_level = max(least_level, ~seldom);
            ++own[first + k < cache_size ? 0 : 1];
        }
    }
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
        most_use = max(most_use, __shfl_xor_sync(FULL_WARP, most_use, width));
        least_use = max(least_use, __shfl_xor_sync(FULL_WARP, least_use, width));
        most_level = max(most_level, __shfl_xor_sync(FULL_WARP, most_level, width));
        least_level = max(least_level, __shfl_xor_sync(FULL_WARP, least_level, width));
        own[0] += __shfl_xor_sync(FULL_WARP, own[0], width);
        own[1] += __shfl_xor_sync(FULL_WARP, own[1], width);
    }
    if (threadIdx.x % WARP_SIZE == 0) {
        atomicMax(&highest_use, most_use);
        atomicMax(&below_use, least_use);
        atomicMax(&highest_level, most_level);
        atomicMax(&below_level, least_level);
        atomicAdd(&candidates[0], own[0]);
        atomicAdd(&candidates[1], own[1]);
    }
    __syncthreads();
    if (threadIdx.x != 0 || candidates[0] + candidates[1] == 0) return;
    Survey& survey = survey_of(workspace);
    atomicMax(&survey.highest_use, highest_use);
    atomicMax(&survey.below_use, below_use);
    atomicMax(&survey.highest_level, highest_level);
    atomicMax(&survey.below_level, below_level);
    for (int side = 0; side < 2; ++side) {
        if (candidates[side]) atomicAdd(&survey.candidates[side], candidates[side]);
    }
}

extern "C" __global__ void advanced_block_allocation_histogram(ADVANCED_PARAMETERS) {
    follow_launch();
    __shared__ int bins[2 * NUM_DIGITS];
    Survey& survey = survey_of(workspace);
    for (int i = threadIdx.x; i < 2 * NUM_DIGITS; i += blockDim.x) bins[i] = 0;
    const Digits digits(survey, num_blocks);
    __syncthreads();
    const int64_t step = 4 * (int64_t)gridDim.x * blockDim.x;
    uint2* const kept = reinterpret_cast<uint2*>(survey.bins(num_blocks));
    for (int64_t first = 4 * request_of_thread(); first < num_blocks; first += step) {
        const Quad quad(first, num_blocks, ref, cached, level, last_use);
        unsigned bin[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            bin[k] = NO_BIN;
            if (quad.ref[k] != 0) continue;
            bin[k] = digits.of(first + k, quad.cached[k] != 0, quad.level[k], quad.last_use[k]);
            bin[k] += first + k < cache_size ? 0 : NUM_DIGITS;
            atomicAdd(&bins[bin[k]], 1);
        }
        kept[first / 4] = {bin[0] | bin[1] << 16, bin[2] | bin[3] << 16};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * NUM_DIGITS; i += blockDim.x) {
        if (bins[i]) atomicAdd(&survey.histogram[i / NUM_DIGITS][i % NUM_DIGITS], bins[i]);
    }
}

// As many requests cannot reach behind the num_requests-th block, and one more is the last one's runner-up.
__device__ __forceinline__ bool in_reach(int start, int64_t num_requests) { return start <= num_requests; }

extern "C" __global__ void advanced_block_allocation_gather(ADVANCED_PARAMETERS) {
    follow_launch();
    __shared__ int start[2 * NUM_DIGITS];
    Survey& survey = survey_of(workspace);
    for (int side = 0; side < 2; ++side) {
        int64_t before = 0;
        for (int first = 0; first < NUM_DIGITS; first += blockDim.x) {
            int64_t in_tile;
            const int digit = first + threadIdx.x;
            const int64_t at = before + block_exclusive_scan(survey.histogram[side][digit], &in_tile);
            start[side * NUM_DIGITS + digit] = (int)at;
            if (blockIdx.x == 0) survey.start[side][digit] = (int)at;
            before += in_tile;
        }
    }
    __syncthreads();
    const int64_t step = 4 * (int64_t)gridDim.x * blockDim.x;
    const uint2* const kept = reinterpret_cast<const uint2*>(survey.bins(num_blocks));
    for (int64_t first = 4 * request_of_thread(); first < num_blocks; first += step) {
        const uint2 four = kept[first / 4];
        const unsigned bin[] = {four.x & 0xffff, four.x >> 16, four.y & 0xffff, four.y >> 16};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (bin[k] == NO_BIN) continue;
            const int from = start[bin[k]];
            if (!in_reach(from, num_requests)) continue;
            // In any order: the sort of the bucket has one result.
            const int side = bin[k] / NUM_DIGITS, digit = bin[k] % NUM_DIGITS;
            survey.queue(side)[from + atomicAdd(&survey.filled[side][digit], 1)] = (int)(first + k);
        }
    }
}

// Thread blocks over the buckets of a region: a bitonic sort, in shared memory where the bucket fits.
extern "C" __global__ void advanced_block_allocation_sort(ADVANCED_PARAMETERS) {
    follow_launch();
    __shared__ VictimKey keys[SORTED_IN_SHARED];
    Survey& survey = survey_of(workspace);
    const int side = blockIdx.y;
    for (int digit = blockIdx.x; digit < NUM_DIGITS; digit += gridDim.x) {
        const int size = survey.histogram[side][digit], start = survey.start[side][digit];
        if (!in_reach(start, num_requests)) return;  // nor is any later one
        if (size < 2) continue;
        int* const bucket = survey.queue(side) + start;
        int width = 2;
        while (width < size) width *= 2;
        const bool shared = width <= SORTED_IN_SHARED;
        const VictimKey behind_all = {~0ull, ~0ull};
        const auto key_of = [&](int block) { return victim_key(block, cached, level, last_use); };
        for (int i = threadIdx.x; shared && i < width; i += blockDim.x) keys[i] = i < size ? key_of(bucket[i]) : behind_all;
        __syncthreads();
        for (int run = 2; run <= width; run *= 2) {
            // The first step of a merge mirrors, the others shift: every comparison puts the less in front, so that places
            // behind the end, which hold nothing, never come before one that does.
            for (int gap = run / 2; gap > 0; gap /= 2) {
                for (int pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
                    const int low = pair / gap * 2 * gap + pair % gap;
                    const int high = gap == run / 2 ? low ^ (run - 1) : low + gap;
                    if (shared) {
                        const VictimKey a = keys[low], b = keys[high];
                        if (b < a) {
                            keys[low] = b;
                            keys[high] = a;
                        }
                    } else if (high < size) {
                        const int a = bucket[low], b = bucket[high];
                        if (key_of(b) < key_of(a)) {
                            bucket[low] = b;
                            bucket[high] = a;
                        }
                    }
                }
                __syncthreads();
            }
        }
        for (int i = threadIdx.x; shared && i < size; i += blockDim.x) bucket[i] = (int)(keys[i].low & 0x7fffffff);
        __syncthreads();  // the next bucket's keys
    }
}

// A request's place among those that ask, and among those of its kind.
struct Place {
    bool asks;
    int kind;  // 0 hot, 1 cold
    int64_t order, of_kind;
};

__device__ __forceinline__ Place place_of(bool asks, int frequency, int hot_frequency, int before, int cold_before) {
    int in_tile;
    Place place;
    place.asks = asks;
    place.kind = asks && frequency <= hot_frequency;
    place.order = before + (int64_t)block_rank(asks, &in_tile);
    const int64_t cold = cold_before + (int64_t)block_rank(place.kind, &in_tile);
    place.of_kind = place.kind ? cold : place.order - cold;
    return place;
}

// Place of this thread's request in a grid of several thread blocks, and how many ask in all.
__device__ __forceinline__ Place place_in_grid(const int* allocated, const int* request_freq, int* tiles,
                                               int64_t num_requests, int hot_frequency, int* asking) {
    const int64_t i = request_of_thread();
    int before, cold_before, all_cold;
    sums_before(tiles, blockIdx.x, gridDim.x, &before, asking);
    sums_before(tiles + gridDim.x, blockIdx.x, gridDim.x, &cold_before, &all_cold);
    const bool asks = i < num_requests && allocated[i] != 0;
    return place_of(asks, asks ? request_freq[i] : 0, hot_frequency, before, cold_before);
}

// The first request that finds its own queue dry, and its kind in the last bit; the largest number: there is none.
__device__ __forceinline__ unsigned long long dry_mark(const Place& place, const Survey& survey, int64_t served) {
    const bool dry = place.asks && place.order < served && place.of_kind >= survey.candidates[place.kind];
    return dry ? (unsigned long long)place.order << 1 | place.kind : ~0ull;
}

__device__ __forceinline__ int64_t served_of(int64_t asking, const Survey& survey, int all_or_nothing) {
    const int64_t supply = (int64_t)survey.candidates[0] + survey.candidates[1];
    return asking <= supply ? asking : all_or_nothing ? 0 : supply;
}

extern "C" __global__ void advanced_block_allocation_dry(ADVANCED_PARAMETERS) {
    follow_launch();
    Survey& survey = survey_of(workspace);
    int asking;
    const Place place =
        place_in_grid(allocated, request_freq, survey.tiles(num_blocks), num_requests, hot_frequency, &asking);
    const unsigned long long mark = dry_mark(place, survey, served_of(asking, survey, all_or_nothing));
    if (mark != ~0ull) atomicMax(&survey.below_dry, ~mark);
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
    int* workspace,  // [workspace_words] see Survey
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
    follow_launch();
    __shared__ FirstOfKey entries;
    __shared__ unsigned long long first_dry;
    Survey& survey = survey_of(workspace);
    const int64_t i = request_of_thread();
    const bool asked = i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const int frequency = asked ? request_freq[i] : 0;
    int asking, flags = 0;
    Place place;
    if (gridDim.x == 1) {
        const bool empty = entry >= 0 && block_table[entry] == -1;
        if (threadIdx.x == 0) first_dry = ~0ull;
        const int slot = entries.enter(empty ? entry : -1);
        __syncthreads();
        const bool valid = empty && entries.first[slot] == i;
        if (asked && !valid) flags |= entry < 0 ? STATUS_RANGE : STATUS_ALREADY_MAPPED;
        asking = __syncthreads_count(valid);
        place = place_of(valid, frequency, hot_frequency, 0, 0);
    } else {
        place = place_in_grid(allocated, request_freq, survey.tiles(num_blocks), num_requests, hot_frequency, &asking);
    }
    const int64_t served = served_of(asking, survey, all_or_nothing);
    if (asking > (int64_t)survey.candidates[0] + survey.candidates[1]) flags |= STATUS_OOM;
    unsigned long long dry = ~survey.below_dry;
    if (gridDim.x == 1) {
        const unsigned long long mark = dry_mark(place, survey, served);
        if (mark != ~0ull) atomicMin(&first_dry, mark);
        __syncthreads();
        dry = first_dry;
    }
    // Who found the own queue dry had taken all of it; everybody before took from the own one.
    const bool runs_dry = dry != ~0ull;
    const int64_t switch_at = runs_dry ? (int64_t)(dry >> 1) : served;
    const int dry_side = (int)(dry & 1), left = 1 - dry_side;
    const int64_t left_taken = switch_at - survey.candidates[dry_side];

    int block = -1, from = -1, why = -1, next = -1;
    if (place.asks && place.order < served) {
        const bool late = runs_dry && place.order >= switch_at;
        from = late ? left : place.kind;
        const int64_t rank = late ? left_taken + place.order - switch_at : place.of_kind;
        // What the other queue has lost by now, this request not counted.
        const int64_t other_taken = late ? survey.candidates[dry_side] : place.order - place.of_kind;
        block = survey.queue(from)[rank];
        if (rank + 1 < survey.candidates[from]) next = survey.queue(from)[rank + 1];
        else if (other_taken < survey.candidates[1 - from]) next = survey.queue(1 - from)[other_taken];
        why = 2 * (from != place.kind) + (cached[block] != 0);
        block_table[entry] = block;
        ref[block] = 1;
        gen[block] += 1;
        uses[block] = 1;
        cached[block] = 0;
        level[block] = 0;
        last_use[block] = clock + 1 + place.order;
        if (history) history[entry] = 0;
    } else if (place.asks && gridDim.x > 1) {
        block_table[entry] = -1;  // no mark stays
    }
    if (asked) {
        allocated[i] = block;
        region[i] = from;
        reason[i] = why;
        runner_up[i] = next;
    }
    if (i == 0) num_allocated[0] = (int)served;
    if (flags) atomicOr(status, flags);
    if (!last_to_arrive(&survey.arrivals)) return;
    for (int k = threadIdx.x; gridDim.x > 1 && k < gridDim.x; k += blockDim.x) {
        survey.tiles(num_blocks)[2 * gridDim.x + k] = 0;
    }
    for (int k = threadIdx.x; k < (int)(sizeof(Survey) / sizeof(int)); k += blockDim.x) workspace[k] = 0;
}

// One warp per request, eight to a thread block.
extern "C" __global__ void advanced_block_allocation_forget(ADVANCED_PARAMETERS) {
    follow_launch();
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
