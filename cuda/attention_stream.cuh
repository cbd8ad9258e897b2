// The fast form of flash_paged_attention: the tiles of attention_tiles.cuh, without a pause between parts.
//
// A thread block walks its parts of sequences; each of its warps takes every WARPS-th tile of 16 tokens and has the next
// one under way, whatever part it belongs to: while a part is finished, the next one is already being fetched. What a
// part's first tiles depend on is looked up side by side: its length, its entries of the block table, its query rows.
#pragma once

#include "attention_tiles.cuh"
#include "work_list.cuh"

struct Part {
    int seq, low, high, length;  // units [low, high) of a sequence of `length` tokens; seq -1: nothing
};

// Shared memory in which the warps of a thread block meet.
template <int WARPS>
struct StreamMeeting {
    float2 value[WARPS][TILE_HEADS / 2 * (128 + 1)];
    float max[TILE_HEADS][WARPS], sum[TILE_HEADS][WARPS];
};

// Attend the parts [first, end) of a KV head for query heads [num_seqs][num_heads][64 · PARTS] from `head` on. `call` has
//     row(at)                          a part as the list has it, without its length
//     check(part)                      look its length up, and make it empty where it lies outside its sequence
//     entry(part, unit)                the unit's entry of the block table, -1 outside it
//     unit(part, unit, entry, tokens)  the block of an entry and its valid tokens, 0 to skip it
//     begin(at, part), settle(at, part) before a part: ask for what its end needs, then use it
//     again(first, end)                once, when the first tiles are under way: whether other parts are to be made instead
//     sink(at, part, head, channel, values, maximum, sum)   as attend_rows' sink, for two channels
//     meet()                           a barrier, when the warps have left what they found
//     is_finished(), every()           all parts of the sequence are there, to be put together here; none is missing
//     others()                         once, when the first tiles are under way
// `part` is the first as row gives it. The whole thread block of WARPS warps calls it.
template <int PARTS, int WARPS, typename Call>
__device__ __forceinline__ void attend_stream(Call& call, const half* query, int num_heads, int head, int group,
                                              const Cache& cache, int kv_head, float scale, Part part,
                                              int first, int end, StreamMeeting<WARPS>& meeting) {
    constexpr int DIM = 64 * PARTS, PAIR = DIM + 1;  // pairs of floats of two heads; the one more spreads the banks
    const int lane = threadIdx.x % WARP_SIZE, warp = __shfl_sync(FULL_WARP, (int)threadIdx.x / WARP_SIZE, 0);
    const int r = lane / 4, c = lane % 4;
    const auto meeting_at = [&](int w, int h, int d) {
        return &meeting.value[w][h / 2 * PAIR + (h % 2 * DIM + d) / 2];
    };

    const int token_stride = (int)cache.num_kv_heads * DIM;
    const unsigned tile_stride = TILE * token_stride;
    const half* const keys = cache.key + (int64_t)kv_head * DIM + r * token_stride + 8 * c;
    const half* const values = cache.value + (int64_t)kv_head * DIM + 2 * c * token_stride + 8 * r;
    const int tiles_per_unit = (int)cache.block_size / TILE;
    const auto own_tiles = [&](const Part& part) {
        return part.seq < 0 ? 0 : ((part.high - part.low) * tiles_per_unit - warp + WARPS - 1) / WARPS;
    };

    // The tile that is fetched next: the `ahead_tile`-th of this warp's `ahead_tiles` of a part. Lane l knows where the
    // l-th of 32 lies, in tiles from the start of the pool, and its valid tokens.
    Part ahead = {-1, 0, 0, 0};
    int ahead_at, ahead_pass = 0, ahead_tile = 0, ahead_tiles = 0, place_tokens = 0;
    unsigned place = 0;
    const auto unit_of = [&](unsigned tile) { return tiles_per_unit == 1 ? tile : tile / (unsigned)tiles_per_unit; };
    const auto look_up = [&] { return call.entry(ahead, ahead.low + (int)unit_of(warp + (ahead_tile + lane) * WARPS)); };
    const auto lay_out = [&](int entry) {
        const unsigned at = warp + (ahead_tile + lane) * WARPS, unit = unit_of(at);
        const int start = (int)(at - unit * tiles_per_unit);
        place = 0;
        place_tokens = 0;
        if (ahead_tile + lane < ahead_tiles) {
            int valid;
            const unsigned block = call.unit(ahead, ahead.low + (int)unit, entry, valid);
            place = block * tiles_per_unit + start;
            place_tokens = min(TILE, valid - start * TILE);
        }
    };
    const auto next_tile = [&](unsigned& tile, int& tokens) {
        tile = tokens = 0;
        int entry = -1;
        while (ahead_tile == ahead_tiles) {
            ahead_tile = 0;
            if (++ahead_pass * TILE_HEADS >= group) {
                if (ahead_at + 1 >= end) {
                    ahead_tiles = 0;
                    return;
                }
                ahead_pass = 0;
                ahead = call.row(++ahead_at);
            }
            entry = look_up();
            if (ahead_pass == 0) call.check(ahead);
            ahead_tiles = own_tiles(ahead);
        }
        if (ahead_tile % WARP_SIZE == 0) lay_out(ahead_tile > 0 ? look_up() : entry);
        tile = __shfl_sync(FULL_WARP, place, ahead_tile % WARP_SIZE);
        tokens = __shfl_sync(FULL_WARP, place_tokens, ahead_tile % WARP_SIZE);
        ++ahead_tile;
    };
    uint4 key[2][2 * PARTS], value[4][PARTS], q[2 * PARTS];
    const auto fetch_keys = [&](unsigned tile, int tokens) {
        const half* const from = keys + (unsigned long long)tile * tile_stride;
#pragma unroll
        for (int t = 0; t < 2; ++t) {
#pragma unroll
            for (int j = 0; j < 2 * PARTS; ++j) {
                key[t][j] = load_line(from + 8 * t * token_stride + 32 * j, r + 8 * t < tokens);
            }
        }
    };
    const auto fetch_values = [&](unsigned tile, int tokens) {
        const half* const from = values + (unsigned long long)tile * tile_stride;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
            const int token = t % 2 + t / 2 * 8;
#pragma unroll
            for (int j = 0; j < PARTS; ++j) {
                value[t][j] = load_line(from + token * token_stride + 64 * j, 2 * c + token < tokens);
            }
        }
    };
    const auto fetch_query = [&](int seq, int from) {
#pragma unroll
        for (int j = 0; j < 2 * PARTS; ++j) {
            const bool there = from + r < group;
            const int64_t row = (int64_t)seq * num_heads + head + (there ? from + r : 0);
            q[j] = load_line(query + row * DIM + 32 * j + 8 * c, there);
        }
    };

    const auto begin = [&](int at) {
        if (part.seq < 0) return;
        call.begin(at, part);
        fetch_query(part.seq, 0);
    };
    const auto enter = [&](int at) {
        part.seq = -1;
        if (at >= end) return;
        part = call.row(at);
        begin(at);
    };
    unsigned tile;
    int tokens;
