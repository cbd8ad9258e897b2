// Plan a compaction: pair the k-th lowest hole with the k-th highest movable block while the move pays. Moves nothing.
// A thread per block of the pool. Up to 8192 blocks: one cluster, with the pairs in its shared memory. More: launches of
// 1024 threads; the first counts holes and movers of each stretch of the pool, the second gives each its rank, which is
// its row in `moves`; then one thread block finds how many rows pay (their gains fall from row to row, so by a search with
// all threads) and the verdict, and the last launch clears the rest.
// TinyServe S:571-580 (a sketch); trigger: vllm-gaudi's defragmenter.
#include "cluster.cuh"

#define PLAN_PARAMETERS                                                                                               \
    const int *ref, const uint8_t *cached, const int *uses, const int *level, int *moves, int *num_moves,             \
        int *old_to_new, float *weight, int64_t *metrics, int *workspace, int64_t num_blocks, int64_t max_moves,      \
        int64_t workspace_words, int64_t threshold_permille, int weight_uses, int weight_level, int weight_shared,    \
        int64_t trigger_permille, int min_moves, int min_gain, int64_t payback_permille, int *status

// Workspace: five rows with an int per stretch, then NEXT_MOVER and DONE.
enum Row { HOLES, MOVERS, LIVE, TOP_LIVE, TOP_PINNED, NUM_ROWS };
enum Cell { NEXT_MOVER, DONE, NUM_CELLS };

struct Plan {
    int* rows;
    int64_t stretches;

    __device__ __forceinline__ Plan(int* workspace, int64_t words)
        : rows(workspace), stretches((words - NUM_CELLS) / NUM_ROWS) {}
    __device__ __forceinline__ int* row(Row row) const { return rows + row * stretches; }
    __device__ __forceinline__ int& cell(Cell cell) const { return rows[NUM_ROWS * stretches + cell]; }
};

__device__ __forceinline__ int64_t weight_of(int uses, int level, int references, int weight_uses, int weight_level,
                                             int weight_shared) {
    return (int64_t)weight_uses * uses + (int64_t)weight_level * level + (int64_t)weight_shared * (references > 1);
}

// Largest value of the warp, in every lane.
__device__ __forceinline__ int warp_max(int value) {
    for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
        value = max(value, __shfl_xor_sync(FULL_WARP, value, width));
    }
    return value;
}

