// Squared distances between tokens, and the nearest of some rows for each token: what clusterings share.
#pragma once

#include "tile.cuh"

namespace tokenrt {

constexpr float kFarthest = 1e30f;

// A squared distance that is infinite or NaN counts as kFarthest.
__device__ __forceinline__ float measured(float square) {
    return square < kFarthest ? square : kFarthest;
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

}  // namespace nearest

}  // namespace tokenrt