#pragma unroll 1
    for (bool once = true;; once = false) {
        begin(first);
        ahead = part;
        ahead_at = first;
        ahead_pass = ahead_tile = 0;
        const int entry = look_up();
        call.check(ahead);
        part.length = ahead.length;
        part.low = ahead.low;
        part.high = ahead.high;
        ahead_tiles = own_tiles(ahead);
        if (part.seq >= 0) call.settle(first, part);
        if (ahead_tiles > 0) {
            lay_out(entry);
            tile = __shfl_sync(FULL_WARP, place, 0);
            tokens = __shfl_sync(FULL_WARP, place_tokens, 0);
            ahead_tile = 1;
        } else {
            ahead_pass = (group - 1) / TILE_HEADS;
            next_tile(tile, tokens);
        }
        fetch_keys(tile, tokens);
        fetch_values(tile, tokens);
        if (!once || !call.again(first, end)) break;
        part.seq = -1;
        if (first < end) part = call.row(first);
    }
    call.others();
    bool finished = false;
#pragma unroll 1
    for (int at = first; at < end; ++at, enter(at)) {
        if (part.seq < 0) continue;
        if (at > first) {
            call.check(part);
            call.settle(at, part);
        }
        const int tiles = own_tiles(part);
#pragma unroll 1
        for (int from = 0; from < group; from += TILE_HEADS) {
            if (from > 0) fetch_query(part.seq, from);
            float mixed[4 * PARTS][4], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
            for (int m = 0; m < 4 * PARTS; ++m) mixed[m][0] = mixed[m][1] = mixed[m][2] = mixed[m][3] = 0.0f;
#pragma unroll 1
            for (int k = 0; k < tiles; ++k) {
                unsigned next;
                int next_tokens;
                next_tile(next, next_tokens);
                float score[4] = {0.0f, 0.0f, 0.0f, 0.0f}, other[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int j = 0; j < 2 * PARTS; ++j) {
                    multiply(score, key[0][j].x, key[1][j].x, key[0][j].y, key[1][j].y, q[j].x, q[j].y);
                    multiply(other, key[0][j].z, key[1][j].z, key[0][j].w, key[1][j].w, q[j].z, q[j].w);
                }
                fetch_keys(next, next_tokens);

                // Scores 0 and 1 are of token r, 2 and 3 of token r + 8; even ones of head 2·c, odd of head 2·c + 1.
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
                    shrink[h] = power_of_two(top[h] - base);
                    top[h] = highest;
                    score[h] = power_of_two(score[h] - base);
                    score[h + 2] = power_of_two(score[h + 2] - base);
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
                fetch_values(next, next_tokens);
                tokens = next_tokens;
            }
            // Products 0 and 1 are of channel 64·j + 8·r + 2·i, 2 and 3 of the one behind it; heads as above.
#pragma unroll
            for (int h = 0; h < 2; ++h) {
#pragma unroll
                for (int width = 4; width < WARP_SIZE; width *= 2) sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], width);
                if (r == 0) meeting.max[2 * c + h][warp] = top[h];
                if (r == 0) meeting.sum[2 * c + h][warp] = sum[h];
#pragma unroll
                for (int m = 0; m < 4 * PARTS; ++m) {
                    *meeting_at(warp, 2 * c + h, m / 4 * 64 + 8 * r + m % 4 * 2) = {mixed[m][h], mixed[m][h + 2]};
                }
            }
            call.meet();
