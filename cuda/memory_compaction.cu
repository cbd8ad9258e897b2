// Carry out a compaction plan, or refuse it: move K, V and boxes, remap the tables, hand over the blocks' state.
// Two launches. Threads over the moves and over the pool check the plan with marks per block. Then the first thread blocks
// go over table entries and moves, the others over the pieces of (move, layer): sources and destinations are disjoint,
// so that the order does not matter. The latter read while the plan is still being checked.
// TinyServe's published memory_compaction_kernel and S:571-580; there two blocks could move into one.
#include "marks.cuh"
#include "runs.cuh"

#define COMPACTION_PARAMETERS                                                                                         \
    const int *moves, const int *num_moves, const int *old_to_new, half *key_cache, half *value_cache, half *box,     \
        int *block_table, int *ref, int *gen, uint8_t *cached, int *level, int64_t *last_use, int *uses, int *freq,   \
        int *hits, int *lookups, int *workspace, int64_t max_moves, int64_t num_blocks, int64_t num_layers,           \
        int64_t layer_stride, int64_t block_size, int64_t num_kv_heads, int64_t head_dim, int64_t num_seqs,           \
        int64_t max_blocks_per_seq, int64_t workspace_words, int *status

// How many moves there are, none where the count itself is outside.
__device__ __forceinline__ int64_t moves_of(const int* num_moves, int64_t max_moves) {
    const int64_t count = num_moves[0];
    return count >= 0 && count <= max_moves ? count : 0;
}

extern "C" __global__ void memory_compaction_mark(COMPACTION_PARAMETERS) {
    start_next_launch();
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, count = moves_of(num_moves, max_moves);
    int found = i == 0 && (num_moves[0] < 0 || num_moves[0] > max_moves) ? STATUS_RANGE : 0;
    if (i < 2 * count) {
        const int block = moves[i];
        if (block < 0 || block >= num_blocks) {
            found = STATUS_RANGE;
        } else {
            // A block may stand once in the whole plan, as a source or as a destination.
            const bool source = i % 2 == 0;
            const int references = ref[block];
            const bool kept = cached[block] != 0;
            if (atomicOr(&workspace[block], source ? MARK_SOURCE : MARK_TARGET)) found = STATUS_CONFLICT;
            if (source ? references < 1 && !kept : references != 0 || kept) found = STATUS_CONFLICT;
            if (source && old_to_new[block] != moves[i + 1]) found = STATUS_CONFLICT;
        }
    }
    if (found) atomicOr(&workspace[num_blocks + FINDINGS], found);
    // Every source goes elsewhere, as was just checked; if as many blocks do, no other does.
    const int moving = __syncthreads_count(i < num_blocks && old_to_new[i] != i);
    if (threadIdx.x == 0 && moving) atomicAdd(&workspace[num_blocks + COUNTED], moving);
    decide(workspace, num_blocks, count, status);
}

template <typename T>
__device__ __forceinline__ void hand_over(T* state, int64_t source, int64_t target) {
    if (!state) return;
    state[target] = state[source];
    state[source] = 0;
}

// Thread `first` of `step`: remap its table entries, hand over the state of its moves, clear its marks.
__device__ __forceinline__ void remap(COMPACTION_PARAMETERS, int64_t first, int64_t step, int64_t count, bool go) {
    for (int64_t i = first; go && i < num_seqs * max_blocks_per_seq; i += step) {
        const int block = block_table[i];
        if (block >= 0 && block < num_blocks) block_table[i] = old_to_new[block];
    }
    for (int64_t i = first; go && i < count; i += step) {
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
    for (int64_t i = first; i < 2 * count; i += step) {
        const int block = moves[i];
        if (block >= 0 && block < num_blocks) workspace[block] = 0;  // nobody looks at marks any more
    }
}

// A box of `count` numbers, minima and maxima in rows of `row` in turn: +inf, -inf.
__device__ __forceinline__ void empty(half* box, int count, int row) {
    const auto bound = [&](int i) { return i / row % 2 == 0 ? 0x7c007c00u : 0xfc00fc00u; };
    const bool wide = ((unsigned long long)box & 15) == 0 && row % 8 == 0;
    for (int i = 8 * threadIdx.x; wide && i < count; i += 8 * blockDim.x) {
        const unsigned pair = bound(i);
        *reinterpret_cast<uint4*>(box + i) = make_uint4(pair, pair, pair, pair);
    }
    for (int i = threadIdx.x; !wide && i < count; i += blockDim.x) box[i] = __ushort_as_half((unsigned short)bound(i));
}

extern "C" __global__ void __launch_bounds__(COPY_THREADS, LEAST_COPIERS) memory_compaction(
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
    const int64_t channels = num_kv_heads * head_dim, layer = blockIdx.y, count = moves_of(num_moves, max_moves);
    const int pieces = pieces_of(block_size * channels), parts = 2 * pieces + 1;
    const int64_t movers = max_moves * parts, remappers = gridDim.x - movers;
    if (blockIdx.x < remappers) {
        if (layer > 0) return;
        follow_launch();
        const bool go = !refused(workspace, num_blocks);
        remap(moves, num_moves, old_to_new, key_cache, value_cache, box, block_table, ref, gen, cached, level, last_use,
              uses, freq, hits, lookups, workspace, max_moves, num_blocks, num_layers, layer_stride, block_size,
              num_kv_heads, head_dim, num_seqs, max_blocks_per_seq, workspace_words, status,
              (int64_t)blockIdx.x * blockDim.x + threadIdx.x, remappers * blockDim.x, count, go);
        return;
    }
    const int item = (int)(blockIdx.x - remappers), move = item / parts, part = item % parts;
    if (move >= count || layer >= num_layers) return;
    const int source_id = moves[2 * move], target_id = moves[2 * move + 1];
    const auto is_block = [&](int id) { return id >= 0 && id < num_blocks; };
    if (!is_block(source_id) || !is_block(target_id)) return;  // the whole plan is refused
    const int64_t source = layer * layer_stride + source_id, target = layer * layer_stride + target_id;
    const int64_t from = pool_offset(source, 0, 0, 0, block_size, num_kv_heads, head_dim);
    const int64_t to = pool_offset(target, 0, 0, 0, block_size, num_kv_heads, head_dim);
    const int64_t box_from = box_offset(source, 0, 0, 0, num_kv_heads, head_dim);
    const int64_t box_to = box_offset(target, 0, 0, 0, num_kv_heads, head_dim);
    Piece piece;
    half* const cache = part < pieces ? key_cache : value_cache;
    if (part < 2 * pieces) {
        piece = piece_of(cache + from, cache + to, block_size * channels, part < pieces ? part : part - pieces);
    } else if (box) {
        piece = piece_of(box + box_from, box + box_to, 2 * channels, 0);
    }
    piece.fetch();
    follow_launch();
    if (refused(workspace, num_blocks)) return;
    piece.put();
    if (part < 2 * pieces || !box) return;
    put_rest(box + box_from, box + box_to, 2 * channels);
    __syncthreads();  // the source is emptied by other threads than those that read it
    empty(box + box_from, 2 * (int)channels, (int)head_dim);
}
