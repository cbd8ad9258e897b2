// Copy runs of memory that do not overlap, by one thread block. On Hopper and later one thread drives the bulk copy engine
// through stages of shared memory (loads that complete on a barrier, stores in groups); elsewhere, and where an address
// or a length is no multiple of 16 bytes, all threads copy through registers.
#pragma once

#include "common.cuh"

struct Run {
    const half* from;
    half* to;
    int64_t count;  // halfs
};

__device__ __forceinline__ bool in_vectors(const Run& run) {
    return (((unsigned long long)run.from | (unsigned long long)run.to) & 15) == 0 && run.count % 8 == 0;
}

// Eight times 16 bytes in flight in each thread where both addresses allow it, past the caches: neither side is read soon.
__device__ __forceinline__ void copy_by_threads(const Run& run) {
    constexpr int IN_FLIGHT = 8;
    const bool wide = (((unsigned long long)run.from | (unsigned long long)run.to) & 15) == 0;
    const int64_t vectors = wide ? run.count / 8 : 0, threads = blockDim.x;
    const uint4* from = reinterpret_cast<const uint4*>(run.from);
    uint4* to = reinterpret_cast<uint4*>(run.to);
    int64_t i = threadIdx.x;
    for (; i + (IN_FLIGHT - 1) * threads < vectors; i += IN_FLIGHT * threads) {
        uint4 held[IN_FLIGHT];
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) held[k] = __ldcs(from + i + k * threads);
#pragma unroll
        for (int k = 0; k < IN_FLIGHT; ++k) __stcs(to + i + k * threads, held[k]);
    }
    for (; i < vectors; i += threads) to[i] = from[i];
    for (int64_t k = vectors * 8 + threadIdx.x; k < run.count; k += threads) run.to[k] = run.from[k];
}

#if __CUDA_ARCH__ >= 900
constexpr int NUM_STAGES = 5, STAGE_BYTES = 8192;  // 40 KB: five thread blocks share a multiprocessor, 200 KB in flight

struct Stages {
    alignas(128) unsigned char bytes[NUM_STAGES][STAGE_BYTES];
    unsigned long long full[NUM_STAGES];
};

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return (unsigned)__cvta_generic_to_shared(pointer);
}

// The pieces of all runs in order, of at most a stage each.
template <int N>
struct Pieces {
    const Run* runs;
    int run = 0;
    int64_t done = 0;  // bytes of the run

    __device__ explicit Pieces(const Run (&all)[N]) : runs(all) {}
    __device__ __forceinline__ bool next(const char** from, char** to, unsigned* bytes) {
        while (run < N && done == 2 * runs[run].count) {
            ++run;
            done = 0;
        }
        if (run == N) return false;
        *from = reinterpret_cast<const char*>(runs[run].from) + done;
        *to = reinterpret_cast<char*>(runs[run].to) + done;
        *bytes = (unsigned)min(2 * runs[run].count - done, (int64_t)STAGE_BYTES);
        done += *bytes;
        return true;
    }
};

// One thread. When it returns every source has been read.
template <int N>
__device__ __forceinline__ void copy_in_bulk(const Run (&runs)[N], Stages& stages) {
    for (int s = 0; s < NUM_STAGES; ++s) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&stages.full[s])) : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    Pieces<N> ahead(runs), behind(runs);
    const auto load = [&](int stage) {
        const char* from;
        char* to;
        unsigned bytes;
        if (!ahead.next(&from, &to, &bytes)) return;
        const unsigned full = shared_address(&stages.full[stage]);
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(stages.bytes[stage])),
                     "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(full)
                     : "memory");
    };
    for (int stage = 0; stage < NUM_STAGES; ++stage) load(stage);
    const char* from;
    char* to;
    unsigned bytes;
    for (int piece = 0; behind.next(&from, &to, &bytes); ++piece) {
        const int stage = piece % NUM_STAGES, parity = piece / NUM_STAGES & 1;
        asm volatile(
            "{\n"
            ".reg .pred arrived;\n"
            "again:\n"
            "mbarrier.try_wait.parity.shared::cta.b64 arrived, [%0], %1;\n"
            "@!arrived bra again;\n"
            "}" ::"r"(shared_address(&stages.full[stage])),
            "r"(parity)
            : "memory");
        asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to)),
                     "r"(shared_address(stages.bytes[stage])), "r"(bytes)
                     : "memory");
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
        // The stage of the piece before may be filled again once its store has read it; this piece's store may go on.
        if (piece == 0) continue;
        asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory");
        load((piece - 1) % NUM_STAGES);
    }
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
#endif

// Every thread must call it. A barrier behind it makes sure that every source has been read.
template <int N>
__device__ __forceinline__ void copy_runs(const Run (&runs)[N]) {
#if __CUDA_ARCH__ >= 900
    __shared__ Stages stages;
    bool bulk = true;
    for (int i = 0; i < N; ++i) bulk = bulk && in_vectors(runs[i]);
    if (bulk) {
        if (threadIdx.x == 0) copy_in_bulk(runs, stages);
        return;
    }
#endif
    for (int i = 0; i < N; ++i) copy_by_threads(runs[i]);
}
