// Scores of blocks from their boxes in the order of box_scores.cuh, by warps that stay: for the one launch of
// query_aware_paged_attention. For head_dim 64 and 128 and a group of 1, 2 or a multiple of 4 heads.
//
// A row of blocks, of one sequence and KV head, is cut into windows of 8 to 32; a warp takes every so-manieth window of all
// rows. It brings tiles of 8 boxes into a ring in shared memory (ring.cuh), 16 bytes per lane, and goes on bringing from
// window to window, so that the next tiles are always under way.
#pragma once

#include "box_scores.cuh"

constexpr int TILE_BOXES = 8;
constexpr int MOST_TILES = 4;  // of a window

// All rows' blocks in windows, of as many tiles as let the warp with most of them have fewest.
struct Windows {
    int tiles, per_row, total;

    __device__ Windows(int64_t max_blocks_per_seq, int64_t rows, int64_t warps) {
        const auto up = [](unsigned a, unsigned b) { return (a + b - 1) / b; };
        unsigned fewest = ~0u;
        tiles = 1;
#pragma unroll 1
        for (int each = 1; each <= MOST_TILES; ++each) {
            const unsigned most = up(up((unsigned)max_blocks_per_seq, each * TILE_BOXES) * (unsigned)rows, (unsigned)warps) * each;
            tiles = most <= fewest ? each : tiles;
            fewest = min(most, fewest);
        }
        tiles = uniform(tiles);
        per_row = uniform(up((unsigned)max_blocks_per_seq, tiles * TILE_BOXES));
        total = per_row * (int)rows;
    }
};

