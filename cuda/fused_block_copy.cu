// Copy the first tokens of blocks into fresh blocks, K, V and box, all operations and all layers in one launch; or
// refuse the whole batch. Before it one thread block checks the batch: marks per block tell who is written and read.
// One thread block per (operation, layer): K and V are one run of memory each, so the copy is 16 bytes wide.
// TinyServe S:172-196.
#include "marks.cuh"

extern "C" __global__ void fused_block_copy_check(
    const int* ops, const int* ref, half* key_cache, half* value_cache, half* box, int* workspace, int64_t num_ops,
    int64_t num_blocks, int64_t num_layers, int64_t layer_stride, int64_t block_size, int64_t num_kv_heads,
    int64_t head_dim, int64_t workspace_words, int* status) {
    int outside = 0, conflict = 0;
    for (int64_t i = threadIdx.x; i < num_ops; i += blockDim.x) {
        const int source = ops[3 * i], target = ops[3 * i + 1], tokens = ops[3 * i + 2];
        if (source < 0 || source >= num_blocks || target < 0 || target >= num_blocks || tokens < 1 ||
            tokens > block_size) {
            outside = 1;
        } else if (source != target) {
            if (atomicOr(&workspace[target], MARK_TARGET) & MARK_TARGET) conflict = 1;
            atomicOr(&workspace[source], MARK_SOURCE);
            if (ref[target] != 1) conflict = 1;
        }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_ops; i += blockDim.x) {
        const int target = ops[3 * i + 1];
        if (target < 0 || target >= num_blocks) continue;
        if ((workspace[target] & (MARK_SOURCE | MARK_TARGET)) == (MARK_SOURCE | MARK_TARGET)) conflict = 1;
    }
    const bool any_outside = __syncthreads_or(outside), any_conflict = __syncthreads_or(conflict);
    for (int64_t i = threadIdx.x; i < num_ops; i += blockDim.x) {
        for (int k = 0; k < 2; ++k) {
            const int block = ops[3 * i + k];
            if (block >= 0 && block < num_blocks) workspace[block] = 0;
        }
    }
    if (threadIdx.x == 0) {
        const int flag = any_outside ? STATUS_RANGE : any_conflict ? STATUS_CONFLICT : 0;
        workspace[num_blocks] = flag;
        if (flag) atomicOr(status, flag);
    }
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
    const int64_t op = blockIdx.x, layer = blockIdx.y;
    if (op < num_ops && layer < num_layers && !refused(workspace, num_blocks) && ops[3 * op] != ops[3 * op + 1]) {
        const int64_t source = layer * layer_stride + ops[3 * op], target = layer * layer_stride + ops[3 * op + 1];
        const int tokens = ops[3 * op + 2];
        const int64_t from = pool_offset(source, 0, 0, 0, block_size, num_kv_heads, head_dim);
        const int64_t to = pool_offset(target, 0, 0, 0, block_size, num_kv_heads, head_dim);
        const int64_t channels = num_kv_heads * head_dim;
        copy_halfs(key_cache + from, key_cache + to, tokens * channels, threadIdx.x, blockDim.x);
        copy_halfs(value_cache + from, value_cache + to, tokens * channels, threadIdx.x, blockDim.x);
        if (box && tokens == block_size) {
            copy_halfs(box + box_offset(source, 0, 0, 0, num_kv_heads, head_dim),
                       box + box_offset(target, 0, 0, 0, num_kv_heads, head_dim), 2 * channels, threadIdx.x,
                       blockDim.x);
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
    forget_verdict(workspace, num_blocks);
}
