// Copy the first tokens of blocks into fresh blocks, K, V and box, all operations and all layers in one launch; or
// refuse the whole batch. A launch before it checks the batch: marks per block tell who is written and who is read.
// Thread blocks over the pieces of (operation, layer): K and V in 16 KiB each, and the box. They read while the batch is
// still being checked, and write once it is found right.
// TinyServe S:172-196.
#include "marks.cuh"
#include "runs.cuh"

#define COPY_PARAMETERS                                                                                               \
    const int *ops, const int *ref, half *key_cache, half *value_cache, half *box, int *workspace, int64_t num_ops,   \
        int64_t num_blocks, int64_t num_layers, int64_t layer_stride, int64_t block_size, int64_t num_kv_heads,       \
        int64_t head_dim, int64_t workspace_words, int *status

extern "C" __global__ void fused_block_copy_mark(COPY_PARAMETERS) {
    start_next_launch();
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int found = 0;
    if (i < num_ops) {
        const int source = ops[3 * i], target = ops[3 * i + 1], tokens = ops[3 * i + 2];
        if (source < 0 || source >= num_blocks || target < 0 || target >= num_blocks || tokens < 1 ||
            tokens > block_size) {
            found = STATUS_RANGE;
        } else if (source != target) {
            const int references = ref[target];
            // Of two marks that contradict each other the later one sees the earlier.
            const int of_target = atomicOr(&workspace[target], MARK_TARGET);
            const int of_source = atomicOr(&workspace[source], MARK_SOURCE);
            if (of_target || of_source & MARK_TARGET || references != 1) found = STATUS_CONFLICT;
        }
        if (found) atomicOr(&workspace[num_blocks + FINDINGS], found);
    }
    decide(workspace, num_blocks, 0, status);
}

// The box of the first tokens of a block, from its keys.
__device__ __forceinline__ void box_of_keys(const half* keys, half* box, int tokens, int channels, int head_dim) {
    for (int i = threadIdx.x; i < channels; i += blockDim.x) {
        float low = INFINITY, high = -INFINITY;  // fminf and fmaxf pass a NaN over
#pragma unroll 1
        for (int slot = 0; slot < tokens; ++slot) {
            const float key = __half2float(keys[slot * channels + i]);
            low = fminf(low, key);
            high = fmaxf(high, key);
        }
        half* const bounds = box + i + i / head_dim * head_dim;
        bounds[0] = __float2half(low + 0.0f);
        bounds[head_dim] = __float2half(high + 0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(COPY_THREADS, LEAST_COPIERS) fused_block_copy(
    const int* ops,     // [num_ops][3] source, destination, tokens
    const int* ref,     // [num_blocks]
    half* key_cache,    // [num_layers][layer_stride][block_size][num_kv_heads][head_dim]
    half* value_cache,  // as key_cache
    half* box,          // [num_layers][layer_stride][num_kv_heads][2][head_dim] or null
    int* workspace,     // [workspace_words] see marks.cuh
    int64_t num_ops,
    int64_t num_blocks,
    int64_t num_layers,
    int64_t layer_stride,
    int64_t block_size,
    int64_t num_kv_heads,
    int64_t head_dim,
    int64_t workspace_words,
    int* status) {
    const int64_t channels = num_kv_heads * head_dim, layer = blockIdx.y;
    const int pieces = pieces_of(block_size * channels), parts = 2 * pieces + 1;
    const int op = (int)blockIdx.x / parts, part = (int)blockIdx.x - op * parts;
    if (op >= num_ops) {
        follow_launch();
        return;
    }
    const int source = ops[3 * op], target = ops[3 * op + 1], tokens = ops[3 * op + 2];
    const auto is_block = [&](int id) { return id >= 0 && id < num_blocks; };
    const bool copies = layer < num_layers && is_block(source) && is_block(target) && source != target && tokens > 0 &&
                        tokens <= block_size;
    const bool of_box = part == 2 * pieces, from_keys = of_box && tokens < block_size;
    Piece piece;
    if (copies && !of_box) {
        half* const cache = part < pieces ? key_cache : value_cache;
        const auto block = [&](int id) {
            return cache + pool_offset(layer * layer_stride + id, 0, 0, 0, block_size, num_kv_heads, head_dim);
        };
        piece = piece_of(block(source), block(target), tokens * channels, part < pieces ? part : part - pieces);
    } else if (copies && box && !from_keys) {
        const auto block = [&](int id) {
            return box + box_offset(layer * layer_stride + id, 0, 0, 0, num_kv_heads, head_dim);
        };
        piece = piece_of(block(source), block(target), 2 * channels, 0);
    }
    piece.fetch();
    follow_launch();
    if (part == 0 && layer == 0 && threadIdx.x < 2) {
        const int block = threadIdx.x ? target : source;
        if (is_block(block)) workspace[block] = 0;  // nobody looks at marks any more
    }
    if (!copies || refused(workspace, num_blocks)) return;
    piece.put();
    if (!of_box || !box) return;
    if (!from_keys) {
        put_rest(piece.source, piece.target, 2 * channels);
        return;
    }
    box_of_keys(key_cache + pool_offset(layer * layer_stride + source, 0, 0, 0, block_size, num_kv_heads, head_dim),
                box + box_offset(layer * layer_stride + target, 0, 0, 0, num_kv_heads, head_dim), tokens, (int)channels,
                (int)head_dim);
}