extern "C" __global__ void intelligent_memory_compaction_tally(PLAN_PARAMETERS) {
    start_next_launch();
    __shared__ int top_live, top_pinned;
    const Plan plan(workspace, workspace_words);
    const int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (threadIdx.x == 0) top_live = top_pinned = -1;
    bool live = false, mover = false, hole = false;
    if (block < num_blocks) {
        const int references = ref[block];
        const int64_t heavy = weight_of(uses[block], level[block], references, weight_uses, weight_level, weight_shared);
        live = references > 0;
        mover = live && heavy < threshold_permille;
        hole = !live && cached[block] == 0;
        weight[block] = live ? __fdiv_rn(__ll2float_rn(heavy), 1000.0f) : 0.0f;
        old_to_new[block] = (int)block;
    }
    const int holes = __syncthreads_count(hole), movers = __syncthreads_count(mover), lives = __syncthreads_count(live);
    const int highest = warp_max(live ? (int)block : -1), pinned = warp_max(live && !mover ? (int)block : -1);
    if (threadIdx.x % WARP_SIZE == 0) {
        atomicMax(&top_live, highest);
        atomicMax(&top_pinned, pinned);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    plan.row(HOLES)[blockIdx.x] = holes;
    plan.row(MOVERS)[blockIdx.x] = movers;
    plan.row(LIVE)[blockIdx.x] = lives;
    plan.row(TOP_LIVE)[blockIdx.x] = top_live;
    plan.row(TOP_PINNED)[blockIdx.x] = top_pinned;
    if (blockIdx.x == 0) plan.cell(NEXT_MOVER) = -1;
}

extern "C" __global__ void intelligent_memory_compaction_rank(PLAN_PARAMETERS) {
    start_next_launch();
    follow_launch();
    const Plan plan(workspace, workspace_words);
    const int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    bool mover = false, hole = false;
    if (block < num_blocks) {
        const int references = ref[block];
        mover = references > 0 && weight_of(uses[block], level[block], references, weight_uses, weight_level,
                                            weight_shared) < threshold_permille;
        hole = references <= 0 && cached[block] == 0;
    }
    int holes, movers, all_holes, all_movers, in_stretch;
    sums_before(plan.row(HOLES), blockIdx.x, plan.stretches, &holes, &all_holes);
    sums_before(plan.row(MOVERS), blockIdx.x, plan.stretches, &movers, &all_movers);
    const int64_t hole_rank = holes + (int64_t)block_rank(hole, &in_stretch);
    const int64_t from_top = all_movers - 1 - (movers + (int64_t)block_rank(mover, &in_stretch));
    if (hole && hole_rank < max_moves) moves[2 * hole_rank + 1] = (int)block;
    if (mover && from_top < max_moves) moves[2 * from_top] = (int)block;
    if (mover && from_top == max_moves) plan.cell(NEXT_MOVER) = (int)block;
}

// What becomes of a plan of `planned` moves that would leave the highest live block at `new_top`, 0: it is carried out.
__device__ __forceinline__ int64_t verdict_on(int64_t planned, int64_t live, int64_t top, int64_t new_top,
                                              int64_t trigger_permille, int min_moves, int64_t payback_permille) {
    const int64_t frag = live ? (top + 1) * 1000 / live : 0;
    if (trigger_permille && frag <= trigger_permille) return 1;
    if (planned == 0) return 4;
    if (planned < min_moves) return 2;
    return (top - new_top) * 1000 < payback_permille * planned ? 3 : 0;
}

// Up to 8192 blocks by a cluster: thread block `rank` has an eighth of the pool and an eighth of the rows.
__device__ __forceinline__ void plan_at_once(PLAN_PARAMETERS) {
    constexpr int STRETCH = 1024, OWN = 8 * STRETCH / CLUSTER_BLOCKS, PER_THREAD = OWN / STRETCH;
    __shared__ unsigned short hole_of[OWN], mover_of[OWN];  // of this thread block's rows
    __shared__ int told[NUM_ROWS][CLUSTER_BLOCKS], paying_in[CLUSTER_BLOCKS], tops[2];
    say_started();
    const int first = cluster_rank() * OWN + threadIdx.x;
    bool mover[PER_THREAD], hole[PER_THREAD];
    int hole_rank[PER_THREAD], mover_rank[PER_THREAD], holes_here = 0, movers_here = 0, lives_here = 0;
    if (threadIdx.x < 2) tops[threadIdx.x] = -1;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int block = first + k * STRETCH;
        bool live = false;
        mover[k] = hole[k] = false;
        if (block < num_blocks) {
            const int references = ref[block];
            const int64_t heavy = weight_of(uses[block], level[block], references, weight_uses, weight_level, weight_shared);
            live = references > 0;
            mover[k] = live && heavy < threshold_permille;
            hole[k] = !live && cached[block] == 0;
            weight[block] = live ? __fdiv_rn(__ll2float_rn(heavy), 1000.0f) : 0.0f;
        }
        int in_stretch;
        hole_rank[k] = holes_here + block_rank(hole[k], &in_stretch);
        holes_here += in_stretch;
        mover_rank[k] = movers_here + block_rank(mover[k], &in_stretch);
        movers_here += in_stretch;
        lives_here += __syncthreads_count(live);
        const int highest = warp_max(live ? block : -1), pinned = warp_max(live && !mover[k] ? block : -1);
        if (threadIdx.x % WARP_SIZE != 0) continue;
        if (highest >= 0) atomicMax(&tops[0], highest);
        if (pinned >= 0) atomicMax(&tops[1], pinned);
    }
    __syncthreads();
    const int own[NUM_ROWS] = {holes_here, movers_here, lives_here, tops[0], tops[1]};
    all_started();
#pragma unroll
    for (int row = 0; row < NUM_ROWS; ++row) tell_cluster(told[row], own[row]);
    cluster_barrier();
    int before[NUM_ROWS], all[NUM_ROWS], top = -1, top_pinned = -1;
    for (int row = 0; row < TOP_LIVE; ++row) sums_told(told[row], &before[row], &all[row]);
    for (int i = 0; i < CLUSTER_BLOCKS; ++i) {
        top = max(top, told[TOP_LIVE][i]);
        top_pinned = max(top_pinned, told[TOP_PINNED][i]);
    }
    const int64_t pairs = min((int64_t)min(all[HOLES], all[MOVERS]), max_moves);
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        hole_rank[k] += before[HOLES];
        mover_rank[k] = all[MOVERS] - 1 - (before[MOVERS] + mover_rank[k]);  // from the top
        const int block = first + k * STRETCH;
        if (hole[k]) *shared_of(&hole_of[hole_rank[k] % OWN], hole_rank[k] / OWN) = (unsigned short)block;
        if (mover[k]) *shared_of(&mover_of[mover_rank[k] % OWN], mover_rank[k] / OWN) = (unsigned short)block;
    }
    cluster_barrier();
    int paying = 0;
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int at = threadIdx.x + k * STRETCH;
        paying += __syncthreads_count(first + k * STRETCH < pairs && mover_of[at] - hole_of[at] >= min_gain);
    }
    tell_cluster(paying_in, paying);
    cluster_barrier();
    int planned, earlier;  // gains fall from row to row: so many pay, and no more
    sums_told(paying_in, &earlier, &planned);
    // Left at the top: the highest pinned block, the first mover that stays, the last destination.
    int new_top = top_pinned;
    if (planned < all[MOVERS]) new_top = max(new_top, (int)*shared_of(&mover_of[planned % OWN], planned / OWN));
    if (planned > 0) new_top = max(new_top, (int)*shared_of(&hole_of[(planned - 1) % OWN], (planned - 1) / OWN));
    const int64_t live = all[LIVE];
    const int64_t verdict = verdict_on(planned, live, top, new_top, trigger_permille, min_moves, payback_permille);
    const int done = verdict ? 0 : planned;
