// What clusterings in rounds share: limits, where centres start, and the tokens in the order of their
// clusters.
#pragma once

#include "order.cuh"
#include "parts.cuh"

namespace tokenrt {

constexpr int kMostRounds = 100;
constexpr float kHeaviest = 1e9f;

// A position outside 0 .. tokens - 1 counts as the nearest of these.
__device__ __forceinline__ std::int64_t place_of(std::int64_t given, int tokens) {
    return given < 0 ? 0 : given < tokens ? given : tokens - 1;
}

namespace rounds {

// The nearest centre of each token, assign [B,N], from what the stretches of centres say; the tokens in the
// order of their clusters, members by ascending position, and the cluster of each: [B,N]. Grid: kOrderThreads
// tokens a block, images.
constexpr int kOrderThreads = 256, kOrderBlocks = 4;  // a multiprocessor must hold: 64 registers a thread

static __global__ void __launch_bounds__(kOrderThreads, kOrderBlocks)
    arrange(const Part* __restrict__ parts, std::int64_t* __restrict__ assign, int* __restrict__ token,
            int* __restrict__ cluster, int stretches, int tokens) {
    const std::int64_t before_image = static_cast<std::int64_t>(blockIdx.y) * tokens;
    const Part* own = parts + before_image * stretches;
    const int mine = static_cast<int>(blockIdx.x) * kOrderThreads + static_cast<int>(threadIdx.x);
    const auto nearest = [=](int i) { return best_of(own, i, stretches, tokens).nearest; };
    const auto key = [=](int i) { return ~static_cast<unsigned>(nearest(i)); };  // the smaller cluster first
    const int before = rank_among<kOrderThreads>(tokens, mine, key);
    if (mine < tokens) {
        const int joined = nearest(mine);
        assign[before_image + mine] = joined;
        token[before_image + before] = mine;
        cluster[before_image + before] = joined;
    }
}

// The first place of cluster `wanted` or a later one, of an image's `cluster` in ascending order. A warp
// calls it, with one `wanted`: 32 places are looked at together.
__device__ __forceinline__ int first_of(const int* cluster, int wanted, int tokens) {
    int low = 0, length = tokens;  // the answer is one of the places low .. low + length
    while (length > 0) {
        const int step = (length + static_cast<int>(kWarp) - 1) / static_cast<int>(kWarp);
        const int offset = static_cast<int>(lane()) * step;
        const bool before = offset < length && cluster[low + offset] < wanted;
        const int many = __popc(__ballot_sync(kEveryLane, before));  // lanes 0 .. many - 1
        const int passed = many == 0 ? 0 : (many - 1) * step + 1;
        length = many == 0 ? 0 : min(step - 1, length - passed);
        low += passed;
    }
    return low;
}

}  // namespace rounds

}  // namespace tokenrt
