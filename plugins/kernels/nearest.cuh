// What clusterings share: squared distances between tokens, the nearest of some rows for each token, and the
// tokens in the order of their clusters.
#pragma once

#include "order.cuh"
#include "tile.cuh"

namespace tokenrt {

constexpr int kMostRounds = 1000;
constexpr float kFarthest = 1e30f;
constexpr float kHeaviest = 1e9f;

// A squared distance that is infinite or NaN counts as kFarthest.
__device__ __forceinline__ float measured(float square) {
    return square < kFarthest ? square : kFarthest;
}

// A position outside 0 .. tokens - 1 counts as the nearest of these.
__device__ __forceinline__ std::int64_t place_of(std::int64_t given, int tokens) {
    return given < 0 ? 0 : given < tokens ? given : tokens - 1;
}

// Row `row` of [count,width], null beyond the end.
template <typename T>
__device__ __forceinline__ const T* row_of(const T* rows, int row, int count, int width) {
    return row < count ? rows + static_cast<std::int64_t>(row) * width : nullptr;
}

namespace nearest {

// assign[i]: the nearest of the `keep` rows right(slot) to token i, the first of equally near ones. Grid:
// tiles of tokens, images.
template <typename T, typename Policy, bool kWhole, typename Right>
__device__ __forceinline__ void join(TileShared<T, Policy>& shared, const T* __restrict__ metric,
                                     Right row_at, std::int64_t* __restrict__ assign, int tokens, int width,
                                     int keep) {
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const std::int64_t image = blockIdx.y;
    const int first = static_cast<int>(blockIdx.x) * Policy::kTile;
    const T* own = metric + image * tokens * width;
    const auto left = [=](int i) { return row_of(own, first + i, tokens, width); };
    float least[kEach];
    int where[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        least[i] = INFINITY;
        where[i] = 0;
    }
    for (int base = 0; base < keep; base += Policy::kTile) {
        const auto right = [=](int i) { return base + i < keep ? row_at(base + i) : nullptr; };
        float apart[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDistances>(shared, left, right, width, apart);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int slot = base + kEach * x + j;
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const float distance = measured(apart[i][j]);
                // Slots come in ascending order, so that an equally near one later on never wins.
                if (slot < keep && distance < least[i]) {
                    least[i] = distance;
                    where[i] = slot;
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        for (int step = Policy::kSide / 2; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(kEveryLane, least[i], step);
            const int other_where = __shfl_xor_sync(kEveryLane, where[i], step);
            if (other < least[i] || (other == least[i] && other_where < where[i])) {
                least[i] = other;
                where[i] = other_where;
            }
        }
        const int row = first + kEach * y + i;
        if (x == 0 && row < tokens) {
            assign[image * tokens + row] = where[i];
        }
    }
}

// The nearest of the tokens at `centers` [B,K].
template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    center(const T* __restrict__ metric, const std::int64_t* __restrict__ centers,
           std::int64_t* __restrict__ assign, int tokens, int width, int keep) {
    __shared__ TileShared<T, Policy> shared;
    const std::int64_t image = blockIdx.y;
    const T* own = metric + image * tokens * width;
    const std::int64_t* places = centers + image * keep;
    join<T, Policy, kWhole>(
        shared, metric, [=](int slot) { return own + places[slot] * width; }, assign, tokens, width, keep);
}

// The tokens in the order of their clusters, members by ascending position, and the cluster of each: [B,N].
// Grid: kOrderThreads tokens a block, images.
constexpr int kOrderThreads = 256;

static __global__ void __launch_bounds__(kOrderThreads)
    arrange(const std::int64_t* __restrict__ assign, int* __restrict__ token, int* __restrict__ cluster,
            int tokens) {
    const std::int64_t before_image = static_cast<std::int64_t>(blockIdx.y) * tokens;
    const std::int64_t* own = assign + before_image;
    const int mine = static_cast<int>(blockIdx.x) * kOrderThreads + static_cast<int>(threadIdx.x);
    const auto key = [=](int i) { return ~static_cast<unsigned>(own[i]); };  // the smaller cluster first
    const int before = rank_among<kOrderThreads>(tokens, mine, key);
    if (mine < tokens) {
        token[before_image + before] = mine;
        cluster[before_image + before] = static_cast<int>(own[mine]);
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

}  // namespace nearest

}  // namespace tokenrt
