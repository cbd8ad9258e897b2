// Attention of up to 8 query heads of a KV head over a short list of blocks, K and V through each warp's ring in shared
// memory (ring.cuh): for blocks of a multiple of 16 tokens and head_dim 64 or 128.
//
// A warp takes tiles of 16 tokens in turn; K of a tile fills one slot and V the next, so that three of them are under way.
// `ldmatrix` brings them into the layout of the matrix products; with r = lane / 4 and c = lane % 4:
//
//     scores[token][head]   = K · Qᵀ    lane holds tokens r, r + 8 and heads 2·c, 2·c + 1
//     output[channel][head] = Vᵀ · Pᵀ   lane holds channels 16·m + r, 16·m + r + 8 and the same heads
#pragma once

#include "attention_tiles.cuh"
#include "ring.cuh"

// Four 8 × 8 matrices of halfs, lane l giving the address of row l % 8 of matrix l / 8; as they lie, or transposed.
template <bool TRANSPOSED>
__device__ __forceinline__ uint4 matrices(const unsigned char* row) {
    uint4 out;
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                     : "r"(at)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                     : "r"(at)
                     : "memory");
    }
    return out;
}

// Attend the units [low, high) of a list; arguments as attend's (attention_tiles.cuh). WARPS warps call it, each with a
// ring of its own at `rings`. `meanwhile` is called when the first tiles are under way; a barrier follows it.
template <int DIM, int WARPS, typename UnitOf, typename Sink, typename Meanwhile>
__device__ __forceinline__ void attend_kept(const half* query, int group, const Cache& cache, int64_t kv_head,
                                            float scale, int low, int high, UnitOf unit_of, Sink sink,
                                            Meanwhile meanwhile, unsigned char* rings) {
    constexpr int ROW = 2 * DIM, CHUNKS = ROW / 16, STEPS = DIM / 16;  // bytes, 16-byte chunks, products
    __shared__ float warp_max[WARPS][TILE_HEADS], warp_sum[WARPS][TILE_HEADS];
    const int lane = threadIdx.x % WARP_SIZE, warp = uniform_warp(), r = lane / 4, c = lane % 4;
    unsigned char* const ring = rings + warp * (RING_SLOTS * SLOT_BYTES);
    const int tiles_per_unit = (int)cache.block_size / TILE, tiles = (high - low) * tiles_per_unit;
    const int own_tiles = uniform(tiles > warp ? (tiles - warp - 1) / WARPS + 1 : 0);
    const int token_stride = (int)cache.num_kv_heads * DIM;
    const unsigned ring_at = shared_address(ring);
    unsigned place = 0;  // of the lane's tile, in tiles from the pool's start, and its tokens
    int place_tokens = 0, slot = 0, used = 0;
    const auto look_up = [&](int from) {
        const int tile = warp + (from + lane) * WARPS;
        place_tokens = 0;
        place = 0;
        if (tile >= tiles) return;
        const int unit = tile / tiles_per_unit, start = (tile - unit * tiles_per_unit) * TILE;
        int block, tokens;
        unit_of(low + unit, block, tokens);
        place = (unsigned)(block * tiles_per_unit + start / TILE);
        place_tokens = max(min(TILE, tokens - start), 0);
    };
    // Bring the lane's k-th tile of a pool into the next slot; gives its tokens.
    const auto bring = [&](const half* pool, int k) {
        const int tokens = __shfl_sync(FULL_WARP, place_tokens, k % WARP_SIZE);
        const unsigned tile = __shfl_sync(FULL_WARP, place, k % WARP_SIZE);
        const int chunk = lane % CHUNKS;
        const half* const from = pool + (int64_t)tile * (TILE * token_stride) + kv_head * DIM + 8 * chunk + lane / CHUNKS * token_stride;
        const unsigned to = ring_at + slot * SLOT_BYTES;
        if (k < own_tiles) {
#pragma unroll
            for (int i = 0; i < TILE; i += WARP_SIZE / CHUNKS) {
                const int token = i + lane / CHUNKS;
                copy_ahead(to + token * ROW + 16 * (chunk ^ token % 8), from + i * token_stride, token < tokens);
            }
        }
        close_copies();
        slot = slot == RING_SLOTS - 1 ? 0 : slot + 1;
        return tokens;
    };
    const auto next_slot = [&] {
        await_copies<RING_SLOTS - 1>();
        const unsigned char* const at = ring + used * SLOT_BYTES;
        used = used == RING_SLOTS - 1 ? 0 : used + 1;
        return at;
    };
    look_up(0);
    unsigned q[STEPS][2];
#pragma unroll
    for (int j = 0; j < STEPS; ++j) {
        const bool there = r < group;
        const unsigned* const from = reinterpret_cast<const unsigned*>(query + (there ? r : 0) * DIM + 16 * j) + c;
        q[j][0] = there ? from[0] : 0;
        q[j][1] = there ? from[4] : 0;
    }
    int tokens = bring(cache.key, 0);
    bring(cache.value, 0);
    int next_tokens = bring(cache.key, 1);
    meanwhile();
    float mixed[STEPS][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int m = 0; m < STEPS; ++m) mixed[m][0] = mixed[m][1] = mixed[m][2] = mixed[m][3] = 0.0f;
    for (int k = 0; k < own_tiles; ++k) {
        const unsigned char* const keys = next_slot() + lane % 16 * ROW;
        float score[4] = {0.0f, 0.0f, 0.0f, 0.0f}, other[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int j = 0; j < STEPS; ++j) {
            const uint4 a = matrices<false>(keys + 16 * ((2 * j + lane / 16) ^ lane % 8));
            multiply(j % 2 ? other : score, a.x, a.y, a.z, a.w, q[j][0], q[j][1]);
        }
        __syncwarp();
        bring(cache.value, k + 1);
        // Scores 0 and 1 are of token r, 2 and 3 of token r + 8; even ones of head 2·c, odd ones of head 2·c + 1.
        float shrink[2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const bool there = r + i / 2 * 8 < tokens;
            score[i] = there ? (score[i] + other[i]) * (scale * LOG2_OF_E) : -INFINITY;
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float highest = fmaxf(score[h], score[h + 2]);
#pragma unroll
            for (int width = 4; width < WARP_SIZE; width *= 2) {
                highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, width));
            }
            highest = fmaxf(highest, top[h]);
            const float base = highest == -INFINITY ? 0.0f : highest;
            shrink[h] = exp2f(top[h] - base);
            top[h] = highest;
            score[h] = exp2f(score[h] - base);
            score[h + 2] = exp2f(score[h + 2] - base);
            sum[h] = sum[h] * shrink[h] + score[h] + score[h + 2];
        }
        const half2 early = __floats2half2_rn(score[0], score[1]), late = __floats2half2_rn(score[2], score[3]);
        const unsigned p0 = transposed(*reinterpret_cast<const unsigned*>(&early));
        const unsigned p1 = transposed(*reinterpret_cast<const unsigned*>(&late));
