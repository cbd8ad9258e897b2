// Serve the valid requests in order: each takes the least block by (wrong region, cached, level, last use, id).
// The candidates of each region are put in victim order as far as so many requests can reach. A histogram of the first
// bits of a key, counted from the lowest of level and last use in a sample of the pool (what lies outside it goes to the
// ends), which are kept; the blocks of the buckets in reach, in bucket order; each one's place in its bucket by counting
// the lesser ones. Then ranks by scan over the requests: two queues suffice, until one runs dry everybody takes the head
// of the own region's, from then on the head of the other. Up to 1024 requests are one cluster, more a thread block per
// 1024 and launches before it. At last a warp per block that was given out forgets its former life.
// TinyServe S:557-567 (a sketch) and its published code, where two requests could take one block.
#include "cluster.cuh"
#include "requests.cuh"

constexpr int NUM_BINS = 8192, FEW_BITS = 13, MANY_BITS = 12, MOST_FEW = 1024;
constexpr int PER_THREAD = NUM_BINS / 1024;  // bins of a thread that scans them
constexpr int MOST_RANKED = 1 << 16;         // blocks of a bucket that is ordered by counting
constexpr unsigned NO_BIN = 0xffff;          // of a block that is held

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

// At the head of the workspace, zero before and after a call but for `start`; then a queue of num_blocks ids by bucket and
// one in order; the bin of each block in 16 bits; then, for several thread blocks of requests, a row of their valid ones, a
// row of the cold ones among them, and what they say of their marks (zero before and after). `below_dry` is for a minimum:
// what is kept is the maximum of the complement, so that zero is neutral.
struct Survey {
    unsigned long long below_dry;
    int candidates[2], in_reach[2], bins_in_reach[2];  // by region: hot, cold; blocks of the buckets in reach
    int large, arrivals, unused[2];                    // some bucket in reach is beyond MOST_RANKED
    int histogram[2][NUM_BINS], filled[2][NUM_BINS], start[2][NUM_BINS];

    static constexpr int HEAD = 12, ZEROS = HEAD + 4 * NUM_BINS;

    __device__ __forceinline__ int* queue(int side) {
        return reinterpret_cast<int*>(this + 1) + (side ? candidates[0] : 0);
    }
    __device__ __forceinline__ int* in_order(int side, int64_t num_blocks) { return queue(side) + (num_blocks + 1) / 2 * 2; }
    __device__ __forceinline__ unsigned short* bins(int64_t num_blocks) {  // 8-byte aligned
        return reinterpret_cast<unsigned short*>(reinterpret_cast<int*>(this + 1) + (num_blocks + 1) / 2 * 4);
    }
    __device__ __forceinline__ int* tiles(int64_t num_blocks) {
        return reinterpret_cast<int*>(bins(num_blocks)) + (num_blocks + 3) / 4 * 2;
    }
};
static_assert(sizeof(Survey) == 4 * 49164, "advanced_block_allocation.py: SURVEY_WORDS");

// From where to where the levels and last uses of some blocks go.
struct Range {
    unsigned lowest_level, highest_level;
    unsigned long long lowest_use, highest_use;

    __device__ __forceinline__ void widen(const Range& other) {
        lowest_level = min(lowest_level, other.lowest_level);
        highest_level = max(highest_level, other.highest_level);
        lowest_use = min(lowest_use, other.lowest_use);
        highest_use = max(highest_use, other.highest_use);
    }
    __device__ __forceinline__ void widen_over_warp() {
        for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
            widen({__shfl_xor_sync(FULL_WARP, lowest_level, width), __shfl_xor_sync(FULL_WARP, highest_level, width),
                   __shfl_xor_sync(FULL_WARP, lowest_use, width), __shfl_xor_sync(FULL_WARP, highest_use, width)});
        }
    }
};

// The first bits of a block's key once level and last use count from their lowest; what lies below it or above the highest
// stands at that end. Blocks of the lowest last use (those never used, above all) have no bits for it, so that their ids
// spread over the buckets.
struct Digits {
    Range range;
    int level_bits, use_bits, id_bits, digit_bits;