#pragma unroll
    for (int k = 0; k < PER_THREAD; ++k) {
        const int block = first + k * STRETCH, at = threadIdx.x + k * STRETCH;
        const bool moves_away = mover[k] && mover_rank[k] < done;
        if (block < num_blocks) {
            old_to_new[block] = moves_away ? *shared_of(&hole_of[mover_rank[k] % OWN], mover_rank[k] / OWN) : block;
        }
        if (block >= max_moves) continue;
        moves[2 * block] = block < done ? mover_of[at] : -1;
        moves[2 * block + 1] = block < done ? hole_of[at] : -1;
    }
    for (int64_t row = OWN * CLUSTER_BLOCKS + first; row < max_moves; row += OWN * CLUSTER_BLOCKS) {
        for (int k = 0; k < OWN && row + k < max_moves; k += STRETCH) moves[2 * (row + k)] = moves[2 * (row + k) + 1] = -1;
    }
    if (first == 0) {
        const int64_t top_after = verdict ? top : new_top;
        num_moves[0] = done;
        const int64_t found[] = {live,      all[HOLES], all[MOVERS], live - all[MOVERS], top,
                                 top_after, live ? (top + (int64_t)1) * 1000 / live : 0,
                                 live ? (top_after + 1) * 1000 / live : 0, planned, verdict};
        for (int i = 0; i < 10; ++i) metrics[i] = found[i];
    }
    cluster_barrier();  // nobody leaves while another may still look into its shared memory
}

extern "C" __global__ void CLUSTER __launch_bounds__(1024) intelligent_memory_compaction(
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
    int* workspace,         // [workspace_words] see Plan, or null up to 8192 blocks
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
    start_next_launch();
    follow_launch();
    __shared__ int totals[NUM_ROWS];
    if (workspace_words == 0) {
        if (blockIdx.x < CLUSTER_BLOCKS) {
            plan_at_once(ref, cached, uses, level, moves, num_moves, old_to_new, weight, metrics, workspace, num_blocks,
                         max_moves, workspace_words, threshold_permille, weight_uses, weight_level, weight_shared,
                         trigger_permille, min_moves, min_gain, payback_permille, status);
        }
        return;
    }
    if (blockIdx.x > 0) return;
    const Plan plan(workspace, workspace_words);
    if (threadIdx.x < NUM_ROWS) totals[threadIdx.x] = threadIdx.x < TOP_LIVE ? 0 : -1;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < plan.stretches; i += blockDim.x) {
        for (int row = 0; row < NUM_ROWS; ++row) {
            const int value = plan.row((Row)row)[i];
            if (row < TOP_LIVE) atomicAdd(&totals[row], value);
            else atomicMax(&totals[row], value);
        }
    }
    __syncthreads();
    const int64_t holes = totals[HOLES], movers = totals[MOVERS], live = totals[LIVE], top = totals[TOP_LIVE];
    const int64_t pairs = min(min(holes, movers), max_moves);
    int64_t low = 0, high = pairs;  // so many rows pay, and no more
    while (low < high) {
        const int64_t width = (high - low + blockDim.x - 1) / blockDim.x, row = low + threadIdx.x * width;
        const int paying =
            __syncthreads_count(row < high && (int64_t)moves[2 * row] - moves[2 * row + 1] >= min_gain);
        if (paying == 0) break;
        high = min(high, low + paying * width);
        low += (paying - 1) * width + 1;
    }
    if (threadIdx.x != 0) return;
    const int64_t planned = low;
    // Left at the top: the highest pinned block, the first mover that stays, the last destination.
    int64_t new_top = totals[TOP_PINNED];
    if (planned < movers) new_top = max(new_top, (int64_t)(planned < max_moves ? moves[2 * planned] : plan.cell(NEXT_MOVER)));
    if (planned > 0) new_top = max(new_top, (int64_t)moves[2 * planned - 1]);
    const int64_t frag = live ? (top + 1) * 1000 / live : 0;
    const int64_t verdict = verdict_on(planned, live, top, new_top, trigger_permille, min_moves, payback_permille);
    const int64_t done = verdict ? 0 : planned, top_after = verdict ? top : new_top;
    plan.cell(DONE) = (int)done;
    num_moves[0] = (int)done;
    const int64_t found[] = {live,      holes, movers, live - movers, top,
                             top_after, frag,  live ? (top_after + 1) * 1000 / live : 0, planned, verdict};
    for (int i = 0; i < 10; ++i) metrics[i] = found[i];
}

extern "C" __global__ void intelligent_memory_compaction_settle(PLAN_PARAMETERS) {
    follow_launch();
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= max_moves) return;
    if (i < Plan(workspace, workspace_words).cell(DONE)) old_to_new[moves[2 * i]] = moves[2 * i + 1];
    else moves[2 * i] = moves[2 * i + 1] = -1;
}