// Score the windows first, first + stride, … by one warp, with a ring of its own. `given_of(seq)` tells how many blocks of
// a sequence hold tokens; `done(row)` is called when a window's scores are written. What is wrong with the table, and with
// that number, goes into `flags`. WHOLE: the group has HEADS heads; else it has a multiple of as many.
template <int HEADS, int PARTS, bool WHOLE, typename GivenOf, typename Done>
__device__ __forceinline__ void score_tiles(const Scoring& call, const int* block_table, float* block_score,
                                            const Windows& windows, int first, int stride, GivenOf given_of, Done done,
                                            unsigned char* ring, int& flags) {
    constexpr int HEAD_DIM = PARTS * WARP_SIZE, ROW = 4 * HEAD_DIM;  // bytes
    constexpr int LANES = ROW / 16, ROWS = WARP_SIZE / LANES;        // boxes that one load of the warp brings
    constexpr int PAIRS = TILE_BOXES / 2 * HEADS;
    const int lane = threadIdx.x % WARP_SIZE, side = lane / HALF_WARP, m = lane % HALF_WARP;
    const int group = WHOLE ? HEADS : (int)(call.num_heads / call.num_kv_heads), kv_heads = (int)call.num_kv_heads;
    const int width = windows.tiles * TILE_BOXES;
    const int max_blocks = (int)call.max_blocks_per_seq;
    const int box_stride = kv_heads * (2 * HEAD_DIM);
    const unsigned ring_at = shared_address(ring) + lane % LANES * 16;

    // Of the window that is brought: the lane's block. Of the one behind it: the lane's entry of the table, asked for early.
    int ahead = first, ahead_tile = 0, ahead_head = 0, own = -1;
    int entry = -1, entry_at = 0, entry_head = 0;
    int given = 0;
    const auto ask = [&](int window) {
        const int row = window / windows.per_row, seq = row / kv_heads;
        entry = -1;
        given = 0;
        if (window >= windows.total) return;
        entry_at = (window - row * windows.per_row) * width + lane;
        entry_head = row - seq * kv_heads;
        if (lane < width && entry_at < max_blocks) entry = block_table[seq * call.max_blocks_per_seq + entry_at];
        given = given_of(seq);
    };
    const auto enter = [&] {
        const bool inside = lane < width && entry_at < min(given, max_blocks);
        const bool held = inside && entry >= 0 && entry < call.num_blocks;
        own = held ? entry : -1;
        if (inside && !held) flags |= entry == -1 ? STATUS_UNMAPPED : STATUS_RANGE;
        if (given < 0 || given > max_blocks) flags |= STATUS_RANGE;
        ahead_head = entry_head;
        ask(ahead + stride);
    };
    int slot = 0;
    const auto bring = [&] {  // the next tile; lane l and l + 8, … get its l-th block
        const int ids = __shfl_sync(FULL_WARP, own, (ahead_tile * TILE_BOXES + lane % TILE_BOXES) % WARP_SIZE);
        const unsigned to = ring_at + slot * SLOT_BYTES;
        const half* const from = call.box + ahead_head * (2 * HEAD_DIM) + lane % LANES * 8;
        int block[TILE_BOXES / ROWS];
#pragma unroll
        for (int i = 0; i < TILE_BOXES / ROWS; ++i) block[i] = __shfl_sync(FULL_WARP, ids, i * ROWS + lane / LANES);
#pragma unroll
        for (int i = 0; i < TILE_BOXES / ROWS; ++i) {
            const int at = i * ROWS + lane / LANES;
            // Rows in turn have their 64-byte halves exchanged: the two that a warp reads at once lie in other banks.
            const int turned = ROWS == 1 && i % 2 == 0 ? 0 : at % 2 * ((lane & 4) ? -64 : 64);
            copy_ahead(to + at * ROW + turned, from + (int64_t)max(block[i], 0) * box_stride, block[i] >= 0);
        }
        close_copies();
        slot = slot == RING_SLOTS - 1 ? 0 : slot + 1;
        if (++ahead_tile == windows.tiles) {
            ahead_tile = 0;
            ahead += stride;
            enter();
        }
        return ids;
    };
    float2 above[HEADS][PARTS], below[HEADS][PARTS];  // the positive and the negative part of each channel
    bool undefined = false;
    const auto take_query = [&](const half* q) {
        undefined = false;
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
#pragma unroll
            for (int p = 0; p < PARTS; ++p) {
                const float2 x = __half22float2(reinterpret_cast<const half2*>(q + h * HEAD_DIM + p * WARP_SIZE)[m]);
                above[h][p] = {x.x > 0.0f ? x.x : 0.0f, x.y > 0.0f ? x.y : 0.0f};
                below[h][p] = {x.x < 0.0f ? x.x : 0.0f, x.y < 0.0f ? x.y : 0.0f};
                undefined |= isnan(x.x) || isnan(x.y);
            }
        }
        undefined = __any_sync(FULL_WARP, undefined);
    };
    if (first >= windows.total) return;
    ask(first);
    enter();
    int tile_ids = -1, second_ids = -1, third_ids = -1;  // of the tiles in the ring
    int window = first, row = 0, start = 0, tile = 0, query_row = -1, used = 0;
