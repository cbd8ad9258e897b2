// Stages of shared memory that one thread fills by bulk copies while all use others. Hopper and later; elsewhere nothing
// of it does anything, and nobody may launch what uses it.
#pragma once

#include "common.cuh"

template <int STAGES, int STAGE_BYTES>
struct Stages {
    static constexpr int BYTES = STAGES * (STAGE_BYTES + 8);  // the stages, then a barrier each

    unsigned char* memory;  // [BYTES], aligned to 16
    int used;               // fills of earlier rounds: fill f of this one is in stage (used + f) % STAGES

    __device__ __forceinline__ static unsigned shared(const void* at) { return (unsigned)__cvta_generic_to_shared(at); }
    __device__ __forceinline__ unsigned char* stage(int fill) const { return memory + (used + fill) % STAGES * STAGE_BYTES; }
    __device__ __forceinline__ unsigned barrier(int fill) const {
        return shared(memory + STAGES * STAGE_BYTES + 8 * ((used + fill) % STAGES));
    }

    // All threads, once.
    __device__ __forceinline__ void start() const {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x == 0) {
            for (int i = 0; i < STAGES; ++i) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier(i)) : "memory");
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
#endif
    }

    // All threads, when all have done with what was in the stage before; source and bytes are multiples of 16.
    __device__ __forceinline__ void ask(int fill, const void* source, int bytes) const {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x != 0) return;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier(fill)), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared(stage(fill))),
                     "l"(source), "r"(bytes), "r"(barrier(fill))
                     : "memory");
#endif
    }

    // Whatever was asked for must be waited for.
    __device__ __forceinline__ void wait(int fill) const {
#if __CUDA_ARCH__ >= 900
        asm volatile(
            "{\n\t.reg .pred there;\n\tAGAIN_%=:\n\tmbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n\t"
            "@!there bra AGAIN_%=;\n\t}" ::"r"(barrier(fill)),
            "r"((used + fill) / STAGES & 1)
            : "memory");
#endif
    }
};
