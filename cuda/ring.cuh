// A ring of slots in shared memory that a warp fills ahead of its use, where the architecture can copy without waiting.
#pragma once

#include "common.cuh"

constexpr int RING_SLOTS = 3;
constexpr int SLOT_BYTES = 4096;

// A value that is the same in all lanes, which the compiler then knows, so that it need not fear diverging lanes.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(FULL_WARP, value, 0); }
__device__ __forceinline__ int uniform_warp() { return uniform((int)threadIdx.x / WARP_SIZE); }

// The address of shared memory in its own space.
__device__ __forceinline__ unsigned shared_address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

// Copy 16 bytes to shared memory without waiting, where the architecture can.
__device__ __forceinline__ void copy_ahead(half* target, const half* source) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(target)), "l"(source) : "memory");
#else
    *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
#endif
}

// The same, zeros where there is nothing.
__device__ __forceinline__ void copy_ahead(unsigned target, const void* source, bool there = true) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(there ? 16 : 0)
                 : "memory");
#else
    uint4 held = {0, 0, 0, 0};
    if (there) held = *static_cast<const uint4*>(source);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(held.x), "r"(held.y), "r"(held.z), "r"(held.w)
                 : "memory");
#endif
}

__device__ __forceinline__ void close_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most `LATER` of the closed groups are still under way.
template <int LATER>
__device__ __forceinline__ void await_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
#endif
    __syncwarp();
}
