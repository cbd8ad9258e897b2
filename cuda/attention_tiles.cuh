// The fast form of attention.cuh on tensor cores, for blocks of a multiple of 16 tokens and head_dim 64 or 128.
//
// A warp takes tiles of 16 tokens in turn and serves 8 query heads. K and V go from memory into registers, 16 bytes per
// lane, laid out so that a lane loads what the matrix products want from it; only the order of the channels differs, and
// the query's is the same. With r = lane / 4 and c = lane % 4:
//
//     scores[token][head]  = K · Qᵀ    lane holds channels 32·j + 8·c … + 7 of tokens r, r + 8 and of query head r
//     output[channel][head] = Vᵀ · Pᵀ  lane holds channels 64·j + 8·r … + 7 of tokens 2·c, 2·c + 1, 2·c + 8, 2·c + 9
//
// The next tile's K is asked for when this one's has been used, and the same for V, so that one of them is always under
// way. Bytes in flight come from the number of warps. What block a tile lies in, 32 lanes look up for 32 tiles at once.
#pragma once

#include "attention.cuh"

constexpr int TILE = 16;
constexpr int TILE_HEADS = 8;

// sums[16][8] += a[16][16] · b[16][8]: a row-major, b column-major, halfs; sm_75 has it in two halves.
__device__ __forceinline__ void multiply(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                         unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a2), "r"(a3), "r"(b1));
#endif
}

// An 8 × 8 matrix of halfs across the warp, two of a row per lane, transposed.
__device__ __forceinline__ unsigned transposed(unsigned pair) {
    unsigned out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// 16 bytes that are read once, or zeros.
__device__ __forceinline__ uint4 load_once(const half* from, bool there) {
    uint4 held = {0, 0, 0, 0};
    if (there) {
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(held.x), "=r"(held.y), "=r"(held.z), "=r"(held.w)
                     : "l"(from));
    }
    return held;
}

// The same where the lanes read half a line now and its other half next: L2 fetches both.
__device__ __forceinline__ uint4 load_line(const half* from, bool there) {
    uint4 held = {0, 0, 0, 0};
    if (there) {
        asm volatile("ld.global.nc.L1::evict_first.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(held.x), "=r"(held.y), "=r"(held.z), "=r"(held.w)
                     : "l"(from));
    }
    return held;
}

__device__ __forceinline__ unsigned word(const uint4& held, int i) {
    return i == 0 ? held.x : i == 1 ? held.y : i == 2 ? held.z : held.w;
}