#pragma unroll 1
    for (int step = -RING_SLOTS; window < windows.total; ++step) {
        if (step >= 0) {
            if (tile == 0) {
                row = window / windows.per_row;
                start = (window - row * windows.per_row) * width;
                if (WHOLE && row != query_row) take_query(call.query + (int64_t)row * group * HEAD_DIM);
                query_row = row;
            }
            const half* const queries = call.query + (int64_t)row * group * HEAD_DIM;
            await_copies<RING_SLOTS - 1>();
            const unsigned char* const boxes = ring + used * SLOT_BYTES;
            used = used == RING_SLOTS - 1 ? 0 : used + 1;
            float so_far = 0.0f;  // of a group of more than HEADS heads
#pragma unroll 1
            for (int begin = 0; begin < group; begin += HEADS) {
                if (!WHOLE) take_query(queries + begin * HEAD_DIM);
                float sums[PAIRS][2];
#pragma unroll
                for (int i = 0; i < TILE_BOXES / 2; ++i) {
                    const unsigned char* const box = boxes + (2 * i + side) * ROW + 4 * m;
                    float2 low[PARTS], high[PARTS];
#pragma unroll
                    for (int p = 0; p < PARTS; ++p) {
                        low[p] = __half22float2(*reinterpret_cast<const half2*>(box + (64 * p ^ 64 * side)));
                        high[p] = __half22float2(*reinterpret_cast<const half2*>(box + ROW / 2 + (64 * p ^ 64 * side)));
                    }
#pragma unroll
                    for (int h = 0; h < HEADS; ++h) {
                        float even = 0.0f, odd = 0.0f;  // products are exact, so that a fused step rounds only the sum
#pragma unroll
                        for (int p = 0; p < PARTS; ++p) {
                            even = __fmaf_rn(above[h][p].x, high[p].x, __fmaf_rn(below[h][p].x, low[p].x, even));
                            odd = __fmaf_rn(above[h][p].y, high[p].y, __fmaf_rn(below[h][p].y, low[p].y, odd));
                        }
                        sums[i * HEADS + h][0] = even;
                        sums[i * HEADS + h][1] = odd;
                    }
                }
                hand_over<PAIRS, HALF_WARP / 2>(sums);
                // Lane m of a side has head `head` of block 2 · (m % PAIRS / HEADS) + side.
                const int in_tile = 2 * (m % PAIRS / HEADS) + side, head = m % HEADS;
                const int block = __shfl_sync(FULL_WARP, tile_ids, in_tile);
                float score = positive_zero(__fadd_rn(sums[0][0], sums[0][1]));
                // A bound that is no number, also the infinite ones of an empty box times 0: as the plain path has it.
                unsigned odd_ones = __ballot_sync(FULL_WARP, block >= 0 && (isnan(score) || undefined));
#pragma unroll 1
                while (odd_ones) {
                    const int from = __ffs(odd_ones) - 1;
                    odd_ones &= odd_ones - 1;
                    const int of_head = __shfl_sync(FULL_WARP, head, from), of_block = __shfl_sync(FULL_WARP, block, from);
                    const half* low = call.box + box_offset(of_block, row % kv_heads, 0, 0, call.num_kv_heads, HEAD_DIM);
                    const float plain = box_score(queries + (begin + of_head) * HEAD_DIM, low, low + HEAD_DIM, HEAD_DIM);
                    if (lane == from) score = plain;
                }
                if (block < 0) score = -INFINITY;
                GroupReduction reduced(call.reduction);
                reduced.heads = begin;
                reduced.value = so_far;
                if (call.reduction == 0) {  // the order of a maximum is free
                    float best = score;
#pragma unroll
                    for (int across = 1; across < HEADS; across *= 2) {
                        best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, across));
                    }
                    const unsigned undefined_ones = __ballot_sync(FULL_WARP, isnan(score)) >> lane / HEADS * HEADS;
                    reduced.add(undefined_ones & ((1u << HEADS) - 1) ? positive_nan() : best);
                } else {
#pragma unroll
                    for (int h = 0; h < HEADS; ++h) reduced.add(__shfl_sync(FULL_WARP, score, lane / HEADS * HEADS + h));
                }
                so_far = reduced.value;
                const int in_window = tile * TILE_BOXES + in_tile;
                const bool ours = m < PAIRS && start + in_window < max_blocks;
                float* const scores =
                    block_score + (int64_t)row * (call.per_head ? group : 1) * call.max_blocks_per_seq + start;
                if (ours && call.per_head) {
                    scores[(begin + head) * call.max_blocks_per_seq + in_window] = score;
                } else if (ours && head == 0 && begin + HEADS == group) {
                    scores[in_window] = block >= 0 ? reduced.result() : -INFINITY;
                }
            }
            __syncwarp();  // the slot is free again
            if (++tile == windows.tiles) {
                done(row);
                tile = 0;
                window += stride;
            }
        }
        tile_ids = second_ids;
        second_ids = third_ids;
        third_ids = bring();
    }
    await_copies<0>();
}
