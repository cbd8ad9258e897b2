// Thread block clusters of Hopper: eight thread blocks that run at the same time, with a barrier of their own and each
// other's shared memory in reach. Where there are none, the first thread block of eight does all the work alone.
// A kernel that uses them is declared with CLUSTER and launched with a multiple of eight thread blocks.
#pragma once

#include "common.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define CLUSTER __cluster_dims__(8, 1, 1)
constexpr int CLUSTER_BLOCKS = 8;
#else
#define CLUSTER
constexpr int CLUSTER_BLOCKS = 1;
#endif

// What follows is for BLOCKS thread blocks that work together: CLUSTER_BLOCKS in a kernel declared with CLUSTER, or 1.

// This thread block's number among them.
template <int BLOCKS = CLUSTER_BLOCKS>
__device__ __forceinline__ int cluster_rank() {
    return (int)(blockIdx.x % BLOCKS);
}

// A barrier over all their threads, behind which writes to each other's shared memory are seen.
template <int BLOCKS = CLUSTER_BLOCKS>
__device__ __forceinline__ void cluster_barrier() {
    if constexpr (BLOCKS == 1) {
        __syncthreads();
    } else {
#if __CUDA_ARCH__ >= 900
        asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
    }
}

// The first touch of another's shared memory needs to know that the other has started: every thread says so on entry and
// waits just before that touch, with the kernel's first loads between the two.
template <int BLOCKS = CLUSTER_BLOCKS>
__device__ __forceinline__ void say_started() {
#if __CUDA_ARCH__ >= 900
    if constexpr (BLOCKS > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}

template <int BLOCKS = CLUSTER_BLOCKS>
__device__ __forceinline__ void all_started() {
#if __CUDA_ARCH__ >= 900
    if constexpr (BLOCKS > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Where thread block `rank` has this variable of shared memory.
template <int BLOCKS = CLUSTER_BLOCKS, typename T>
__device__ __forceinline__ T* shared_of(T* own, int rank) {
    if constexpr (BLOCKS == 1) {
        return own;
    } else {
#if __CUDA_ARCH__ >= 900
        unsigned long long found;
        asm("mapa.u64 %0, %1, %2;" : "=l"(found) : "l"((unsigned long long)own), "r"(rank));
        return reinterpret_cast<T*>(found);
#else
        return own;
#endif
    }
}

// Tell every one of them a number: told[rank] in each. The first threads do it; a cluster_barrier must follow before
// anybody reads.
template <int BLOCKS = CLUSTER_BLOCKS>
__device__ __forceinline__ void tell_cluster(int* told, int value) {
    if (threadIdx.x < BLOCKS) *shared_of<BLOCKS>(&told[cluster_rank<BLOCKS>()], threadIdx.x) = value;
}

// Sums of told[0 .. rank) and of all.
template <int BLOCKS = CLUSTER_BLOCKS>
__device__ __forceinline__ void sums_told(const int* told, int* before, int* all) {
    *before = *all = 0;
    for (int i = 0; i < BLOCKS; ++i) {
        if (i < cluster_rank<BLOCKS>()) *before += told[i];
        *all += told[i];
    }
}
