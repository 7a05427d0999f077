// The order of scores, and three ways to use it inside a block: finding the best, counting those in front,
// numbering those chosen.
//
// Total order: the larger score first, among equal scores the smaller position. NaN counts as minus infinity,
// plus infinity as the largest float, and the two zeros are equal.
#pragma once

#include "common.cuh"

namespace tokenrt {

// The order of what a kernel chooses.
constexpr int kByPosition = 0, kByScore = 1;

// A number that grows with the score.
__device__ __forceinline__ unsigned ordered(float score) {
    const float rated = isnan(score) ? -INFINITY : fminf(score, FLT_MAX);
    const unsigned bits = __float_as_uint(rated + 0.0f);  // -0 + 0 = +0
    return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// A value, never NaN, and where it stands: the larger value first, then the smaller place.
struct Best {
    float value;
    int place;
};

__device__ __forceinline__ bool ahead(Best one, Best other) {
    return one.value > other.value || (one.value == other.value && one.place < other.place);
}

// The best of all threads' candidates, for every thread. `slots` must be free: a barrier lies between two
// calls.
template <int kThreads>
__device__ __forceinline__ Best block_best(Best mine, Best (&slots)[kThreads / kWarp]) {
    for (int step = static_cast<int>(kWarp) / 2; step > 0; step /= 2) {
        const Best other{__shfl_xor_sync(kEveryLane, mine.value, step),
                         __shfl_xor_sync(kEveryLane, mine.place, step)};
        mine = ahead(other, mine) ? other : mine;
    }
    if (lane() == 0) {
        slots[warp()] = mine;
    }
    __syncthreads();
    mine = slots[0];
    for (unsigned i = 1; i < kThreads / kWarp; ++i) {
        mine = ahead(slots[i], mine) ? slots[i] : mine;
    }
    return mine;
}

// How many of `count` entries stand before entry `mine`. All threads of the block call it, those without an
// entry of their own included. Reading key(i) costs count / kThreads loads a thread; comparing them count
// operations.
template <int kThreads, typename Key>
__device__ __forceinline__ int rank_among(int count, int mine, Key key) {
    __shared__ unsigned tile[kThreads];
    const unsigned own = mine < count ? key(mine) : 0;
    int before = 0;
    for (int base = 0; base < count; base += kThreads) {
        const int entry = base + static_cast<int>(threadIdx.x);
        tile[threadIdx.x] = entry < count ? key(entry) : 0;
        __syncthreads();
        const int length = min(kThreads, count - base);
        for (int i = 0; i < length; ++i) {
            before += tile[i] > own || (tile[i] == own && base + i < mine);
        }
        __syncthreads();
    }
    return before;
}

// Numbers two kinds of flagged entries in the order of their threads: this block's entries come after all
// those of earlier calls. All threads call it, with the same running totals, which it moves on.
struct Numbers {
    int first, second;
};

template <int kThreads>
__device__ __forceinline__ Numbers number(bool first, bool second, Numbers& running) {
    __shared__ unsigned counts[kThreads / kWarp];  // two counts of at most 1024 in one word
    const unsigned firsts = __ballot_sync(kEveryLane, first), seconds = __ballot_sync(kEveryLane, second);
    if (lane() == 0) {
        counts[warp()] = static_cast<unsigned>(__popc(firsts)) | static_cast<unsigned>(__popc(seconds)) << 16;
    }
    __syncthreads();
    unsigned earlier = 0, all = 0;
    for (unsigned i = 0; i < kThreads / kWarp; ++i) {
        earlier += i < warp() ? counts[i] : 0;
        all += counts[i];
    }
    __syncthreads();
    const Numbers mine{running.first + static_cast<int>(earlier & 0xffffu) + __popc(firsts & lanes_before()),
                       running.second + static_cast<int>(earlier >> 16) + __popc(seconds & lanes_before())};
    running.first += static_cast<int>(all & 0xffffu);
    running.second += static_cast<int>(all >> 16);
    return mine;
}

}  // namespace tokenrt