    __device__ __forceinline__ Digits(const Range& found, int64_t num_blocks, int bits_of_digit)
        : range(found), digit_bits(bits_of_digit) {
        const auto bits = [](unsigned long long span) { return span ? 64 - __clzll((long long)span) : 0; };
        range.lowest_level = min(range.lowest_level, range.highest_level);  // where nothing was found
        range.lowest_use = min(range.lowest_use, range.highest_use);
        level_bits = bits(range.highest_level - range.lowest_level);
        use_bits = bits(range.highest_use - range.lowest_use);
        id_bits = bits((unsigned long long)(num_blocks - 1));
    }

    __device__ __forceinline__ int of(int64_t block, bool cached, int level, int64_t last_use) const {
        int room = digit_bits, digit = 0;
        const auto append = [&](unsigned long long field, int width) {
            const int taken = min(width, room);
            if (taken > 0) digit = digit << taken | (int)(field >> (width - taken));
            room -= max(taken, 0);
        };
        const auto end = [&](bool high) { return digit << room | (high ? (1 << room) - 1 : 0); };
        const unsigned seldom = turned(level), level_inside = min(max(seldom, range.lowest_level), range.highest_level);
        const unsigned long long used = turned(last_use), use_inside = min(max(used, range.lowest_use), range.highest_use);
        append(cached, 1);
        append(level_inside - range.lowest_level, level_bits);
        if (seldom != level_inside) return end(seldom > level_inside);
        append(use_inside != range.lowest_use, 1);
        if (use_inside != range.lowest_use) append(use_inside - range.lowest_use, use_bits);
        if (used != use_inside) return end(used > use_inside);
        append(block, id_bits);
        return end(false);
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
    start_next_launch();
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

// Thread blocks share the pool by region. In quads from `first` on, every `step`-th; one may lie in both regions.
struct Part {
    int side, rank;
    int64_t first, end, step, border;

    __device__ __forceinline__ Part(int64_t num_blocks, int64_t cache_size) {
        const int64_t blocks = gridDim.x, quads = (num_blocks + 3) / 4;
        border = min(max(cache_size, (int64_t)0), num_blocks);
        const int64_t nearest = (int64_t)((float)blocks * (float)border / (float)num_blocks + 0.5f);
        const int64_t hot = border == 0 ? 0 : border == num_blocks ? blocks : min(max(nearest, (int64_t)1), blocks - 1);
        side = blockIdx.x >= hot;
        rank = side ? (int)(blockIdx.x - hot) : blockIdx.x;
        first = (side ? border / 4 : 0) + (int64_t)rank * blockDim.x + threadIdx.x;
        end = side ? quads : (border + 3) / 4;
        step = (side ? blocks - hot : hot) * blockDim.x;
    }
    __device__ __forceinline__ bool has(int64_t block) const { return (block >= border) == side; }
};

__device__ __forceinline__ int bits_for(int64_t num_requests) { return num_requests <= MOST_FEW ? FEW_BITS : MANY_BITS; }

// Sum over the threads before this one of a thread block of up to 1024, and over all; both fit in 32 bits.
__device__ __forceinline__ int sum_before(int value, int* all) {
    __shared__ int of_warp[WARP_SIZE];
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE;
    int sum = value;
    for (int width = 1; width < WARP_SIZE; width *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, sum, width);
        if (lane >= width) sum += before;
    }
    if (lane == WARP_SIZE - 1) of_warp[warp] = sum;
    __syncthreads();
    const int other = lane < blockDim.x / WARP_SIZE ? of_warp[lane] : 0;
#if __CUDA_ARCH__ >= 800
    *all = __reduce_add_sync(FULL_WARP, other);
    const int earlier = __reduce_add_sync(FULL_WARP, lane < warp ? other : 0);
#else
    int before = lane < warp ? other : 0, total = other;
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
        before += __shfl_xor_sync(FULL_WARP, before, width);
        total += __shfl_xor_sync(FULL_WARP, total, width);
    }
    const int earlier = before;
    *all = total;
#endif
    return earlier + sum - value;
}

