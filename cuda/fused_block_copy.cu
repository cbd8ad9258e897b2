// Copy the first tokens of blocks into fresh blocks, K, V and box, all operations and all layers in one launch; or
// refuse the whole batch. A launch before it checks the batch: marks per block tell who is written and who is read.
// Thread blocks over the pieces of (operation, layer): K and V in 16 KiB each, and the box.
// TinyServe S:172-196.
#include "marks.cuh"
#include "runs.cuh"

#define COPY_PARAMETERS                                                                                               \
    const int *ops, const int *ref, half *key_cache, half *value_cache, half *box, int *workspace, int64_t num_ops,   \
        int64_t num_blocks, int64_t num_layers, int64_t layer_stride, int64_t block_size, int64_t num_kv_heads,       \
        int64_t head_dim, int64_t workspace_words, int *status

extern "C" __global__ void fused_block_copy_mark(COPY_PARAMETERS) {
    lead_launch();
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

extern "C" __global__ void fused_block_copy(
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
    follow_launch();
    const int64_t channels = num_kv_heads * head_dim, layer = blockIdx.y;
    const int pieces = pieces_of(block_size * channels), parts = 2 * pieces + 1;
    const bool go = !refused(workspace, num_blocks);
    for (int64_t item = blockIdx.x; item < num_ops * parts; item += gridDim.x) {
        const int64_t op = item / parts;
        const int part = (int)(item % parts), source_id = ops[3 * op], target_id = ops[3 * op + 1];
        const int tokens = ops[3 * op + 2];
        if (part == 0 && layer == 0 && threadIdx.x < 2) {
            const int block = threadIdx.x ? target_id : source_id;
            if (block >= 0 && block < num_blocks) workspace[block] = 0;  // nobody looks at marks any more
        }
        if (!go || source_id == target_id) continue;
        const int64_t source = layer * layer_stride + source_id, target = layer * layer_stride + target_id;
        const int64_t from = pool_offset(source, 0, 0, 0, block_size, num_kv_heads, head_dim);
        const int64_t to = pool_offset(target, 0, 0, 0, block_size, num_kv_heads, head_dim);
        if (part < pieces) {
            copy_piece(key_cache + from, key_cache + to, tokens * channels, part);
        } else if (part < 2 * pieces) {
            copy_piece(value_cache + from, value_cache + to, tokens * channels, part - pieces);
        } else if (box && tokens == block_size) {
            copy_run(box + box_offset(source, 0, 0, 0, num_kv_heads, head_dim),
                     box + box_offset(target, 0, 0, 0, num_kv_heads, head_dim), (int)(2 * channels));
        } else if (box) {
            for (int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
                float low = INFINITY, high = -INFINITY;  // fminf and fmaxf pass a NaN over
                for (int slot = 0; slot < tokens; ++slot) {
                    const float key = __half2float(key_cache[from + slot * channels + i]);
                    low = fminf(low, key);
                    high = fmaxf(high, key);
                }
                const int64_t kv_head = i / head_dim, d = i % head_dim;
                box[box_offset(target, kv_head, 0, d, num_kv_heads, head_dim)] = __float2half(low + 0.0f);
                box[box_offset(target, kv_head, 1, d, num_kv_heads, head_dim)] = __float2half(high + 0.0f);
            }
        }
    }
}
