// TokenPeaks over the distances of all pairs (distances.cuh): every step reads rows of them, a warp a row.
#pragma once

#include "distances.cuh"
#include "order.cuh"

namespace tokenrt {

struct PeaksShape {
    int batch, tokens, width, keep, neighbours;
};

constexpr int kFewNeighbours = 8, kMostNeighbours = 64;

namespace peaks {

constexpr int kRowThreads = 128;
constexpr int kRowsOfABlock = kRowThreads / static_cast<int>(kWarp);

struct Held {
    float *sparse, *gap, *far;
};

__device__ __forceinline__ Held held_by(float* workspace, std::int64_t image, std::int64_t tokens) {
    float* start = workspace + 3 * image * tokens;
    return {start, start + tokens, start + 2 * tokens};
}

// Puts `value` into a sorted list of `count` entries, `step` apart, whose last one falls out.
__device__ __forceinline__ void insert(float* list, int count, int step, float value) {
    int at = count - 1;
    if (!(value < list[at * step])) {
        return;
    }
    for (; at > 0 && value < list[(at - 1) * step]; --at) {
        list[at * step] = list[(at - 1) * step];
    }
    list[at * step] = value;
}

// The row this warp looks at, beyond the end for the last block's spare warps.
__device__ __forceinline__ int own_row() {
    return static_cast<int>(blockIdx.x) * kRowsOfABlock + static_cast<int>(warp());
}

// The mean of the k least distances of each row, added up in ascending order: each lane keeps the k least of
// its columns. kMost: the largest k; short lists leave room for more blocks.
template <int kMost>
static __global__ void __launch_bounds__(kRowThreads)
    density_by_rows(float* __restrict__ pairs, float* __restrict__ workspace, PeaksShape shape) {
    __shared__ float lists[kMost][kRowThreads];
    const int me = static_cast<int>(threadIdx.x), row = own_row(), wanted = shape.neighbours;
    const std::int64_t image = blockIdx.y;
    if (row >= shape.tokens) {
        return;
    }
    const float* apart = distances::row_at(pairs, image, row, shape.tokens);
    for (int i = 0; i < wanted; ++i) {
        lists[i][me] = INFINITY;
    }
    for (int column = static_cast<int>(lane()); column < shape.tokens; column += static_cast<int>(kWarp)) {
        insert(&lists[0][me], wanted, kRowThreads, apart[column]);
    }
    float sum = 0;
    int next = 0;
    for (int i = 0; i < wanted; ++i) {
        const Best least = warp_best(Best{-lists[min(next, wanted - 1)][me], static_cast<int>(lane())});
        sum -= least.value;
        next += least.place == static_cast<int>(lane());
    }
    if (lane() == 0) {
        held_by(workspace, image, shape.tokens).sparse[row] = sum / static_cast<float>(wanted);
    }
}

static __global__ void __launch_bounds__(kRowThreads)
    gaps_by_rows(float* __restrict__ pairs, float* __restrict__ workspace, PeaksShape shape) {
    const int row = own_row();
    const std::int64_t image = blockIdx.y;
    if (row >= shape.tokens) {
        return;
    }
    const float* apart = distances::row_at(pairs, image, row, shape.tokens);
    const Held held = held_by(workspace, image, shape.tokens);
    const float own = held.sparse[row];
    float gap = INFINITY, far = 0;
    for (int column = static_cast<int>(lane()); column < shape.tokens; column += static_cast<int>(kWarp)) {
        const float sparse = held.sparse[column], distance = apart[column];
        const bool denser = sparse < own || (sparse == own && column < row);
        gap = denser ? fminf(gap, distance) : gap;
        far = fmaxf(far, distance);
    }
    gap = -group_max<kWarp>(-gap);
    far = group_max<kWarp>(far);
    if (lane() == 0) {
        held.gap[row] = gap;
        held.far[row] = far;
    }
}

// The nearest centre of each token, the first of equally near ones; a centre belongs to itself.
static __global__ void __launch_bounds__(kRowThreads)
    assign_by_rows(float* __restrict__ pairs, const std::int64_t* __restrict__ center,
                   std::int64_t* __restrict__ assign, PeaksShape shape) {
    const int row = own_row();
    const std::int64_t image = blockIdx.y;
    if (row >= shape.tokens) {
        return;
    }
    const float* apart = distances::row_at(pairs, image, row, shape.tokens);
    const std::int64_t* places = center + image * shape.keep;
    Best best{-INFINITY, shape.keep};
    for (int slot = static_cast<int>(lane()); slot < shape.keep; slot += static_cast<int>(kWarp)) {
        const int place = static_cast<int>(places[slot]);
        const Best candidate{place == row ? 1.0f : -apart[place], slot};
        best = ahead(candidate, best) ? candidate : best;
    }
    best = warp_best(best);
    if (lane() == 0) {
        assign[image * shape.tokens + row] = best.place;
    }
}

}  // namespace peaks
}  // namespace tokenrt