// Candidates by bucket, as far as the requests can reach in those of this thread block, and how many in all.
extern "C" __global__ void __launch_bounds__(1024, 1) advanced_block_allocation_histogram(ADVANCED_PARAMETERS) {
    constexpr int SAMPLED = 256;
    __shared__ __align__(16) int bins[NUM_BINS];
    __shared__ Range of_warp[SAMPLED / WARP_SIZE];
    __shared__ int limit;
    start_next_launch();
    Survey& survey = survey_of(workspace);
    const Part part(num_blocks, cache_size);
    for (int i = threadIdx.x; i < NUM_BINS; i += blockDim.x) bins[i] = 0;
    if (threadIdx.x == 0) limit = NUM_BINS;
    // Every thread block looks at the same sample.
    const int64_t seen = threadIdx.x < SAMPLED ? threadIdx.x * ((num_blocks + 3) / 4) / SAMPLED * 4 : num_blocks;
    const Quad sample(seen, num_blocks, ref, cached, level, last_use);
    Range found = {~0u, 0, ~0ull, 0};
    if (threadIdx.x < SAMPLED) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (sample.ref[k] != 0) continue;
            const unsigned seldom = turned(sample.level[k]);
            const unsigned long long used = turned(sample.last_use[k]);
            found.widen({seldom, seldom, used, used});
        }
        found.widen_over_warp();
        if (threadIdx.x % WARP_SIZE == 0) of_warp[threadIdx.x / WARP_SIZE] = found;
    }
    __syncthreads();
    found = of_warp[0];
    for (int i = 1; i < SAMPLED / WARP_SIZE; ++i) found.widen(of_warp[i]);
    const Digits digits(found, num_blocks, bits_for(num_requests));
    follow_launch();  // the launch before only looks at requests
    unsigned short* const kept = survey.bins(num_blocks);
    for (int64_t quad = part.first; quad < part.end; quad += part.step) {
        const Quad four(4 * quad, num_blocks, ref, cached, level, last_use);
        unsigned bin[4];
        bool all = true;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const int64_t block = 4 * quad + k;
            bin[k] = NO_BIN;
            all = all && part.has(block);
            if (four.ref[k] != 0 || !part.has(block)) continue;
            bin[k] = digits.of(block, four.cached[k] != 0, four.level[k], four.last_use[k]);
            atomicAdd(&bins[bin[k]], 1);
        }
        if (all) {
            *reinterpret_cast<uint2*>(kept + 4 * quad) = {bin[0] | bin[1] << 16, bin[2] | bin[3] << 16};
            continue;
        }
        for (int k = 0; k < 4; ++k) {
            if (part.has(4 * quad + k)) kept[4 * quad + k] = (unsigned short)bin[k];
        }
    }
    __syncthreads();
    int count[PER_THREAD], own = 0;
#pragma unroll
    for (int k = 0; k < PER_THREAD; k += 4) {
        const int4 four = reinterpret_cast<const int4*>(bins)[(threadIdx.x * PER_THREAD + k) / 4];
        count[k] = four.x, count[k + 1] = four.y, count[k + 2] = four.z, count[k + 3] = four.w;
        own += four.x + four.y + four.z + four.w;
    }
    int all, before = sum_before(own, &all);
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {  // behind one bin nothing is in reach
        if (before <= num_requests && before + count[k] > num_requests) limit = threadIdx.x * PER_THREAD + k + 1;
        before += count[k];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < limit; i += blockDim.x) {
        if (bins[i]) atomicAdd(&survey.histogram[part.side][i], bins[i]);
    }
    if (threadIdx.x == 0 && all) atomicAdd(&survey.candidates[part.side], all);
}

// How many blocks of a region the requests may take at most: as many as are of its kind, or as the other region lacks. One
// more is the last one's runner-up.
__device__ __forceinline__ int64_t reach_in(int side, Survey& survey, const int* request_freq, int64_t num_requests,
                                            int64_t num_blocks, int hot_frequency) {
    int asking = (int)num_requests, cold, unused;
    if (num_requests <= MOST_FEW) {
        cold = __syncthreads_count(threadIdx.x < num_requests && request_freq[threadIdx.x] <= hot_frequency);
    } else {
        const int64_t tiles = (num_requests + MOST_FEW - 1) / MOST_FEW;
        sums_before(survey.tiles(num_blocks), 0, tiles, &unused, &asking);
        sums_before(survey.tiles(num_blocks) + tiles, 0, tiles, &unused, &cold);
    }
    return max(side ? cold : asking - cold, asking - survey.candidates[1 - side]);
}

