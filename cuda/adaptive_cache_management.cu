// Raise or lower each block's protection level from its hit rate and its accesses, then age the accesses.
// Four neighbouring blocks per thread, in 16-byte loads where all addresses allow it; every element has one owner, so
// nothing is atomic. Products are taken in 32 bits where the numbers are small, as they nearly always are: 64-bit
// arithmetic is 70 instructions a block, which shows beside 30 bytes of memory.
// TinyServe S:358-385; what was wrong there is in docs/published-defects.md.
#include "common.cuh"

constexpr int MAX_LEVEL = 4, PER_THREAD = 4;
constexpr unsigned SMALL = 1 << 20;  // counts below it times 3000 stay below 2^32

struct Thresholds {
    int hit_permille, frequency, few, decay_permille;  // few: the most accesses whose double is below the threshold

    __device__ __forceinline__ Thresholds(int hit_permille, int frequency, int decay_permille)
        : hit_permille(hit_permille), frequency(frequency), few((int)(((int64_t)frequency - 1) >> 1)),
          decay_permille(decay_permille) {}
};

struct Decided {
    int level, freq, change;
};

// `Number` holds every product: int64_t always, unsigned where all counts are SMALL and no permille is above 1000.
template <typename Number>
__device__ __forceinline__ Decided decide(int hits, int lookups, bool kept, int freq, int level, const Thresholds& at) {
    const Number hit = hits, looked = lookups, theta = at.hit_permille, scaled = (Number)freq * at.decay_permille;
    // Strict comparisons of integers: a block that was never looked up holds.
    const bool up = kept && hit * 1000 < theta * looked && freq > at.frequency;
    const bool down = kept && !up && hit * 2000 > 3 * theta * looked && freq <= at.few;
    const int change = up ? 1 : down ? -1 : 0;
    const bool negative = (int64_t)scaled < 0;  // floor, as the reference divides
    return {kept ? min(max(level + change, 0), MAX_LEVEL) : 0,
            (int)(negative ? -((999 - (int64_t)scaled) / 1000) : scaled / 1000), change};
}

extern "C" __global__ void adaptive_cache_management(
    const int* hits,        // [num_blocks] prefix hits in the window
    const int* lookups,     // [num_blocks] prefix lookups in the window
    const int* ref,         // [num_blocks]
    const uint8_t* cached,  // [num_blocks] 1: free but still in the prefix index
    int* freq,              // [num_blocks] accesses in the window; decayed after the decision
    int* level,             // [num_blocks] 0 to MAX_LEVEL
    int8_t* decision,       // [num_blocks] +1 raise, -1 lower, 0 hold
    int64_t num_blocks,
    int hit_threshold_permille,
    int frequency_threshold,
    int decay_permille,
    int* status) {
    const int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * PER_THREAD;
    if (first >= num_blocks) return;
    const auto address = [](const void* pointer) { return (unsigned long long)pointer; };
    const bool wide = ((address(hits) | address(lookups) | address(ref) | address(freq) | address(level)) & 15) == 0 &&
                      ((address(cached) | address(decision)) & 3) == 0 && first + PER_THREAD <= num_blocks;
    const Thresholds thresholds(hit_threshold_permille, frequency_threshold, decay_permille);
    if (!wide) {
        for (int64_t block = first; block < min(first + PER_THREAD, num_blocks); ++block) {
            const bool kept = ref[block] > 0 || cached[block] != 0;
            const Decided d = decide<int64_t>(hits[block], lookups[block], kept, freq[block], level[block], thresholds);
            decision[block] = (int8_t)d.change;
            level[block] = d.level;
            freq[block] = d.freq;
        }
        return;
    }
    const int4 hit = __ldg(reinterpret_cast<const int4*>(hits + first));
    const int4 looked = __ldg(reinterpret_cast<const int4*>(lookups + first));
    const int4 refs = __ldg(reinterpret_cast<const int4*>(ref + first));
    const int4 busy = __ldg(reinterpret_cast<const int4*>(freq + first));
    const int4 at = __ldg(reinterpret_cast<const int4*>(level + first));
    const uchar4 kept = __ldg(reinterpret_cast<const uchar4*>(cached + first));
    const int any = hit.x | hit.y | hit.z | hit.w | looked.x | looked.y | looked.z | looked.w | busy.x | busy.y | busy.z | busy.w;
    const bool small = (unsigned)any < SMALL && (unsigned)hit_threshold_permille <= 1000 && (unsigned)decay_permille <= 1000;
    Decided x, y, z, w;
    const auto all = [&](auto number) {
        using Number = decltype(number);
        x = decide<Number>(hit.x, looked.x, refs.x > 0 || kept.x != 0, busy.x, at.x, thresholds);
        y = decide<Number>(hit.y, looked.y, refs.y > 0 || kept.y != 0, busy.y, at.y, thresholds);
        z = decide<Number>(hit.z, looked.z, refs.z > 0 || kept.z != 0, busy.z, at.z, thresholds);
        w = decide<Number>(hit.w, looked.w, refs.w > 0 || kept.w != 0, busy.w, at.w, thresholds);
    };
    if (small) all(0u);
    else all((int64_t)0);
    *reinterpret_cast<int4*>(level + first) = make_int4(x.level, y.level, z.level, w.level);
    *reinterpret_cast<int4*>(freq + first) = make_int4(x.freq, y.freq, z.freq, w.freq);
    *reinterpret_cast<char4*>(decision + first) =
        make_char4((signed char)x.change, (signed char)y.change, (signed char)z.change, (signed char)w.change);
}
