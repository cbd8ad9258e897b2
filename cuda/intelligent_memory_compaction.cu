// Plan a compaction: pair the k-th lowest hole with the k-th highest movable block while the move pays. Moves nothing.
// One thread block of 1024 threads: scans over the pool in tiles give each hole and each mover its rank, and the rank is
// its row in `moves`; a second pass over the rows counts the moves that come down far enough.
// TinyServe S:571-580 (a sketch); trigger: vllm-gaudi's defragmenter.
#include "common.cuh"

extern "C" __global__ void intelligent_memory_compaction(
    const int* ref,         // [num_blocks]
    const uint8_t* cached,  // [num_blocks] 1: free but still in the prefix index
    const int* uses,        // [num_blocks]
    const int* level,       // [num_blocks]
    int* moves,             // [max_moves][2] source, destination, then -1
    int* num_moves,         // [1]
    int* old_to_new,        // [num_blocks]
    float* weight,          // [num_blocks]
    int64_t* metrics,       // [10] live, free, movable, pinned, max_live before and after, frag before and after,
                            //      planned, verdict
    int* workspace,         // not used
    int64_t num_blocks,
    int64_t max_moves,
    int64_t workspace_words,
    int64_t threshold_permille,
    int weight_uses,
    int weight_level,
    int weight_shared,
    int64_t trigger_permille,
    int min_moves,
    int min_gain,
    int64_t payback_permille,
    int* status) {
    const auto weight_of = [&](int64_t block) {
        return (int64_t)weight_uses * uses[block] + (int64_t)weight_level * level[block] +
               (int64_t)weight_shared * (ref[block] > 1);
    };
    const auto movable = [&](int64_t block) { return ref[block] > 0 && weight_of(block) < threshold_permille; };
    int64_t live = 0, movers = 0, top = -1;
    for (int64_t i = threadIdx.x; i < 2 * max_moves; i += blockDim.x) moves[i] = -1;
    for (int64_t block = threadIdx.x; block < num_blocks; block += blockDim.x) {
        const bool is_live = ref[block] > 0;
        live += is_live;
        movers += movable(block);
        if (is_live) top = block;
        weight[block] = is_live ? __fdiv_rn(__ll2float_rn(weight_of(block)), 1000.0f) : 0.0f;
        old_to_new[block] = (int)block;
    }
    live = block_sum(live);
    movers = block_sum(movers);
    top = block_max(top);
    int64_t holes = 0, ranked = 0;
    for (int64_t start = 0; start < num_blocks; start += blockDim.x) {
        const int64_t block = start + threadIdx.x;
        const bool inside = block < num_blocks;
        const bool hole = inside && ref[block] <= 0 && cached[block] == 0, mover = inside && movable(block);
        int64_t tile_holes, tile_movers;
        const int64_t hole_rank = holes + block_exclusive_scan(hole, &tile_holes);
        const int64_t from_top = movers - 1 - (ranked + block_exclusive_scan(mover, &tile_movers));
        if (hole && hole_rank < max_moves) moves[2 * hole_rank + 1] = (int)block;
        if (mover && from_top < max_moves) moves[2 * from_top] = (int)block;
        holes += tile_holes;
        ranked += tile_movers;
    }
    __syncthreads();
    const int64_t pairs = min(min(holes, movers), max_moves);
    int64_t paying = 0;
    for (int64_t i = threadIdx.x; i < pairs; i += blockDim.x) {
        paying += (int64_t)moves[2 * i] - moves[2 * i + 1] >= min_gain;
    }
    const int64_t planned = block_sum(paying);
    // Movers go from the top, so those that would go are the movable blocks from the last planned source up.
    const int64_t lowest_source = planned > 0 ? moves[2 * (planned - 1)] : num_blocks;
    int64_t new_top = planned > 0 ? moves[2 * (planned - 1) + 1] : -1;
    for (int64_t block = threadIdx.x; block < num_blocks; block += blockDim.x) {
        if (ref[block] > 0 && !(block >= lowest_source && movable(block))) new_top = max(new_top, block);
    }
    new_top = block_max(new_top);
    const int64_t frag = live ? (top + 1) * 1000 / live : 0;
    int64_t verdict = 0;
    if (trigger_permille && frag <= trigger_permille) verdict = 1;
    else if (planned == 0) verdict = 4;
    else if (planned < min_moves) verdict = 2;
    else if ((top - new_top) * 1000 < payback_permille * planned) verdict = 3;
    const int64_t done = verdict ? 0 : planned;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < max_moves; i += blockDim.x) {
        if (i < done) old_to_new[moves[2 * i]] = moves[2 * i + 1];
        else moves[2 * i] = moves[2 * i + 1] = -1;
    }
    if (threadIdx.x != 0) return;
    num_moves[0] = (int)done;
    const int64_t top_after = verdict ? top : new_top;
    const int64_t found[] = {live,      holes, movers, live - movers, top,
                             top_after, frag,  live ? (top_after + 1) * 1000 / live : 0, planned, verdict};
    for (int i = 0; i < 10; ++i) metrics[i] = found[i];
}