extern "C" __global__ void __launch_bounds__(1024) advanced_block_allocation_gather(ADVANCED_PARAMETERS) {
    constexpr unsigned short BEYOND = 0xffff;
    __shared__ __align__(16) int words[NUM_BINS];
    follow_launch();
    Survey& survey = survey_of(workspace);
    const Part part(num_blocks, cache_size);
    const bool few = num_requests <= MOST_FEW;
    unsigned short* const start_of_few = reinterpret_cast<unsigned short*>(words);
    int *const start = words, *const own = words + (1 << MANY_BITS);
    const int reach = (int)reach_in(part.side, survey, request_freq, num_requests, num_blocks, hot_frequency);
    const unsigned short* const kept = survey.bins(num_blocks);
    constexpr int AHEAD = 2;
    uint2 ahead[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
        const int64_t quad = part.first + k * part.step;
        ahead[k] = quad < part.end ? *reinterpret_cast<const uint2*>(kept + 4 * quad) : uint2{~0u, ~0u};
    }
    int count[PER_THREAD], sum = 0;
    const int4* const found = reinterpret_cast<const int4*>(survey.histogram[part.side]) + threadIdx.x * (PER_THREAD / 4);
#pragma unroll
    for (int k = 0; k < PER_THREAD; k += 4) {
        const int4 four = found[k / 4];
        count[k] = four.x, count[k + 1] = four.y, count[k + 2] = four.z, count[k + 3] = four.w;
        sum += four.x + four.y + four.z + four.w;
    }
    int all, at = sum_before(sum, &all);
    bool large = false;
    unsigned starts[PER_THREAD / 2] = {};
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int bin = threadIdx.x * PER_THREAD + k;
        const bool inside = at <= reach;
        starts[k / 2] |= (inside ? (unsigned)at : (unsigned)BEYOND) << 16 * (k % 2);
        if (!few && bin < 1 << MANY_BITS) start[bin] = inside ? at : -1, own[bin] = 0;
        if (inside && count[k]) {
            if (part.rank == 0) survey.start[part.side][bin] = at;
            if (part.rank == 0) {
                atomicMax(&survey.in_reach[part.side], at + count[k]);
                atomicMax(&survey.bins_in_reach[part.side], bin + 1);
            }
        }
        large = large || (inside && count[k] > MOST_RANKED);
        at += count[k];
    }
    if (few) reinterpret_cast<uint4*>(words)[threadIdx.x] = {starts[0], starts[1], starts[2], starts[3]};
    if (large && part.rank == 0) survey.large = 1;
    __syncthreads();
    int* const queue = survey.queue(part.side);
    int* const filled = survey.filled[part.side];
    const auto for_four = [&](int64_t quad, uint2 four, auto&& take) {
        const unsigned bin[] = {four.x & 0xffff, four.x >> 16, four.y & 0xffff, four.y >> 16};
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (bin[k] != NO_BIN && 4 * quad + k < num_blocks && part.has(4 * quad + k)) take((int)bin[k], (int)(4 * quad + k));
        }
    };
    const auto for_each = [&](auto&& take) {
#pragma unroll
        for (int k = 0; k < AHEAD; ++k) for_four(part.first + k * part.step, ahead[k], take);
#pragma unroll 1
        for (int64_t quad = part.first + AHEAD * part.step; quad < part.end; quad += part.step) {
            for_four(quad, *reinterpret_cast<const uint2*>(kept + 4 * quad), take);
        }
    };
    // In any order: the places within a bucket are found from the keys.
    if (few) {
        for_each([&](int bin, int block) {
            const int from = start_of_few[bin];
            if (from != BEYOND) queue[from + atomicAdd(&filled[bin], 1)] = block;
        });
        return;
    }
    // A thread block takes its places of a bucket at once.
    for_each([&](int bin, int) {
        if (start[bin] >= 0) atomicAdd(&own[bin], 1);
    });
    __syncthreads();
    for (int i = threadIdx.x; i < 1 << MANY_BITS; i += blockDim.x) {
        if (own[i]) own[i] = start[i] + atomicAdd(&filled[i], own[i]);
    }
    __syncthreads();
    for_each([&](int bin, int block) {
        if (start[bin] >= 0) queue[atomicAdd(&own[bin], 1)] = block;
    });
}

