// Copy the first tokens of blocks into fresh blocks, K, V and box, all operations and all layers in one launch; or
// refuse the whole batch. Before it the batch is checked: marks per block tell who is written and who is read, in one
// launch for up to 1024 operations, in two for more.
// One thread block per (operation, layer): K, V and box are one run of memory each.
// TinyServe S:172-196.
#include "marks.cuh"
#include "runs.cuh"

#define COPY_PARAMETERS                                                                                               \
    const int *ops, const int *ref, half *key_cache, half *value_cache, half *box, int *workspace, int64_t num_ops,   \
        int64_t num_blocks, int64_t num_layers, int64_t layer_stride, int64_t block_size, int64_t num_kv_heads,       \
        int64_t head_dim, int64_t workspace_words, int *status

// A destination that is a source too; once all are marked.
__device__ __forceinline__ void check_chains(const int* ops, int* workspace, int64_t i, int64_t num_ops,
                                             int64_t num_blocks) {
    if (i >= num_ops) return;
    const int target = ops[3 * i + 1];
    if (target < 0 || target >= num_blocks || workspace[target] != (MARK_SOURCE | MARK_TARGET)) return;
    atomicOr(&workspace[num_blocks], STATUS_CONFLICT);
}

extern "C" __global__ void fused_block_copy_mark(COPY_PARAMETERS) {
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < num_ops) {
        const int source = ops[3 * i], target = ops[3 * i + 1], tokens = ops[3 * i + 2];
        int verdict = 0;
        if (source < 0 || source >= num_blocks || target < 0 || target >= num_blocks || tokens < 1 ||
            tokens > block_size) {
            verdict = STATUS_RANGE;
        } else if (source != target) {
            const int references = ref[target];
            if (atomicOr(&workspace[target], MARK_TARGET) & MARK_TARGET) verdict = STATUS_CONFLICT;
            atomicOr(&workspace[source], MARK_SOURCE);
            if (references != 1) verdict = STATUS_CONFLICT;
        }
        if (verdict) atomicOr(&workspace[num_blocks], verdict);
    }
    if (gridDim.x > 1) return;
    __syncthreads();
    check_chains(ops, workspace, i, num_ops, num_blocks);
}

extern "C" __global__ void fused_block_copy_check(COPY_PARAMETERS) {
    check_chains(ops, workspace, (int64_t)blockIdx.x * blockDim.x + threadIdx.x, num_ops, num_blocks);
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
    if (op < num_ops && layer == 0 && threadIdx.x < 2) {
        const int block = ops[3 * op + threadIdx.x];
        if (block >= 0 && block < num_blocks) workspace[block] = 0;  // nobody looks at marks any more
    }
    if (op < num_ops && layer < num_layers && !refused(workspace, num_blocks) && ops[3 * op] != ops[3 * op + 1]) {
        const int64_t source = layer * layer_stride + ops[3 * op], target = layer * layer_stride + ops[3 * op + 1];
        const int tokens = ops[3 * op + 2];
        const int64_t from = pool_offset(source, 0, 0, 0, block_size, num_kv_heads, head_dim);
        const int64_t to = pool_offset(target, 0, 0, 0, block_size, num_kv_heads, head_dim);
        const int64_t channels = num_kv_heads * head_dim;
        const bool whole = box && tokens == block_size;
        copy_run(key_cache + from, key_cache + to, tokens * channels);
        copy_run(value_cache + from, value_cache + to, tokens * channels);
        if (whole) {
            copy_run(box + box_offset(source, 0, 0, 0, num_kv_heads, head_dim),
                     box + box_offset(target, 0, 0, 0, num_kv_heads, head_dim), 2 * channels);
        }
        if (box && !whole) {
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
    report_verdict(workspace, num_blocks, status);
}