#pragma unroll 1
            for (int i = threadIdx.x; i < min(group - from, TILE_HEADS) * (DIM / 2); i += WARPS * WARP_SIZE) {
                const int h = i / (DIM / 2), d = i % (DIM / 2) * 2;
                float highest = -INFINITY, total = 0.0f;
                float2 out = {0.0f, 0.0f};
#pragma unroll
                for (int w = 0; w < WARPS; ++w) highest = fmaxf(highest, meeting.max[h][w]);
                const float base = highest == -INFINITY ? 0.0f : highest;
#pragma unroll
                for (int w = 0; w < WARPS; ++w) {
                    const float weight = power_of_two(meeting.max[h][w] - base);
                    const float2 own = *meeting_at(w, h, d);
                    total += weight * meeting.sum[h][w];
                    out.x += weight * own.x;
                    out.y += weight * own.y;
                }
                call.sink(at, part, from + h, d, out, highest, total);
            }
            __syncthreads();  // the shared memory is free again
        }
        if (!call.is_finished()) continue;
        const bool every = call.every();
        finished = every && at + 1 == end;
        if (finished) break;
        const Parts& parts = call.parts;
        if (every) {
            merge_every<4>(call.list, parts, part.seq, head, group, num_heads, DIM, call.output, call.lse);
        } else {
            merge_heads<4>(call.list, parts, false, part.seq, head, group, num_heads, DIM, call.output, call.lse, nullptr,
                           nullptr);
            __syncthreads();  // the shared memory is free again
        }
    }
    if (finished) {  // nothing else is under way
        merge_every<16>(call.list, call.parts, part.seq, head, group, num_heads, DIM, call.output, call.lse);
    }
}