// A bucket by one thread block: a bitonic sort in memory.
__device__ __forceinline__ void sort_bucket(int* bucket, int size, const uint8_t* cached, const int* level,
                                            const int64_t* last_use) {
    int width = 2;
    while (width < size) width *= 2;
    const auto key_of = [&](int block) { return victim_key(block, cached, level, last_use); };
    for (int run = 2; run <= width; run *= 2) {
        // The first step of a merge mirrors, the others shift: every comparison puts the less in front, so that places
        // behind the end, which hold nothing, never come before one that does.
        for (int gap = run / 2; gap > 0; gap /= 2) {
            for (int pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
                const int low = 2 * pair - (pair & (gap - 1));
                const int high = gap == run / 2 ? low ^ (run - 1) : low + gap;
                if (high >= size) continue;
                const int a = bucket[low], b = bucket[high];
                if (key_of(b) < key_of(a)) {
                    bucket[low] = b;
                    bucket[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

// Sixteen threads find the place of a block: as many as are less in its bucket stand before it.
extern "C" __global__ void __launch_bounds__(512) advanced_block_allocation_sort(ADVANCED_PARAMETERS) {
    constexpr int PARTS = 16, CHUNK = 512 / PARTS, AT_ONCE = 1024;
    __shared__ VictimKey keys[AT_ONCE];
    __shared__ int low, high;
    start_next_launch();
    follow_launch();
    Survey& survey = survey_of(workspace);
    const int chunks = (survey.in_reach[0] + CHUNK - 1) / CHUNK, more = (survey.in_reach[1] + CHUNK - 1) / CHUNK;
    const auto key_of = [&](int block) { return victim_key(block, cached, level, last_use); };
    for (int chunk = blockIdx.x; chunk < chunks + more; chunk += gridDim.x) {
        const int side = chunk >= chunks, from = (side ? chunk - chunks : chunk) * CHUNK;
        const int at = from + threadIdx.x / PARTS, part = threadIdx.x % PARTS;
        const bool inside = at < survey.in_reach[side];
        int* const queue = survey.queue(side);
        const int block = inside ? queue[at] : 0, bin = inside ? survey.bins(num_blocks)[block] : 0;
        const int start = inside ? survey.start[side][bin] : 0, size = inside ? survey.histogram[side][bin] : 0;
        const bool ranked = inside && size <= MOST_RANKED;
        const VictimKey own = inside ? key_of(block) : VictimKey{0, 0};
        if (threadIdx.x == 0) low = 0x7fffffff, high = 0;
        __syncthreads();
        if (ranked && part == 0) {
            atomicMin(&low, start);
            atomicMax(&high, start + size);
        }
        __syncthreads();
        int less = 0;
        for (int first = low; first < high; first += AT_ONCE) {
            for (int i = threadIdx.x; i < min(AT_ONCE, high - first); i += blockDim.x) keys[i] = key_of(queue[first + i]);
            __syncthreads();
            const int end = min(start + size, first + AT_ONCE) - first;
            for (int i = max(start - first, 0) + part; ranked && i < end; i += PARTS) less += keys[i] < own;
            __syncthreads();
        }
        for (int width = PARTS / 2; width > 0; width /= 2) less += __shfl_xor_sync(FULL_WARP, less, width);
        if (ranked && part == 0) survey.in_order(side, num_blocks)[start + less] = block;
        __syncthreads();  // low and high are read
    }
    if (survey.large == 0) return;
    for (int side = 0; side < 2; ++side) {
        for (int bin = blockIdx.x; bin < survey.bins_in_reach[side]; bin += gridDim.x) {
            const int size = survey.histogram[side][bin], start = survey.start[side][bin];
            if (size <= MOST_RANKED) continue;
            sort_bucket(survey.queue(side) + start, size, cached, level, last_use);
            for (int i = threadIdx.x; i < size; i += blockDim.x) {
                survey.in_order(side, num_blocks)[start + i] = survey.queue(side)[start + i];
            }
        }
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
    start_next_launch();
    follow_launch();
    Survey& survey = survey_of(workspace);
    int asking;
    const Place place =
        place_in_grid(allocated, request_freq, survey.tiles(num_blocks), num_requests, hot_frequency, &asking);
    const unsigned long long mark = dry_mark(place, survey, served_of(asking, survey, all_or_nothing));
    if (mark != ~0ull) atomicMax(&survey.below_dry, ~mark);
}

// What a request with its place comes to. `dry`: the first that found its own queue dry, see dry_mark.
__device__ __forceinline__ void serve(const Place& place, int64_t i, int64_t entry, int64_t served, unsigned long long dry,
                                      Survey& survey, ADVANCED_PARAMETERS) {
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
        const int* const own = survey.in_order(from, num_blocks);
        block = own[rank];
        if (rank + 1 < survey.candidates[from]) next = own[rank + 1];
        else if (other_taken < survey.candidates[1 - from]) next = survey.in_order(1 - from, num_blocks)[other_taken];
        why = 2 * (from != place.kind) + (cached[block] != 0);
        block_table[entry] = block;
        ref[block] = 1;
        gen[block] += 1;
        uses[block] = 1;
        cached[block] = 0;
        level[block] = 0;
        last_use[block] = clock + 1 + place.order;
        if (history) history[entry] = 0;
    } else if (place.asks) {
        block_table[entry] = -1;  // no mark stays
    }
    if (i >= num_requests) return;
    allocated[i] = block;
    region[i] = from;
    reason[i] = why;
    runner_up[i] = next;
}

#define ADVANCED_ARGUMENTS                                                                                            \
    reqs, request_freq, block_table, ref, gen, cached, level, last_use, uses, allocated, region, reason, runner_up,   \
        num_allocated, freq, hits, lookups, history, box, workspace, num_requests, num_seqs, max_blocks_per_seq,      \
        num_blocks, num_layers, layer_stride, num_kv_heads, head_dim, workspace_words, cache_size, clock,             \
        hot_frequency, all_or_nothing, status

// Up to 1024 requests by a cluster, each thread block an eighth of them.
extern "C" __global__ void CLUSTER __launch_bounds__(1024) advanced_block_allocation_few(ADVANCED_PARAMETERS) {
    constexpr int OWN = MOST_FEW / CLUSTER_BLOCKS, DOUBLED = 1 << 16;
    __shared__ int asking_in[CLUSTER_BLOCKS], cold_in[CLUSTER_BLOCKS];
    __shared__ int first_in[CLUSTER_BLOCKS], first_cold_in[CLUSTER_BLOCKS], dry_in[CLUSTER_BLOCKS], first_dry;
    Survey& survey = survey_of(workspace);
    if (blockIdx.x >= CLUSTER_BLOCKS) return;
    say_started();
    const Marks marks(block_table, num_requests);
    const int64_t i = cluster_rank() * OWN + threadIdx.x;
    const bool asked = threadIdx.x < OWN && i < num_requests;
    const int64_t entry = asked ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    const bool cold = asked && request_freq[i] <= hot_frequency;
    if (threadIdx.x == 0) first_dry = 0x7fffffff;
    bool doubled = false;
    bool valid = entry >= 0 && marks.put(entry, i, &doubled);
    int here, cold_here, before, asking, cold_before, all_cold;
    int rank = block_rank(valid, &here), cold_rank = block_rank(valid && cold, &cold_here);
    const bool any_doubled = __syncthreads_or(doubled);
    all_started();
    tell_cluster(asking_in, here + (any_doubled ? DOUBLED : 0));
    tell_cluster(cold_in, cold_here);
    cluster_barrier();
    sums_told(asking_in, &before, &asking);
    sums_told(cold_in, &cold_before, &all_cold);
    if (asking >= DOUBLED) {  // somewhere an entry was named twice: now all marks are there
        valid = valid && marks.stands(entry, i);
        rank = block_rank(valid, &here);
        cold_rank = block_rank(valid && cold, &cold_here);
        tell_cluster(first_in, here);
        tell_cluster(first_cold_in, cold_here);
        cluster_barrier();
        sums_told(first_in, &before, &asking);
        sums_told(first_cold_in, &cold_before, &all_cold);
    }
    follow_launch();  // only this one looks at requests and table
    // What nobody reads any more.
    int4* const counts = reinterpret_cast<int4*>(survey.histogram);
    for (int k = cluster_rank() * blockDim.x + threadIdx.x; k < NUM_BINS; k += CLUSTER_BLOCKS * blockDim.x) counts[k] = {0, 0, 0, 0};
    Place place = {valid, valid && cold, before + rank, 0};
    place.of_kind = place.kind ? cold_before + cold_rank : place.order - cold_before - cold_rank;
    const int64_t served = served_of(asking, survey, all_or_nothing);
    int flags = asking > (int64_t)survey.candidates[0] + survey.candidates[1] ? STATUS_OOM : 0;
    if (asked && !valid) flags |= entry < 0 ? STATUS_RANGE : STATUS_ALREADY_MAPPED;
    unsigned long long dry = ~0ull;
    if (asking - all_cold > survey.candidates[0] || all_cold > survey.candidates[1]) {
        const unsigned long long mark = dry_mark(place, survey, served);
        if (mark != ~0ull) atomicMin(&first_dry, (int)mark);
        __syncthreads();
        tell_cluster(dry_in, first_dry);
        cluster_barrier();
        int earliest = 0x7fffffff;
        for (int k = 0; k < CLUSTER_BLOCKS; ++k) earliest = min(earliest, dry_in[k]);
        if (earliest != 0x7fffffff) dry = earliest;
    }
    serve(place, asked ? i : num_requests, entry, served, dry, survey, ADVANCED_ARGUMENTS);
    if (i == 0) num_allocated[0] = (int)served;
    if (flags) atomicOr(status, flags);
    cluster_barrier();  // all have read the head of the survey, and nobody leaves while another may still tell it something
    if (i < Survey::HEAD) workspace[i] = 0;
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
    Survey& survey = survey_of(workspace);
    const int64_t i = request_of_thread();
    const int64_t entry = i < num_requests ? entry_of(reqs, i, num_seqs, max_blocks_per_seq) : -1;
    int asking;
    const Place place = place_in_grid(allocated, request_freq, survey.tiles(num_blocks), num_requests, hot_frequency, &asking);
    const int64_t served = served_of(asking, survey, all_or_nothing);
    serve(place, i, entry, served, ~survey.below_dry, survey, ADVANCED_ARGUMENTS);
    if (i == 0) {
        num_allocated[0] = (int)served;
        if (asking > (int64_t)survey.candidates[0] + survey.candidates[1]) atomicOr(status, STATUS_OOM);
    }
    if (!last_to_arrive(&survey.arrivals)) return;
    for (int k = threadIdx.x; k < gridDim.x; k += blockDim.x) survey.tiles(num_blocks)[2 * gridDim.x + k] = 0;
    int4* const zeros = reinterpret_cast<int4*>(workspace);
    for (int k = threadIdx.x; k < Survey::ZEROS / 4; k += blockDim.x) zeros[k] = {0, 0, 0, 0};
}

// One warp per request, eight to a thread block.
extern "C" __global__ void advanced_block_allocation_forget(ADVANCED_PARAMETERS) {
    follow_launch();
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t i = (int64_t)blockIdx.x * (blockDim.x / WARP_SIZE) + threadIdx.x / WARP_SIZE;
    if (i >= num_requests || allocated[i] < 0) return;
    const int64_t block = allocated[i];
    int* const counters[] = {freq, hits, lookups};
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        if (lane == k && counters[k]) counters[k][block] = 0;
    }
    if (box) empty_box(box, block, num_layers, layer_stride, num_kv_heads, head_dim, lane, WARP_SIZE);
}
