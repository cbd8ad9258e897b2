// Make the declared K and V of new tokens and the query rows of the decoding sequences.
// One thread block per token for K and V, then one per query row; threads over the channels. Hashes are 64-bit integer
// arithmetic, the float32 operations are rounded one by one, so the bits are those of the reference.
#include "common.cuh"

constexpr int NUM_SINKS = 4;
constexpr int STREAM_KEY = 1, STREAM_VALUE = 2, STREAM_QUERY = 3;
constexpr float KEY_CENTRE = 0.75f, KEY_NOISE = 0.625f, SINK = 0.75f;
constexpr float QUERY_CENTRE = 0.875f, QUERY_NOISE = 0.5f, QUERY_SINK = 0.5f;

typedef unsigned long long Hash;

// SplitMix64's finalizer over one more part (Steele et al. 2014).
__device__ __forceinline__ Hash mix(Hash state, Hash part) {
    state = (state ^ part) * 0xBF58476D1CE4E5B9ull;
    state ^= state >> 30;
    state *= 0x94D049BB133111EBull;
    return state ^ state >> 31;
}

// The sum of four 16-bit parts, less its mean, over its deviation.
__device__ __forceinline__ float noise(Hash hash) {
    const int total = (int)(hash & 0xFFFF) + (int)(hash >> 16 & 0xFFFF) + (int)(hash >> 32 & 0xFFFF) + (int)(hash >> 48);
    return __fdiv_rn(__int2float_rn(total - 131070), 37837.0f);
}

extern "C" __global__ void content_generation(
    const int64_t* token,     // [num_tokens] identity
    const int* topic,         // [num_tokens] or null, as centre and sink
    const int* position,      // [num_tokens] place in its sequence
    const float* centre,      // [num_kv_heads][num_clusters][head_dim]
    const float* sink,        // [num_kv_heads][head_dim]
    const int* query_token,   // [num_rows] token whose query the row is, -1 = none
    half* kv,                 // [num_tokens][2][num_kv_heads][head_dim]
    half* query,              // [num_rows][num_heads][head_dim]
    int64_t num_tokens,
    int64_t num_kv_heads,
    int64_t num_clusters,
    int64_t head_dim,
    int64_t num_rows,
    int64_t num_heads,
    int64_t seed,
    int layer,
    int* status) {
    const int64_t at = blockIdx.x, row = at - num_tokens;
    const bool makes_query = row >= 0;
    if (row >= num_rows) return;
    const int64_t source = makes_query ? query_token[row] : at;
    const int64_t channels = (makes_query ? num_heads : num_kv_heads) * head_dim;
    if (source < 0 || source >= num_tokens) {  // a row without a query
        if (source != -1 && threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        for (int64_t i = threadIdx.x; i < channels; i += blockDim.x) query[row * channels + i] = __ushort_as_half(0);
        return;
    }
    const Hash identity = (Hash)token[source];
    int64_t cluster = topic ? topic[source] : 0;
    if (topic && (cluster < 0 || cluster >= num_clusters)) {
        if (threadIdx.x == 0) atomicOr(status, STATUS_RANGE);
        cluster = 0;
    }
    const Hash start = mix(0x9E3779B97F4A7C15ull, (Hash)seed);
    const auto drawn = [&](int stream, int64_t head, int64_t d) {
        const Hash of_layer = mix(mix(start, (Hash)stream), (Hash)(int64_t)layer);
        return noise(mix(mix(mix(of_layer, (Hash)head), (Hash)d), identity));
    };
    const int64_t group = num_heads / num_kv_heads;
    const bool sinks = position[source] >= 0 && position[source] < NUM_SINKS;
    for (int64_t i = threadIdx.x; i < channels; i += blockDim.x) {
        const int64_t head = i / head_dim, d = i % head_dim, kv_head = makes_query ? head / group : head;
        const float own = topic ? centre[(kv_head * num_clusters + cluster) * head_dim + d] : 0.0f;
        const float liked = topic ? sink[kv_head * head_dim + d] : 0.0f;
        if (makes_query) {
            float x = drawn(STREAM_QUERY, head, d);
            if (topic) {
                x = __fadd_rn(__fmul_rn(QUERY_CENTRE, own), __fmul_rn(QUERY_NOISE, x));
                x = __fadd_rn(x, __fmul_rn(QUERY_SINK, liked));
            }
            query[row * channels + i] = __float2half_rn(x);
        } else {
            float x = drawn(STREAM_KEY, head, d);
            if (topic) {
                x = __fadd_rn(__fmul_rn(KEY_CENTRE, own), __fmul_rn(KEY_NOISE, x));
                if (sinks) x = __fadd_rn(x, __fmul_rn(SINK, liked));
            }
            kv[2 * at * channels + i] = __float2half_rn(x);
            kv[(2 * at + 1) * channels + i] = __float2half_rn(drawn(STREAM_VALUE, head, d));
        }
    }
}
