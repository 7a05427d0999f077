// Sorting the scores of one image by one block, in shared memory: a bitonic network over keys that are all
// different, so that the order is total and every run gives the same one.
//
// Bound     latency: log2(n) (log2(n) + 1) / 2 steps of two reads and two writes, with a barrier where pairs
// lie
//           further apart than a warp's own 64 keys: 6 of 36 steps for 256 keys, 28 of 78 for 4,096.
#pragma once

#include "order.cuh"

namespace tokenrt {

// A score with where it stands and a number that goes with it, as one key: larger keys stand in front. Order
// as in order.cuh.
using SortKey = unsigned long long;

constexpr int kPlaceBits = 16;
static_assert(kMostTokens <= 1 << kPlaceBits, "a place and its companion fill the lower half of a key");

__device__ __forceinline__ SortKey sort_key(float score, int place, int companion = 0) {
    const unsigned low = (0xffffu - static_cast<unsigned>(place)) << kPlaceBits;
    return static_cast<SortKey>(ordered(score)) << 32 | low | static_cast<unsigned>(companion);
}
__device__ __forceinline__ int place_in(SortKey key) {
    return static_cast<int>(0xffffu - (static_cast<unsigned>(key) >> kPlaceBits));
}
__device__ __forceinline__ int companion_in(SortKey key) {
    return static_cast<int>(static_cast<unsigned>(key) & 0xffffu);
}

// Whether the score of `key` stands in front of that of `last`, or is the same entry.
__device__ __forceinline__ bool up_to(SortKey key, SortKey last) {
    return key >> kPlaceBits >= last >> kPlaceBits;
}

// Threads and the most keys of a block that sorts: small ones leave room for other images.
template <bool kLong>
struct SortPolicy {
    static constexpr int kThreads = kLong ? 512 : 128;
    static constexpr int kMost = kLong ? 4096 : 256;
    static constexpr int kHeld = kMost / kThreads;
};
constexpr int kSortLong = SortPolicy<false>::kMost, kSortMost = SortPolicy<true>::kMost;

__device__ __forceinline__ int sorted_length(int count) {
    int length = 2 * static_cast<int>(kWarp);
    while (length < count) {
        length *= 2;
    }
    return length;
}

// Fills `keys` with key(0) .. key(count - 1), count <= kMost, and zeros, and returns those that this thread
// asked for, threadIdx.x + turn kThreads, in `held`. A barrier must follow: sort() begins with one.
template <typename Policy, typename Key>
__device__ __forceinline__ void fill(SortKey (&keys)[Policy::kMost], SortKey (&held)[Policy::kHeld],
                                     int count, Key key) {
#pragma unroll
    for (int turn = 0; turn < Policy::kHeld; ++turn) {
        const int i = turn * Policy::kThreads + static_cast<int>(threadIdx.x);
        held[turn] = i < count ? key(i) : 0;
        keys[i] = held[turn];
    }
}

// Sorts the first `count` keys, behind which zeros stand, the largest first. All threads of the block call
// it, and may read every key when it returns.
template <typename Policy>
__device__ __forceinline__ void sort(SortKey (&keys)[Policy::kMost], int count) {
    const int me = static_cast<int>(threadIdx.x), length = sorted_length(count);
    __syncthreads();
    for (int run = 2; run <= length; run *= 2) {
        for (int apart = run / 2; apart > 0; apart /= 2) {
            for (int pair = me; pair < length / 2; pair += Policy::kThreads) {
                const int front = 2 * pair - (pair & (apart - 1)), back = front + apart;
                const SortKey one = keys[front], other = keys[back];
                if ((one < other) == ((front & run) == 0)) {
                    keys[front] = other;
                    keys[back] = one;
                }
            }
            // A warp's 32 pairs lie in 64 neighbouring keys while they are no further apart than 32, and the
            // next step's do so too unless a longer run begins. The last step's next is further: it ends with
            // a barrier.
            constexpr int kOwn = static_cast<int>(kWarp);
            const int next = apart > 1 ? apart / 2 : run;
            if (apart > kOwn || next > kOwn) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
}

}  // namespace tokenrt
