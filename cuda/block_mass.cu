// Share of the attention that each block receives, in the fixed order that lets it steer.
// One thread block per (sequence, KV head), eight warps. Per query head: a warp per token for the logits, lanes over
// channels; then a warp per block for the weights, lanes over slots; then one warp sums the blocks, lanes over blocks.
// Logits wait in `token_weight`. Every sum is in lane order, and 2**y is a polynomial.
// Ours, for the policies oracle and snapkv (SnapKV, arXiv 2404.14469) and for mass_entropy.
#include "decision_math.cuh"

extern "C" __global__ void block_mass(
    const half* query,       // [num_seqs][num_heads][head_dim]
    const half* key_cache,   // [num_blocks][block_size][num_kv_heads][head_dim]
    const int* block_table,  // [num_seqs][max_blocks_per_seq], -1 = no block
    const int* seq_lens,     // [num_seqs]
    float* block_mass,       // [num_seqs][num_score_heads][max_blocks_per_seq]
    float* block_peak,       // [num_seqs][num_heads][max_blocks_per_seq] or null: the largest logit of each block
    float* token_weight,     // [num_seqs][num_heads][max_tokens] logits, then the head's masses
    int64_t num_seqs,
    int64_t num_heads,
    int64_t head_dim,
    int64_t num_blocks,
    int64_t block_size,
    int64_t num_kv_heads,
    int64_t max_blocks_per_seq,
    int64_t num_score_heads,
    int64_t max_tokens,
    float scale,
    int reduction,  // 0 max, 1 mean, 2 sum
    int* status) {
    __shared__ float warp_top[WARP_SIZE];
    __shared__ float head_total;
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, warps = blockDim.x / WARP_SIZE;
    const int64_t seq = blockIdx.x, kv_head = blockIdx.y, group = num_heads / num_kv_heads;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const int64_t given = seq_lens[seq];
    const int64_t length = min(max(given, (int64_t)0), max_blocks_per_seq * block_size);
    const int64_t blocks = (length + block_size - 1) / block_size;
    const int* table = block_table + seq * max_blocks_per_seq;
    int flags = given != length ? STATUS_RANGE : 0;
    const auto is_block = [&](int64_t logical) { return table[logical] >= 0 && table[logical] < num_blocks; };
    bool any_held = false;
    for (int64_t logical = threadIdx.x; logical < blocks; logical += blockDim.x) {
        any_held |= is_block(logical);
        if (!is_block(logical)) flags |= table[logical] == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
    }
    any_held = __syncthreads_or(any_held);

    for (int64_t i = 0; i < group; ++i) {
        const int64_t head = kv_head * group + i;
        const half* q = query + (seq * num_heads + head) * head_dim;
        float* logits = token_weight + (seq * num_heads + head) * max_tokens;
        float top = -INFINITY;
        for (int64_t token = warp; token < length; token += warps) {
            const int64_t logical = token / block_size;
            float logit = -INFINITY;
            if (is_block(logical)) {
                const half* key = key_cache + pool_offset(table[logical], token % block_size, kv_head, 0, block_size,
                                                          num_kv_heads, head_dim);
                float sum = 0.0f;
                for (int64_t d = lane; d < head_dim; d += WARP_SIZE) {
                    sum = __fadd_rn(sum, __fmul_rn(__half2float(key[d]), __half2float(q[d])));
                }
                logit = __fmul_rn(lane_sum(sum), scale);
                if (isnan(logit)) {
                    flags |= STATUS_NOT_A_NUMBER;
                    logit = -INFINITY;
                }
            }
            top = fmaxf(top, logit);
            if (lane == 0) logits[token] = logit;
        }
        if (lane == 0) warp_top[warp] = top;
        __syncthreads();
        for (int w = 0; w < warps; ++w) top = fmaxf(top, warp_top[w]);
        const bool finite = isfinite(top);
        if (any_held && !finite) flags |= STATUS_NOT_A_NUMBER;
        for (int64_t logical = warp; logical < blocks; logical += warps) {
            float sum = 0.0f, peak = -INFINITY;
            for (int64_t slot = lane; slot < block_size && logical * block_size + slot < length; slot += WARP_SIZE) {
                const float logit = logits[logical * block_size + slot];
                peak = fmaxf(peak, logit);
                const float weight = decision_exp2(__fmul_rn(__fsub_rn(logit, finite ? top : 0.0f), LOG2_E));
                sum = __fadd_rn(sum, finite ? weight : 0.0f);
            }
            const float mass = lane_sum(sum);
            if (block_peak) {
                for (int width = WARP_SIZE / 2; width > 0; width /= 2) {
                    peak = fmaxf(peak, __shfl_xor_sync(FULL_WARP, peak, width));
                }
                if (lane == 0) block_peak[(seq * num_heads + head) * max_blocks_per_seq + logical] = positive_zero(peak);
            }
            __syncwarp();
            // The first slot of the block, which this warp alone reads, takes the mass.
            if (lane == 0) logits[logical * block_size] = is_block(logical) ? mass : 0.0f;
        }
        __syncthreads();
        if (warp == 0) {
            float sum = 0.0f;
            for (int64_t logical = lane; logical < blocks; logical += WARP_SIZE) {
                sum = __fadd_rn(sum, logits[logical * block_size]);
            }
            const float total = lane_sum(sum);
            if (lane == 0) head_total = total == 0.0f ? 1.0f : total;
        }
        __syncthreads();
        for (int64_t logical = threadIdx.x; logical < blocks; logical += blockDim.x) {
            logits[logical * block_size] = __fdiv_rn(logits[logical * block_size], head_total);
        }
        __syncthreads();  // head_total and warp_top are free again
    }
    const int64_t first_head = seq * num_heads + kv_head * group;
    for (int64_t i = 0; block_peak && i < group; ++i) {
        for (int64_t logical = blocks + threadIdx.x; logical < max_blocks_per_seq; logical += blockDim.x) {
            block_peak[(first_head + i) * max_blocks_per_seq + logical] = -INFINITY;
        }
    }
    for (int64_t logical = threadIdx.x; logical < max_blocks_per_seq; logical += blockDim.x) {
        GroupReduction reduced(reduction);
        for (int64_t i = 0; i < group; ++i) {
            const float share =
                logical < blocks ? token_weight[(first_head + i) * max_tokens + logical * block_size] : 0.0f;
            if (num_score_heads == num_heads) block_mass[(first_head + i) * max_blocks_per_seq + logical] = share;
            else reduced.add(share);
        }
        if (num_score_heads != num_heads) {
            block_mass[(seq * num_kv_heads + kv_head) * max_blocks_per_seq + logical] = reduced.result();
        }
    }
    if (flags) atomicOr(status, flags);
}
