// Requests for table entries: which of a batch name an entry that is there, and which is the first to name it.
#pragma once

#include "common.cuh"

// Entry of the table [num_seqs][max_blocks_per_seq] that a request (sequence, logical block) names, -1: none.
__device__ __forceinline__ int64_t entry_of(const int* reqs, int64_t i, int64_t num_seqs, int64_t max_blocks_per_seq) {
    const int64_t seq = reqs[2 * i], logical = reqs[2 * i + 1];
    if (seq < 0 || seq >= num_seqs || logical < 0 || logical >= max_blocks_per_seq) return -1;
    return seq * max_blocks_per_seq + logical;
}

// Which of up to 1024 keys, one a thread, is the first of those equal to it: a hash table in shared memory, at most half
// full, whose slots hold the number of the first thread with the slot's key. Keys are not negative; a negative one is none.
struct FirstOfKey {
    static constexpr int SLOTS = 2048, MOST_KEYS = 1024, NOBODY = 0x7fffffff;
    int64_t key[MOST_KEYS];
    int first[SLOTS];

    static __device__ __forceinline__ int slot_of(int64_t own) {
        return (int)((unsigned long long)own * 0x9E3779B97F4A7C15ull >> 53);
    }

    // All threads; after the next barrier slots are settled. Returns the slot of the thread's key.
    __device__ __forceinline__ int enter(int64_t own) {
        for (int slot = threadIdx.x; slot < SLOTS; slot += blockDim.x) first[slot] = NOBODY;
        key[threadIdx.x] = own;
        __syncthreads();
        if (own < 0) return 0;
        int slot = slot_of(own);
        while (true) {
            const int found = atomicCAS(&first[slot], NOBODY, (int)threadIdx.x);
            if (found == NOBODY) break;
            if (key[found] == own) {
                atomicMin(&first[slot], (int)threadIdx.x);
                break;
            }
            slot = (slot + 1) % SLOTS;
        }
        return slot;
    }

    // Slot of a key that was entered.
    __device__ __forceinline__ int find(int64_t own) const {
        int slot = slot_of(own);
        while (key[first[slot]] != own) slot = (slot + 1) % SLOTS;
        return slot;
    }
};

// Thread blocks that wait for earlier ones, as those of a scan in one pass do (Merrill & Garland 2016, as CUB has it):
// thread blocks start in the order of their numbers, so the ones waited for run or have run. `said` has a word for each
// thread block, zero before.
__device__ __forceinline__ void say(int* said, int value) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicExch(&said[blockIdx.x], value);
    }
}

// Sum of what all earlier thread blocks said, each not zero, once they have; what they wrote before is seen then.
__device__ __forceinline__ int64_t heard_from_earlier(int* said) {
    int64_t own = 0;
    for (int i = threadIdx.x; i < blockIdx.x; i += blockDim.x) {
        int value;
        while ((value = *(volatile int*)&said[i]) == 0) __nanosleep(20);
        own += value;
    }
    __threadfence();
    return block_sum(own);
}

// Set valid[i] to 1 where request i is the first to name an empty entry, else to 0. One thread block does it, and only
// it; table entries serve as marks and are -1 again behind it.
__device__ __forceinline__ void first_to_name_empty(const int* reqs, int* block_table, int* valid, int64_t num_requests,
                                                    int64_t num_seqs, int64_t max_blocks_per_seq, int* status) {
    int flags = 0;
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
        const bool empty = entry >= 0 && block_table[entry] == -1;
        valid[i] = empty;
        if (entry < 0) flags |= STATUS_RANGE;
        else if (!empty) flags |= STATUS_ALREADY_MAPPED;
    }
    __syncthreads();  // all have looked before the first mark
    // A mark is negative and the lower the earlier its request stands, so the least of an entry's marks is the first's.
    const int lowest = (int)0x80000000;
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        if (valid[i]) atomicMin(&block_table[entry_of(reqs, i, num_seqs, max_blocks_per_seq)], lowest + (int)i);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        if (!valid[i]) continue;
        const int mark = block_table[entry_of(reqs, i, num_seqs, max_blocks_per_seq)];
        if (mark != lowest + (int)i) {
            valid[i] = 0;
            flags |= STATUS_ALREADY_MAPPED;
        }
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < num_requests; i += blockDim.x) {
        if (valid[i]) block_table[entry_of(reqs, i, num_seqs, max_blocks_per_seq)] = -1;
    }
    if (flags) atomicOr(status, flags);
    __syncthreads();
}