// As attend_rows: the query heads [group][64 · PARTS] of a KV head over the units [low, high).
template <int PARTS, typename UnitOf, typename Sink>
__device__ void attend_tiles(const half* query, int64_t group, const Cache& cache, int64_t kv_head, float scale,
                             int64_t low, int64_t high, UnitOf unit_of, Sink sink, Meeting& meeting) {
    constexpr int DIM = 64 * PARTS;
    float (*const warp_value)[TILE_HEADS][DIM] = reinterpret_cast<float (*)[TILE_HEADS][DIM]>(meeting.value);
    float (*const warp_max)[TILE_HEADS] = reinterpret_cast<float (*)[TILE_HEADS]>(meeting.max);
    float (*const warp_sum)[TILE_HEADS] = reinterpret_cast<float (*)[TILE_HEADS]>(meeting.sum);
    const int lane = threadIdx.x % WARP_SIZE, warp = threadIdx.x / WARP_SIZE, r = lane / 4, c = lane % 4;
    const int64_t token_stride = cache.num_kv_heads * DIM, tile_stride = TILE * token_stride;
    const half* const keys = cache.key + kv_head * DIM + r * token_stride + 8 * c;
    const half* const values = cache.value + kv_head * DIM + 2 * c * token_stride + 8 * r;
    const int tiles_per_unit = (int)cache.block_size / TILE;
    const int tiles = (int)(high - low) * tiles_per_unit;
    const int own_tiles = (tiles - warp + ATTENTION_WARPS - 1) / ATTENTION_WARPS;

    for (int first = 0; first < (int)group; first += TILE_HEADS) {
        // Lane l knows where the l-th of the warp's next 32 tiles lies and its valid tokens.
        unsigned place = 0;  // in tiles from the start of the pool
        int place_tokens = 0;
        const auto look_up = [&](int from) {
            const int tile = warp + (from + lane) * ATTENTION_WARPS;
            place = 0;
            place_tokens = 0;
            if (tile >= tiles) return;
            int64_t block;
            int tokens;
            const int unit = tile / tiles_per_unit, start = (tile - unit * tiles_per_unit) * TILE;
            unit_of(low + unit, block, tokens);
            place = (unsigned)(block * tiles_per_unit + start / TILE);
            place_tokens = min(TILE, tokens - start);
        };
        uint4 key[2][2 * PARTS], value[4][PARTS], q[2 * PARTS];
        const auto load_keys = [&](unsigned tile, int tokens) {
            const int64_t at = tile * tile_stride;
#pragma unroll
            for (int t = 0; t < 2; ++t) {
#pragma unroll
                for (int j = 0; j < 2 * PARTS; ++j) {
                    key[t][j] = load_once(keys + at + 8 * t * token_stride + 32 * j, r + 8 * t < tokens);
                }
            }
        };
        const auto load_values = [&](unsigned tile, int tokens) {
            const int64_t at = tile * tile_stride;
#pragma unroll
            for (int t = 0; t < 4; ++t) {
                const int token = t % 2 + t / 2 * 8;
#pragma unroll
                for (int j = 0; j < PARTS; ++j) {
                    value[t][j] = load_once(values + at + token * token_stride + 64 * j, 2 * c + token < tokens);
                }
            }
        };
        float mixed[4 * PARTS][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (int m = 0; m < 4 * PARTS; ++m) mixed[m][0] = mixed[m][1] = mixed[m][2] = mixed[m][3] = 0.0f;
        look_up(0);
        unsigned next = __shfl_sync(FULL_WARP, place, 0);
        int tokens = __shfl_sync(FULL_WARP, place_tokens, 0);
        load_keys(next, tokens);
        load_values(next, tokens);
#pragma unroll
        for (int j = 0; j < 2 * PARTS; ++j) {
            const bool there = first + r < group;
            q[j] = load_once(query + (first + (there ? r : 0)) * DIM + 32 * j + 8 * c, there);
        }
        for (int k = 0; k < own_tiles; ++k) {
            float score[4] = {0.0f, 0.0f, 0.0f, 0.0f}, other[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int j = 0; j < 2 * PARTS; ++j) {
                multiply(score, key[0][j].x, key[1][j].x, key[0][j].y, key[1][j].y, q[j].x, q[j].y);
                multiply(other, key[0][j].z, key[1][j].z, key[0][j].w, key[1][j].w, q[j].z, q[j].w);
            }
            if ((k + 1) % WARP_SIZE == 0) look_up(k + 1);
            next = __shfl_sync(FULL_WARP, place, (k + 1) % WARP_SIZE);
            const int next_tokens = __shfl_sync(FULL_WARP, place_tokens, (k + 1) % WARP_SIZE);
            load_keys(next, next_tokens);

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
            if (__any_sync(FULL_WARP, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
                for (int m = 0; m < 4 * PARTS; ++m) {
                    mixed[m][0] *= shrink[0];
                    mixed[m][1] *= shrink[1];
                    mixed[m][2] *= shrink[0];
                    mixed[m][3] *= shrink[1];
                }
            }
#pragma unroll
            for (int j = 0; j < PARTS; ++j) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const unsigned v0 = word(value[0][j], i), v1 = word(value[1][j], i);
                    const unsigned v2 = word(value[2][j], i), v3 = word(value[3][j], i);
                    multiply(mixed[4 * j + i], __byte_perm(v0, v1, 0x5410), __byte_perm(v0, v1, 0x7632),
                             __byte_perm(v2, v3, 0x5410), __byte_perm(v2, v3, 0x7632), p0, p1);
                }
            }
            load_values(next, next_tokens);
            tokens = next_tokens;
        }
        // Products 0 and 1 are of channel 64·j + 8·r + 2·i, 2 and 3 of the one behind it; heads as above.
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
            for (int width = 4; width < WARP_SIZE; width *= 2) sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], width);
            if (r == 0) warp_max[warp][2 * c + h] = top[h];
            if (r == 0) warp_sum[warp][2 * c + h] = sum[h];
#pragma unroll
            for (int m = 0; m < 4 * PARTS; ++m) {
                const float2 pair = {mixed[m][h], mixed[m][h + 2]};
                *reinterpret_cast<float2*>(&warp_value[warp][2 * c + h][m / 4 * 64 + 8 * r + m % 4 * 2]) = pair;
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < TILE_HEADS * DIM; i += blockDim.x) {
            const int h = i / DIM, d = i % DIM;
            if (first + h >= (int)group) break;
            float highest = -INFINITY, total = 0.0f, out = 0.0f;
#pragma unroll
            for (int w = 0; w < ATTENTION_WARPS; ++w) highest = fmaxf(highest, warp_max[w][h]);
#pragma unroll
            for (int w = 0; w < ATTENTION_WARPS; ++w) {
                const float part = rescale(warp_max[w][h], highest);
                total += part * warp_sum[w][h];
                out += part * warp_value[w][h][d];
            }
            sink(first + h, d, out, highest, total);
        }
        __syncthreads();  // the shared memory is free again
    }
}

// Attend the units [low, high) in the fast form where the shape allows it, else in the plain one.
template <typename UnitOf, typename Sink>
__device__ void attend(const half* query, int64_t group, const Cache& cache, int64_t kv_head, float scale, int64_t low,
                       int64_t high, UnitOf unit_of, Sink sink) {
    __shared__ Meeting meeting;
    const auto address = [](const void* pointer) { return (unsigned long long)pointer; };
    const bool aligned = ((address(query) | address(cache.key) | address(cache.value)) & 15) == 0;
    const bool tiled = aligned && cache.block_size % TILE == 0;
    if (tiled && cache.head_dim == 128) {
        attend_tiles<2>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    } else if (tiled && cache.head_dim == 64) {
        attend_tiles<1>(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    } else {
        attend_plainly(query, group, cache, kv_head, scale, low, high, unit_of, sink, meeting);
    }
}
