// Raise or lower each block's protection level from its hit rate and its accesses, then age the accesses.
// Four neighbouring blocks per thread, in 16-byte loads where all addresses allow it; every element has one owner, so
// nothing is atomic.
// TinyServe S:358-385; what was wrong there is in docs/published-defects.md.
#include "common.cuh"

constexpr int MAX_LEVEL = 4, PER_THREAD = 4;

struct Decided {
    int level, freq, change;
};

__device__ __forceinline__ Decided decide(int hits, int lookups, bool kept, int freq, int level, int64_t theta,
                                          int frequency_threshold, int decay_permille) {
    const int64_t hit = hits, looked = lookups, busy = freq;
    // Strict comparisons of integers: a block that was never looked up holds.
    const bool up = kept && hit * 1000 < theta * looked && busy > frequency_threshold;
    const bool down = kept && !up && hit * 2000 > 3 * theta * looked && 2 * busy < frequency_threshold;
    const int change = up ? 1 : down ? -1 : 0;
    const int64_t scaled = busy * decay_permille;  // floor, as the reference divides
    return {kept ? min(max(level + change, 0), MAX_LEVEL) : 0,
            (int)(scaled >= 0 ? scaled / 1000 : -((-scaled + 999) / 1000)), change};
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
    if (!wide) {
        for (int64_t block = first; block < min(first + PER_THREAD, num_blocks); ++block) {
            const Decided d = decide(hits[block], lookups[block], ref[block] > 0 || cached[block] != 0, freq[block],
                                     level[block], hit_threshold_permille, frequency_threshold, decay_permille);
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
    const auto one = [&](int h, int l, int r, int c, int f, int v) {
        return decide(h, l, r > 0 || c != 0, f, v, hit_threshold_permille, frequency_threshold, decay_permille);
    };
    const Decided x = one(hit.x, looked.x, refs.x, kept.x, busy.x, at.x), y = one(hit.y, looked.y, refs.y, kept.y, busy.y, at.y);
    const Decided z = one(hit.z, looked.z, refs.z, kept.z, busy.z, at.z), w = one(hit.w, looked.w, refs.w, kept.w, busy.w, at.w);
    *reinterpret_cast<int4*>(level + first) = make_int4(x.level, y.level, z.level, w.level);
    *reinterpret_cast<int4*>(freq + first) = make_int4(x.freq, y.freq, z.freq, w.freq);
    *reinterpret_cast<char4*>(decision + first) =
        make_char4((signed char)x.change, (signed char)y.change, (signed char)z.change, (signed char)w.change);
}