// The same over many thread blocks, in three launches, a thread per request. Between them the first mark of an entry is
// the least: marks are LOWEST + request, negative, and the lower the earlier.
constexpr int LOWEST = (int)0x80000000;

__device__ __forceinline__ int64_t request_of_thread() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }

__device__ __forceinline__ void look_at_entry(const int* reqs, const int* block_table, int* valid, int64_t num_requests,
                                              int64_t num_seqs, int64_t max_blocks_per_seq, int* status) {
    const int64_t i = request_of_thread();
    if (i >= num_requests) return;
    const int64_t entry = entry_of(reqs, i, num_seqs, max_blocks_per_seq);
    const bool empty = entry >= 0 && block_table[entry] == -1;
    valid[i] = empty;
    if (!empty) atomicOr(status, entry < 0 ? STATUS_RANGE : STATUS_ALREADY_MAPPED);
}

__device__ __forceinline__ void mark_entry(const int* reqs, int* block_table, const int* valid, int64_t num_requests,
                                           int64_t num_seqs, int64_t max_blocks_per_seq) {
    const int64_t i = request_of_thread();
    if (i >= num_requests || !valid[i]) return;
    atomicMin(&block_table[entry_of(reqs, i, num_seqs, max_blocks_per_seq)], LOWEST + (int)i);
}

// True for the first; later ones become invalid. Who was valid owns the entry's mark and must take it away.
__device__ __forceinline__ bool is_first(const int* reqs, const int* block_table, int* valid, int64_t num_requests,
                                         int64_t num_seqs, int64_t max_blocks_per_seq, int* status) {
    const int64_t i = request_of_thread();
    if (i >= num_requests || !valid[i]) return false;
    if (block_table[entry_of(reqs, i, num_seqs, max_blocks_per_seq)] == LOWEST + (int)i) return true;
    valid[i] = 0;
    atomicOr(status, STATUS_ALREADY_MAPPED);
    return false;
}

// Marks are LOWEST + request: as unsigned numbers above every id and below -1, so that the least of an entry's stands.
struct Marks {
    unsigned* entries;
    unsigned last;

    __device__ __forceinline__ Marks(int* block_table, int64_t num_requests)
        : entries(reinterpret_cast<unsigned*>(block_table)), last((unsigned)LOWEST + (unsigned)(num_requests - 1)) {}

    static __device__ __forceinline__ unsigned of(int64_t i) { return (unsigned)LOWEST + (unsigned)i; }
    // Whether the entry was empty before the call; `doubled`: another request was here before.
    __device__ __forceinline__ bool put(int64_t entry, int64_t i, bool* doubled) const {
        const unsigned found = atomicCAS(&entries[entry], ~0u, of(i));
        *doubled = found >= (unsigned)LOWEST && found <= last;
        if (*doubled) atomicMin(&entries[entry], of(i));
        return found == ~0u || *doubled;
    }
    // Whether request i is the first that named the entry; once all are there.
    __device__ __forceinline__ bool stands(int64_t entry, int64_t i) const {
        return *(volatile unsigned*)&entries[entry] == of(i);
    }
};

// Empty the boxes of `block` in every layer; the threads of `stride` share the work.
__device__ __forceinline__ void empty_box(half* box, int64_t block, int64_t num_layers, int64_t layer_stride,
                                          int64_t num_kv_heads, int64_t head_dim, int thread, int stride) {
    const int64_t bounds = num_kv_heads * 2 * head_dim;
    for (int64_t i = thread; i < num_layers * bounds; i += stride) {
        const int64_t layer = i / bounds, at = i % bounds;
        const bool low = at / head_dim % 2 == 0;
        box[box_offset(layer * layer_stride + block, 0, 0, at, num_kv_heads, head_dim)] =
            __ushort_as_half(low ? 0x7c00 : 0xfc00);  // +inf, -inf: the first key makes the box
    }
}
