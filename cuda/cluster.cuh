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

// This thread block's number in its cluster.
__device__ __forceinline__ int cluster_rank() {
    if (CLUSTER_BLOCKS == 1) return 0;
#ifdef EMU
    return emu_cluster_rank();
#else
    return (int)(blockIdx.x % CLUSTER_BLOCKS);
#endif
}

// A barrier over all threads of the cluster, behind which writes to each other's shared memory are seen.
__device__ __forceinline__ void cluster_barrier() {
#ifdef EMU
    emu_cluster_barrier();
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
}

// Where thread block `rank` of the cluster has this variable of shared memory.
template <typename T>
__device__ __forceinline__ T* shared_of(T* own, int rank) {
#ifdef EMU
    return (T*)emu_remote(own, rank);
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    unsigned long long found;
    asm("mapa.u64 %0, %1, %2;" : "=l"(found) : "l"((unsigned long long)own), "r"(rank));
    return reinterpret_cast<T*>(found);
#else
    return own;
#endif
}

// Tell every thread block of the cluster this one's number: told[rank] in each. The first threads do it; a
// cluster_barrier must follow before anybody reads.
__device__ __forceinline__ void tell_cluster(int* told, int value) {
    if (threadIdx.x < CLUSTER_BLOCKS) *shared_of(&told[cluster_rank()], threadIdx.x) = value;
}

// Sums of told[0 .. rank) and of all.
__device__ __forceinline__ void sums_told(const int* told, int* before, int* all) {
    *before = *all = 0;
    for (int i = 0; i < CLUSTER_BLOCKS; ++i) {
        if (i < cluster_rank()) *before += told[i];
        *all += told[i];
    }
}
