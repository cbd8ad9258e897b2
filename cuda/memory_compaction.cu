// Carry out a compaction plan, or refuse it: move K, V and boxes, remap the tables, hand over the blocks' state.
// Three launches: one thread block checks the plan by marks per block; one per (move, layer) copies, where sources and
// destinations are disjoint, so that the order does not matter; then threads over table entries and moves.
// TinyServe's published memory_compaction_kernel and S:571-580; there two blocks could move into one.
#include "marks.cuh"

#define COMPACTION_PARAMETERS                                                                                         \
    const int *moves, const int *num_moves, const int *old_to_new, half *key_cache, half *value_cache, half *box,     \
        int *block_table, int *ref, int *gen, uint8_t *cached, int *level, int64_t *last_use, int *uses, int *freq,   \
        int *hits, int *lookups, int *workspace, int64_t max_moves, int64_t num_blocks, int64_t num_layers,           \
        int64_t layer_stride, int64_t block_size, int64_t num_kv_heads, int64_t head_dim, int64_t num_seqs,           \
        int64_t max_blocks_per_seq, int64_t workspace_words, int *status

extern "C" __global__ void memory_compaction_check(COMPACTION_PARAMETERS) {
    const int64_t count = num_moves[0];
    const bool countable = count >= 0 && count <= max_moves;
    int outside = countable ? 0 : 1, conflict = 0;
    for (int64_t i = threadIdx.x; countable && i < 2 * count; i += blockDim.x) {
        const int block = moves[i];
        if (block < 0 || block >= num_blocks) {
            outside = 1;
            continue;
        }
        // A block may stand once in the whole plan, as a source or as a destination.
        if (atomicOr(&workspace[block], i % 2 == 0 ? MARK_SOURCE : MARK_TARGET)) conflict = 1;
        const bool holds = ref[block] != 0 || cached[block] != 0;
        if (i % 2 == 0 && ref[block] < 1 && cached[block] == 0) conflict = 1;
        if (i % 2 == 1 && holds) conflict = 1;
    }
    const bool any_outside = __syncthreads_or(outside);
    for (int64_t i = threadIdx.x; !any_outside && i < count; i += blockDim.x) {
        if (old_to_new[moves[2 * i]] != moves[2 * i + 1]) conflict = 1;
    }
    for (int64_t block = threadIdx.x; !any_outside && block < num_blocks; block += blockDim.x) {
        if (!(workspace[block] & MARK_SOURCE) && old_to_new[block] != block) conflict = 1;
    }
    const bool any_conflict = __syncthreads_or(conflict);
    for (int64_t i = threadIdx.x; countable && i < 2 * count; i += blockDim.x) {
        if (moves[i] >= 0 && moves[i] < num_blocks) workspace[moves[i]] = 0;
    }
    if (threadIdx.x == 0) {
        const int flag = any_outside ? STATUS_RANGE : any_conflict ? STATUS_CONFLICT : 0;
        workspace[num_blocks] = flag;
        if (flag) atomicOr(status, flag);
    }
}

extern "C" __global__ void memory_compaction(
    const int* moves,       // [max_moves][2] source, destination; the first num_moves rows count
    const int* num_moves,   // [1]
    const int* old_to_new,  // [num_blocks] destination of each block, itself when it stays
    half* key_cache,        // [num_layers][layer_stride][block_size][num_kv_heads][head_dim]
    half* value_cache,      // as key_cache
    half* box,              // [num_layers][layer_stride][num_kv_heads][2][head_dim] or null
    int* block_table,       // [num_seqs][max_blocks_per_seq]
    int* ref,               // [num_blocks], as the next eight
    int* gen,
    uint8_t* cached,
    int* level,  // or null, as the next five
    int64_t* last_use,
    int* uses,
    int* freq,
    int* hits,
    int* lookups,
    int* workspace,  // [workspace_words] see marks.cuh
    int64_t max_moves,
    int64_t num_blocks,
    int64_t num_layers,
    int64_t layer_stride,
    int64_t block_size,
    int64_t num_kv_heads,
    int64_t head_dim,
    int64_t num_seqs,
    int64_t max_blocks_per_seq,
    int64_t workspace_words,
    int* status) {
    const int64_t move = blockIdx.x, layer = blockIdx.y;
    if (refused(workspace, num_blocks) || move >= num_moves[0] || layer >= num_layers) return;
    const int64_t source = layer * layer_stride + moves[2 * move], target = layer * layer_stride + moves[2 * move + 1];
    const int64_t from = pool_offset(source, 0, 0, 0, block_size, num_kv_heads, head_dim);
    const int64_t to = pool_offset(target, 0, 0, 0, block_size, num_kv_heads, head_dim);
    const int64_t channels = num_kv_heads * head_dim;
    copy_halfs(key_cache + from, key_cache + to, block_size * channels, threadIdx.x, blockDim.x);
    copy_halfs(value_cache + from, value_cache + to, block_size * channels, threadIdx.x, blockDim.x);
    if (!box) return;
    const int64_t box_from = box_offset(source, 0, 0, 0, num_kv_heads, head_dim);
    const int64_t box_to = box_offset(target, 0, 0, 0, num_kv_heads, head_dim);
    for (int64_t i = threadIdx.x; i < 2 * channels; i += blockDim.x) {
        box[box_to + i] = box[box_from + i];
        box[box_from + i] = __ushort_as_half(i / head_dim % 2 == 0 ? 0x7c00 : 0xfc00);  // empty: +inf, -inf
    }
}

template <typename T>
__device__ void hand_over(T* state, int64_t source, int64_t target) {
    if (!state) return;
    state[target] = state[source];
    state[source] = 0;
}

extern "C" __global__ void memory_compaction_remap(COMPACTION_PARAMETERS) {
    const int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    if (!refused(workspace, num_blocks)) {
        for (int64_t i = first; i < num_seqs * max_blocks_per_seq; i += step) {
            const int block = block_table[i];
            if (block >= 0 && block < num_blocks) block_table[i] = old_to_new[block];
        }
        for (int64_t i = first; i < num_moves[0]; i += step) {
            const int64_t source = moves[2 * i], target = moves[2 * i + 1];
            hand_over(ref, source, target);
            hand_over(cached, source, target);
            hand_over(level, source, target);
            hand_over(last_use, source, target);
            hand_over(uses, source, target);
            hand_over(freq, source, target);
            hand_over(hits, source, target);
            hand_over(lookups, source, target);
            gen[source] += 1;
            gen[target] += 1;
        }
    }
    forget_verdict(workspace, num_blocks);
}
