// Raise or lower each block's protection level from its hit rate and its accesses, then age the accesses.
// One thread per block; every element has one owner, so nothing is atomic.
// TinyServe S:358-385; what was wrong there is in docs/published-defects.md.
#include "common.cuh"

constexpr int MAX_LEVEL = 4;

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
    const int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= num_blocks) return;
    const int64_t hit = hits[block], looked = lookups[block], busy = freq[block];
    const int64_t theta = hit_threshold_permille;
    const bool kept = ref[block] > 0 || cached[block] != 0;
    // Strict comparisons of integers: a block that was never looked up holds.
    const bool up = kept && hit * 1000 < theta * looked && busy > frequency_threshold;
    const bool down = kept && !up && hit * 2000 > 3 * theta * looked && 2 * busy < frequency_threshold;
    const int change = up ? 1 : down ? -1 : 0;
    decision[block] = (int8_t)change;
    level[block] = kept ? min(max(level[block] + change, 0), MAX_LEVEL) : 0;
    const int64_t scaled = busy * decay_permille;  // floor, as the reference divides
    freq[block] = (int)(scaled >= 0 ? scaled / 1000 : -((-scaled + 999) / 1000));
}
