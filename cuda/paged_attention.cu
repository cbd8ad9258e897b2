// Attention of one query row per sequence over its blocks: the readable baseline, two passes over K and one over V.
// One thread block per (sequence, query head). Pass 1 finds the largest score; pass 2 computes the weights of a tile of
// tokens, threads over tokens, then adds the tile's weighted values, threads over channels. Sums are fp32.
// PagedAttention, arXiv 2309.06180; TinyServe S:73-166, where every thread added every token.
#include "common.cuh"

#ifndef TILE
#define TILE 128  // tokens whose weights are in shared memory at a time; one per thread
#endif

// Dot product of the query row in shared memory with one key, in fp32.
__device__ __forceinline__ float score_of(const float* query, const half* key, int64_t head_dim) {
    float sum = 0.0f;
    for (int64_t d = 0; d < head_dim; ++d) sum += query[d] * __half2float(key[d]);
    return sum;
}

__device__ float block_reduce(float value, bool maximum, float* scratch) {
    value = maximum ? warp_reduce_max(value) : warp_reduce_sum(value);
    __syncthreads();
    if (threadIdx.x % WARP_SIZE == 0) scratch[threadIdx.x / WARP_SIZE] = value;
    __syncthreads();
    float total = scratch[0];
    for (int warp = 1; warp < blockDim.x / WARP_SIZE; ++warp) {
        total = maximum ? fmaxf(total, scratch[warp]) : total + scratch[warp];
    }
    return total;
}

extern "C" __global__ void paged_attention(
    const half* query,        // [num_seqs][num_heads][head_dim]
    const half* key_cache,    // [num_blocks][block_size][num_kv_heads][head_dim]
    const half* value_cache,  // as key_cache
    const int* block_table,   // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,      // [num_seqs] tokens
    half* output,             // [num_seqs][num_heads][head_dim]
    float* lse,               // [num_seqs][num_heads], -inf for no token
    int64_t num_seqs,
    int64_t num_heads,
    int64_t head_dim,
    int64_t num_blocks,
    int64_t block_size,
    int64_t num_kv_heads,
    int64_t max_blocks_per_seq,
    float scale,
    int* status) {
    extern __shared__ float row[];  // [head_dim] the query row
    __shared__ float weight[TILE];
    __shared__ int64_t key_at[TILE];  // element where the token's K and V start, -1: none
    __shared__ float scratch[WARP_SIZE];
    const int64_t seq = blockIdx.x, head = blockIdx.y;
    if (seq >= num_seqs || head >= num_heads) return;
    const int64_t kv_head = head / (num_heads / num_kv_heads);
    const int64_t row_at = (seq * num_heads + head) * head_dim;
    int64_t length = seq_lens[seq];
    if (length < 0 || length > max_blocks_per_seq * block_size) {
        if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        length = length < 0 ? 0 : max_blocks_per_seq * block_size;
    }
    for (int64_t d = threadIdx.x; d < head_dim; d += blockDim.x) row[d] = __half2float(query[row_at + d]);
    __syncthreads();

    float highest = -INFINITY, sum = 0.0f;
    float mixed[8];  // channels threadIdx.x, threadIdx.x + blockDim.x, … of the output: head_dim up to 8 · 128
    for (int i = 0; i < 8; ++i) mixed[i] = 0.0f;
    for (int pass = 0; pass < 2; ++pass) {
        float own = pass == 0 ? -INFINITY : 0.0f;
        for (int64_t start = 0; start < length; start += TILE) {
            const int64_t token = start + threadIdx.x;
            int64_t at = -1;
            float score = -INFINITY;
            if (threadIdx.x < TILE && token < length) {
                const int block = block_table[seq * max_blocks_per_seq + token / block_size];
                if (block == -1) atomicOr(status, STATUS_UNMAPPED);
                else if (block < 0 || block >= num_blocks) atomicOr(status, STATUS_RANGE);
                else at = pool_offset(block, token % block_size, kv_head, 0, block_size, num_kv_heads, head_dim);
                if (at >= 0) score = score_of(row, key_cache + at, head_dim) * scale;
            }
            if (pass == 0) {
                own = fmaxf(own, score);
                continue;
            }
            const float w = at >= 0 ? expf(score - (highest == -INFINITY ? 0.0f : highest)) : 0.0f;
            own += w;
            __syncthreads();
            if (threadIdx.x < TILE) {
                weight[threadIdx.x] = w;
                key_at[threadIdx.x] = at;
            }
            __syncthreads();
            const int tokens = (int)min((int64_t)TILE, length - start);
            for (int i = 0; i < 8; ++i) {
                const int64_t d = threadIdx.x + (int64_t)i * blockDim.x;
                if (d >= head_dim) break;
                for (int t = 0; t < tokens; ++t) {
                    if (key_at[t] >= 0) mixed[i] += weight[t] * __half2float(value_cache[key_at[t] + d]);
                }
            }
        }
        if (pass == 0) highest = block_reduce(own, true, scratch);
        else sum = block_reduce(own, false, scratch);
    }
    for (int i = 0; i < 8; ++i) {
        const int64_t d = threadIdx.x + (int64_t)i * blockDim.x;
        if (d < head_dim) output[row_at + d] = __float2half(sum == 0.0f ? 0.0f : mixed[i] / sum);
    }
    if (threadIdx.x == 0) lse[seq * num_heads + head] = sum == 0.0f ? -INFINITY : highest + logf(sum);
}
