// Share of the attention that each block receives, in the fixed order that lets it steer.
// First a launch for the logits, a warp per 32 tokens of a (sequence, KV head): they wait in `token_weight`. Then one thread
// block per (sequence, KV head), for one query head after the other: threads over tokens find the largest logit, half warps
// or warps over blocks (lanes over slots) sum the weights, one warp sums the blocks. Every sum is in lane order, and 2**y is
// a polynomial.
// Ours, for the policies oracle and snapkv (SnapKV, arXiv 2404.14469) and for mass_entropy.
#include "decision_math.cuh"

constexpr int MASS_TOKENS = 32;  // of a warp
constexpr int HALF_WARP = WARP_SIZE / 2;
#define MASS_PARAMETERS                                                                                             \
    const half *query, const half *key_cache, const int *block_table, const int *seq_lens, float *block_mass,       \
        float *block_peak, float *token_weight, int64_t num_seqs, int64_t num_heads, int64_t head_dim,              \
        int64_t num_blocks, int64_t block_size, int64_t num_kv_heads, int64_t max_blocks_per_seq,                   \
        int64_t num_score_heads, int64_t max_tokens, float scale, int reduction, int *status

// Steps WIDTH, WIDTH / 2, …, 1 of a butterfly over COUNT pairs of sums per lane of a half warp: what pair m % COUNT comes
// to in all lanes ends in lane m.
template <int COUNT, int WIDTH>
__device__ __forceinline__ void hand_over(float (&sums)[COUNT][2]) {
    const bool upper = threadIdx.x & WIDTH;
    constexpr bool FEW = COUNT <= WIDTH;  // then every lane goes on with all of them
#pragma unroll
    for (int i = 0; i < (FEW ? COUNT : WIDTH); ++i) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const float early = sums[i][k], late = FEW ? early : sums[i + (FEW ? 0 : WIDTH)][k];
            const float given = __shfl_xor_sync(FULL_WARP, upper ? early : late, WIDTH);
            sums[i][k] = __fadd_rn(upper ? late : early, given);
        }
    }
    if constexpr (WIDTH > 1) hand_over<COUNT, WIDTH / 2>(sums);
}

// Logits of HEADS query heads from `queries` on for the 32 tokens whose keys the lanes name (null: -inf), as
// logits[head][token]. Half a warp takes one token: lane m of 16 adds channels 2·m and 2·m + 1, then 32 further on, …, as two
// of the 32 sums that the order of decisions has. In each step of the butterfly a lane hands over the sums that it will not
// finish and keeps the others; the last step, of neighbours, is within the lane.
template <int HEADS, int PARTS>
__device__ __forceinline__ int token_logits(const half* queries, const half* own_key, float scale, float* logits,
                                            int64_t head_stride, int tokens) {
    constexpr int HEAD_DIM = PARTS * WARP_SIZE, TOGETHER = 8, PAIRS = TOGETHER / 2 * HEADS;
    const int lane = threadIdx.x % WARP_SIZE, side = lane / HALF_WARP, m = lane % HALF_WARP;
    int flags = 0;
    float2 q[HEADS][PARTS];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
#pragma unroll
        for (int p = 0; p < PARTS; ++p) {
            q[h][p] = __half22float2(*reinterpret_cast<const half2*>(queries + h * HEAD_DIM + p * WARP_SIZE + 2 * m));
        }
    }
#pragma unroll 1
    for (int start = 0; start < tokens; start += TOGETHER) {
        half2 key[TOGETHER / 2][PARTS];
#pragma unroll
        for (int i = 0; i < TOGETHER / 2; ++i) {
            const half* from = reinterpret_cast<const half*>(
                __shfl_sync(FULL_WARP, reinterpret_cast<unsigned long long>(own_key), start + 2 * i + side));
            if (!from) from = queries;  // any that may be read
#pragma unroll
            for (int p = 0; p < PARTS; ++p) key[i][p] = *reinterpret_cast<const half2*>(from + p * WARP_SIZE + 2 * m);
        }
        float sums[PAIRS][2];
#pragma unroll
        for (int i = 0; i < TOGETHER / 2; ++i) {
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float even = 0.0f, odd = 0.0f;  // products are exact, so that a fused step rounds only the sum
#pragma unroll
                for (int p = 0; p < PARTS; ++p) {
                    const float2 k = __half22float2(key[i][p]);
                    even = __fmaf_rn(k.x, q[h][p].x, even);
                    odd = __fmaf_rn(k.y, q[h][p].y, odd);
                }
                sums[i * HEADS + h][0] = even;
                sums[i * HEADS + h][1] = odd;
            }
        }
        hand_over<PAIRS, HALF_WARP / 2>(sums);
        const int token = start + 2 * (m % PAIRS / HEADS) + side, head = m % HEADS;
        const bool there = __shfl_sync(FULL_WARP, own_key != nullptr, token);
        float logit = __fmul_rn(positive_zero(__fadd_rn(sums[0][0], sums[0][1])), scale);
        if (there && isnan(logit)) flags = STATUS_NOT_A_NUMBER;
        if (!there || isnan(logit)) logit = -INFINITY;
        if (m < PAIRS && token < tokens) logits[head * head_stride + token] = logit;
    }
    return flags;
}