#pragma unroll
        for (int m = 0; m < STEPS; ++m) {
            mixed[m][0] *= shrink[0];
            mixed[m][1] *= shrink[1];
            mixed[m][2] *= shrink[0];
            mixed[m][3] *= shrink[1];
        }
        const unsigned char* const values = next_slot() + (lane % 8 + lane / 16 * 8) * ROW;
#pragma unroll
        for (int m = 0; m < STEPS; ++m) {
            const uint4 a = matrices<true>(values + 16 * ((2 * m + lane / 8 % 2) ^ lane % 8));
            multiply(mixed[m], a.x, a.y, a.z, a.w, p0, p1);
        }
        __syncwarp();
        if ((k + 2) % WARP_SIZE == 0) look_up(k + 2);
        tokens = next_tokens;
        next_tokens = bring(cache.key, k + 2);
    }
    await_copies<0>();
    float* const own = reinterpret_cast<float*>(ring);  // [TILE_HEADS][DIM], in the ring that is empty now
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int width = 4; width < WARP_SIZE; width *= 2) sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], width);
        if (r == 0) warp_max[warp][2 * c + h] = top[h];
        if (r == 0) warp_sum[warp][2 * c + h] = sum[h];
        if (2 * c + h >= group) continue;
#pragma unroll
        for (int m = 0; m < STEPS; ++m) {
            own[(2 * c + h) * DIM + 16 * m + r] = mixed[m][h];
            own[(2 * c + h) * DIM + 16 * m + 8 + r] = mixed[m][h + 2];
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < group * DIM; i += WARPS * WARP_SIZE) {
        const int h = i / DIM, d = i % DIM;
        float highest = -INFINITY, total = 0.0f, out = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) highest = fmaxf(highest, warp_max[w][h]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float part = rescale(warp_max[w][h], highest);
            total += part * warp_sum[w][h];
            out += part * reinterpret_cast<const float*>(rings + w * (RING_SLOTS * SLOT_BYTES))[i];
        }
        sink(h, d, out, highest, total);
    }
}
