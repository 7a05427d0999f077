// Squared distances between tokens, and the nearest of some rows for each token: what clusterings share.
#pragma once

#include "parts.cuh"
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

// The nearest of the rows right(slot), `begin` to `end` - 1, to each token of a tile, those from `first` on,
// found by one block: told(token, squared distance, slot), once a token; the first of equally near ones.
template <typename T, typename Policy, bool kWhole, typename Right, typename Told>
__device__ __forceinline__ void join(TileShared<T, Policy>& shared, const T* __restrict__ metric, int first,
                                     Right row_at, int begin, int end, int tokens, int width, Told told) {
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const auto left = [=](int i) { return row_of(metric, first + i, tokens, width); };
    float least[kEach];
    int where[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        least[i] = INFINITY;
        where[i] = begin;
    }
    for (int base = begin; base < end; base += Policy::kTile) {
        const auto right = [=](int i) { return base + i < end ? row_at(base + i) : nullptr; };
        float apart[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDistances>(shared, left, right, width, apart);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int slot = base + kEach * x + j;
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const float distance = measured(apart[i][j]);
                // Slots come in ascending order, so that an equally near one later on never wins.
                if (slot < end && distance < least[i]) {
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
            told(row, least[i], where[i]);
        }
    }
}

// What a block does: a tile of tokens, blockIdx.x, and a stretch of centres, blockIdx.y, of image blockIdx.z.
// A part's value is minus the squared distance.
template <typename T, typename Policy, bool kWhole, typename Right>
__device__ __forceinline__ void join_stretch(TileShared<T, Policy>& shared, const T* __restrict__ metric,
                                             Right row_at, Part* __restrict__ parts, int stretch, int tokens,
                                             int width, int keep) {
    const std::int64_t image = blockIdx.z;
    const int begin = static_cast<int>(blockIdx.y) * stretch;
    Part* own = parts + (image * gridDim.y + blockIdx.y) * tokens;
    join<T, Policy, kWhole>(shared, metric + image * tokens * width,
                            static_cast<int>(blockIdx.x) * Policy::kTile, row_at, begin,
                            min(begin + stretch, keep), tokens, width,
                            [=](int row, float distance, int slot) { own[row] = Part{-distance, slot}; });
}

inline dim3 grid_of(int batch, int tokens, int tile, const Stretches& stretches) {
    return dim3(static_cast<unsigned>(ceil_div(tokens, tile)), static_cast<unsigned>(stretches.count),
                static_cast<unsigned>(batch));
}

// The nearest of the tokens at `centers` [B,K].
template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    center(const T* __restrict__ metric, const std::int64_t* __restrict__ centers, Part* __restrict__ parts,
           int stretch, int tokens, int width, int keep) {
    __shared__ TileShared<T, Policy> shared;
    const std::int64_t image = blockIdx.z;
    const T* own = metric + image * tokens * width;
    const std::int64_t* places = centers + image * keep;
    join_stretch<T, Policy, kWhole>(
        shared, metric, [=](int slot) { return own + places[slot] * width; }, parts, stretch, tokens, width,
        keep);
}

// assign [B,N]: the best over the stretches.
constexpr int kSettleThreads = 128;

static __global__ void __launch_bounds__(kSettleThreads)
    settle(const Part* __restrict__ parts, std::int64_t* __restrict__ assign, int stretches, int tokens) {
    const std::int64_t image = blockIdx.y;
    const int mine = static_cast<int>(blockIdx.x) * kSettleThreads + static_cast<int>(threadIdx.x);
    if (mine < tokens) {
        assign[image * tokens + mine] =
            best_of(parts + image * stretches * tokens, mine, stretches, tokens).nearest;
    }
}

inline cudaError_t settled(const Part* parts, std::int64_t* assign, int stretches, int batch, int tokens,
                           cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(tokens, kSettleThreads)), static_cast<unsigned>(batch));
    return launch(settle, grid, kSettleThreads, stream, parts, assign, stretches, tokens);
}

}  // namespace nearest

}  // namespace tokenrt