extern "C" __global__ void __launch_bounds__(256, 2) block_mass_logits(MASS_PARAMETERS) {
    const int lane = threadIdx.x % WARP_SIZE;
    const int64_t first = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x - lane), seq = blockIdx.y, kv_head = blockIdx.z;
    if (seq >= num_seqs || kv_head >= num_kv_heads) return;
    const int64_t length = min(max((int64_t)seq_lens[seq], (int64_t)0), max_blocks_per_seq * block_size);
    if (first >= length) return;  // whole warps leave
    const int tokens = (int)min(length - first, (int64_t)MASS_TOKENS), group = (int)(num_heads / num_kv_heads);
    const half* own_key = nullptr;
    if (lane < tokens) {
        const int token = (int)first + lane, logical = token / (int)block_size;
        const int block = block_table[seq * max_blocks_per_seq + logical];
        if (block >= 0 && block < num_blocks) {
            own_key = key_cache + pool_offset(block, token - logical * block_size, kv_head, 0, block_size, num_kv_heads,
                                              head_dim);
        }
    }
    const int64_t head = seq * num_heads + kv_head * group;
    const half* const queries = query + head * head_dim;
    float* const logits = token_weight + head * max_tokens + first;
    const bool aligned = (((unsigned long long)key_cache | (unsigned long long)query) & 3) == 0;
    int flags = 0;
#define TOKEN_LOGITS(HEADS, PARTS)                                                                                   \
    if (aligned && head_dim == 32 * PARTS && (group == HEADS || (HEADS == 4 && group % 4 == 0))) {                    \
        for (int h = 0; h < group; h += HEADS) {                                                                     \
            flags |= token_logits<HEADS, PARTS>(queries + h * head_dim, own_key, scale, logits + h * max_tokens,     \
                                                max_tokens, tokens);                                                 \
        }                                                                                                            \
    } else
    TOKEN_LOGITS(4, 4)
    TOKEN_LOGITS(4, 2)
    TOKEN_LOGITS(2, 4)
    TOKEN_LOGITS(2, 2)
    TOKEN_LOGITS(1, 4)
    TOKEN_LOGITS(1, 2)
    for (int token = 0; token < tokens; ++token) {  // every shape: a token and a head at a time
        const half* const key = reinterpret_cast<const half*>(
            __shfl_sync(FULL_WARP, reinterpret_cast<unsigned long long>(own_key), token));
        for (int h = 0; h < group; ++h) {
            float sum = 0.0f;
            for (int64_t d = lane; key && d < head_dim; d += WARP_SIZE) {
                sum = __fadd_rn(sum, __fmul_rn(__half2float(key[d]), __half2float(queries[h * head_dim + d])));
            }
            const float logit = __fmul_rn(lane_sum(sum), scale);
            if (key && isnan(logit)) flags |= STATUS_NOT_A_NUMBER;
            if (lane == 0) logits[h * max_tokens + token] = key && !isnan(logit) ? logit : -INFINITY;
        }
    }
#undef TOKEN_LOGITS
    if (flags) atomicOr(status, flags);
}

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
    // A block of up to 16 slots leaves half of the 32 lanes without one: then the other half takes the next block, and what
    // the first step of the butterfly would add to each sum is 0.
    const int side_lanes = block_size <= HALF_WARP ? HALF_WARP : WARP_SIZE, side_blocks = WARP_SIZE / side_lanes;
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
        float* logits = token_weight + (seq * num_heads + head) * max_tokens;
        float top = -INFINITY;
        for (int64_t token = threadIdx.x; token < length; token += blockDim.x) top = fmaxf(top, logits[token]);
        top = warp_reduce_max(top);
        if (lane == 0) warp_top[warp] = top;
        __syncthreads();
        top = warp_reduce_max(lane < warps ? warp_top[lane] : -INFINITY);
        const bool finite = isfinite(top);
        if (any_held && !finite) flags |= STATUS_NOT_A_NUMBER;
        for (int64_t start = warp * side_blocks; start < blocks; start += warps * side_blocks) {
            const int64_t logical = start + lane / side_lanes;
            float sum = 0.0f, peak = -INFINITY;
            for (int64_t slot = lane % side_lanes; slot < block_size && logical * block_size + slot < length;
                 slot += side_lanes) {
                const float logit = logits[logical * block_size + slot];
                peak = fmaxf(peak, logit);
                const float weight = decision_exp2(__fmul_rn(__fsub_rn(logit, finite ? top : 0.0f), LOG2_E));
                sum = __fadd_rn(sum, finite ? weight : 0.0f);
            }
            for (int width = side_lanes / 2; width > 0; width /= 2) {
                sum = __fadd_rn(sum, __shfl_xor_sync(FULL_WARP, sum, width));
                peak = fmaxf(peak, __shfl_xor_sync(FULL_WARP, peak, width));
            }
            if (lane % side_lanes != 0 || logical >= blocks) continue;
            if (block_peak) block_peak[(seq * num_heads + head) * max_blocks_per_seq + logical] = positive_zero(peak);
            // The first slot of the block, which these lanes alone read, takes the mass.
            logits[logical * block_size] = is_block(logical) ? positive_zero(sum) : 0.0f;
        }
        __syncthreads();
        if (warp == 0) {
            float sum = 0.0f;
#pragma unroll 8
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
