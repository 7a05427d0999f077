// Matching the tokens of one image, by one block: the nearest destination of a tile of sources, and where
// each source goes.
#pragma once

#include "order.cuh"
#include "tile.cuh"

namespace tokenrt {

struct MatchShape {
    int batch, tokens, width, sources, destinations, others, remove, order;
    __host__ __device__ int keep() const { return tokens - remove; }
};

constexpr int kSourcesByPosition = 0, kSourcesByValue = 1;

namespace match {

// The nearest of the destinations `begin` .. `end` - 1 of each source of one tile, those of one image from
// `first` on, found by one block: told(source, value, destination), once a source that exists.
template <bool kWhole, typename T, typename Policy, typename Told>
__device__ __forceinline__ void nearest_of(TileShared<T, Policy>& shared, const T* rows, int first, int begin,
                                           int end, const int* __restrict__ sources,
                                           const int* __restrict__ destinations, const MatchShape& shape,
                                           Told told) {
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const auto left = [=](int i) {
        return first + i < shape.sources ? rows + static_cast<std::int64_t>(sources[first + i]) * shape.width
                                         : nullptr;
    };
    float best[kEach];
    int where[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        best[i] = -INFINITY;
        where[i] = shape.destinations;
    }
    for (int base = begin; base < end; base += Policy::kTile) {
        const auto right = [=](int i) {
            return base + i < end ? rows + static_cast<std::int64_t>(destinations[base + i]) * shape.width
                                  : nullptr;
        };
        float product[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDotsAndSquares>(shared, left, right, shape.width, product);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int column = base + kEach * x + j;
            const float right_length = length_of(shared.right_square[kEach * x + j]);
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const float left_length = length_of(shared.left_square[kEach * y + i]);
                const float cosine = cosine_of(product[i][j], left_length, right_length);
                // Columns come in ascending order, so that an equal one later on never wins.
                if (column < end && cosine > best[i]) {
                    best[i] = cosine;
                    where[i] = column;
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        for (int step = Policy::kSide / 2; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(kEveryLane, best[i], step);
            const int other_where = __shfl_xor_sync(kEveryLane, where[i], step);
            if (other > best[i] || (other == best[i] && other_where < where[i])) {
                best[i] = other;
                where[i] = other_where;
            }
        }
        const int row = first + kEach * y + i;
        if (x == 0 && row < shape.sources) {
            told(row, best[i], where[i]);
        }
    }
}

// Where a source goes that `before` others stand in front of: away with its pair, or among those that stay.
__device__ __forceinline__ void place_source(int mine, int before, int nearest,
                                             const int* __restrict__ sources, std::int64_t* keep,
                                             std::int64_t* source, std::int64_t* destination,
                                             const MatchShape& shape) {
    if (before < shape.remove) {
        source[before] = sources[mine];
        destination[before] = nearest + shape.keep() - shape.destinations;
    } else if (shape.order == kSourcesByValue) {
        keep[shape.others + before - shape.remove] = sources[mine];
    }
}

// The survivors of one image but for the sources that place_source has placed, by one block. stays(i):
// whether source i does; a thread is asked for i = threadIdx.x + turn kThreads, in order, and for nothing
// beyond S.
template <int kThreads, typename Stays>
__device__ __forceinline__ void arrange_survivors(Stays stays, const int* __restrict__ sources,
                                                  const int* __restrict__ destinations,
                                                  const int* __restrict__ others, std::int64_t* out,
                                                  const MatchShape& shape) {
    const int me = static_cast<int>(threadIdx.x);
    for (int i = me; i < shape.others; i += kThreads) {
        out[i] = others[i];
    }
    for (int i = me; i < shape.destinations; i += kThreads) {
        out[shape.keep() - shape.destinations + i] = destinations[i];
    }
    if (shape.order == kSourcesByValue) {
        return;
    }
    Numbers running{0, 0};
    for (int base = 0; base < shape.sources; base += kThreads) {
        const int i = base + me;
        const bool kept = i < shape.sources && stays(i);
        const int before = number<kThreads>(kept, false, running).first;
        if (kept) {
            out[shape.others + before] = sources[i];
        }
    }
}

}  // namespace match

}  // namespace tokenrt
