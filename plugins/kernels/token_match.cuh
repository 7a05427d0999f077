// TokenMatch: pair each source with its most similar destination, and choose the R best pairs.
//
// Problem   metric [B,N,D] and three lists of positions (S sources, T destinations, O others; S + T + O = N)
//           -> value [B,S] float32: the largest cosine of each source; keep [B,K]: others, unmerged sources,
//           destinations; source [B,R]: sources that leave, by falling value; destination [B,R]: their slots.
//           Among equal values the smaller index wins, among destinations as among sources. A zero row and a
//           NaN cosine count as 0.
// Division  1. similarity: a block takes a tile of sources and goes over all destinations tile by tile
//           (tile.cuh). The squared lengths are gathered while the rows are loaded, so normalising costs no
//           pass, and only the best of each row is kept: the S x T matrix is never written. 2. rank: each
//           source counts those in front of it. 3. arrange: one block an image numbers the unmerged sources
//           with prefix sums.
// Bytes     B * (D * size * (S + T * S / tile) + 12 S + 8 (K + 2 R)), the repeated destinations from cache.
// Bound     arithmetic: 2 B S T D operations in fp32; at 197 tokens and batch 1, latency.
#pragma once

#include "order.cuh"
#include "tile.cuh"

namespace tokenrt {

struct MatchShape {
    int batch, tokens, width, sources, destinations, others, remove, order;
    __host__ __device__ int keep() const { return tokens - remove; }
};

constexpr int kMatchLarge =
    512;  // from so many sources on, larger tiles save loads; below, smaller ones fill the GPU
constexpr int kArrangeThreads = 128, kRankThreads = 128;
constexpr int kSourcesByPosition = 0, kSourcesByValue = 1;

namespace match {

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    similarity(const T* __restrict__ metric, const int* __restrict__ sources,
               const int* __restrict__ destinations, float* __restrict__ value, int* __restrict__ nearest,
               MatchShape shape) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const int first = static_cast<int>(blockIdx.x) * Policy::kTile;
    const T* rows = metric + static_cast<std::int64_t>(blockIdx.y) * shape.tokens * shape.width;
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
    for (int base = 0; base < shape.destinations; base += Policy::kTile) {
        const auto right = [=](int i) {
            return base + i < shape.destinations
                       ? rows + static_cast<std::int64_t>(destinations[base + i]) * shape.width
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
                if (column < shape.destinations && cosine > best[i]) {
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
            const std::int64_t at = static_cast<std::int64_t>(blockIdx.y) * shape.sources + row;
            value[at] = best[i];
            nearest[at] = where[i];
        }
    }
}

static __global__ void __launch_bounds__(kRankThreads)
    rank(const float* __restrict__ value, const int* __restrict__ nearest, const int* __restrict__ sources,
         int* __restrict__ ranks, std::int64_t* __restrict__ keep, std::int64_t* __restrict__ source,
         std::int64_t* __restrict__ destination, MatchShape shape) {
    const std::int64_t image = blockIdx.y;
    const float* values = value + image * shape.sources;
    const int mine = static_cast<int>(blockIdx.x * kRankThreads + threadIdx.x);
    const int before =
        rank_among<kRankThreads>(shape.sources, mine, [=](int i) { return ordered(values[i]); });
    if (mine >= shape.sources) {
        return;
    }
    ranks[image * shape.sources + mine] = before;
    if (before < shape.remove) {
        source[image * shape.remove + before] = sources[mine];
        destination[image * shape.remove + before] =
            nearest[image * shape.sources + mine] + shape.keep() - shape.destinations;
    } else if (shape.order == kSourcesByValue) {
        keep[image * shape.keep() + shape.others + before - shape.remove] = sources[mine];
    }
}

static __global__ void __launch_bounds__(kArrangeThreads)
    arrange(const int* __restrict__ ranks, const int* __restrict__ sources,
            const int* __restrict__ destinations, const int* __restrict__ others,
            std::int64_t* __restrict__ keep, MatchShape shape) {
    const std::int64_t image = blockIdx.x;
    const int me = static_cast<int>(threadIdx.x);
    std::int64_t* out = keep + image * shape.keep();
    for (int i = me; i < shape.others; i += kArrangeThreads) {
        out[i] = others[i];
    }
    for (int i = me; i < shape.destinations; i += kArrangeThreads) {
        out[shape.keep() - shape.destinations + i] = destinations[i];
    }
    if (shape.order == kSourcesByValue) {
        return;
    }
    Numbers running{0, 0};
    for (int base = 0; base < shape.sources; base += kArrangeThreads) {
        const int i = base + me;
        const bool stays = i < shape.sources && ranks[image * shape.sources + i] >= shape.remove;
        const int before = number<kArrangeThreads>(stays, false, running).first;
        if (stays) {
            out[shape.others + before] = sources[i];
        }
    }
}

template <typename T, typename Policy, bool kWhole>
cudaError_t compare(const void* metric, const int* sources, const int* destinations, float* value,
                    int* nearest, MatchShape shape, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.sources, Policy::kTile)),
                    static_cast<unsigned>(shape.batch));
    return launch(similarity<T, Policy, kWhole>, grid, Policy::kThreads, stream,
                  static_cast<const T*>(metric), sources, destinations, value, nearest, shape);
}

}  // namespace match

inline std::size_t token_match_workspace(int batch, int sources) {
    return 2 * sizeof(int) * static_cast<std::size_t>(batch) * static_cast<std::size_t>(sources);
}

// The lists hold each position 0 .. N-1 once and lie in device memory; `others` may be null when there are
// none.
inline cudaError_t token_match(int type, const void* metric, const int* sources, const int* destinations,
                               const int* others, float* value, std::int64_t* keep, std::int64_t* source,
                               std::int64_t* destination, void* workspace, MatchShape shape,
                               cudaStream_t stream) {
    if (!within(shape.batch, 1, kMostBatch) || !within(shape.tokens, 1, kMostTokens) ||
        !within(shape.width, 1, kMostWidth) || !within(shape.sources, 1, shape.tokens) ||
        !within(shape.destinations, 1, shape.tokens) || !within(shape.others, 0, shape.tokens) ||
        shape.sources + shape.destinations + shape.others != shape.tokens ||
        !within(shape.remove, 1, shape.sources) ||
        !within(shape.order, kSourcesByPosition, kSourcesByValue)) {
        return cudaErrorInvalidValue;
    }
    cudaError_t state =
        check_pointers(metric, sources, destinations, value, keep, source, destination, workspace);
    if (state == cudaSuccess && shape.others > 0) {
        state = check_pointers(others);
    }
    if (state != cudaSuccess) {
        return state;
    }
    int* nearest = static_cast<int*>(workspace);
    int* ranks = nearest + static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.sources);
    state = with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = shape.width * sizeof(T) % 16 == 0, large = shape.sources >= kMatchLarge;
        const auto compare =
            whole ? large ? match::compare<T, TilePolicy<64>, true> : match::compare<T, TilePolicy<32>, true>
                  : match::compare<T, TilePolicy<32>, false>;
        return compare(metric, sources, destinations, value, nearest, shape, stream);
    });
    if (state != cudaSuccess) {
        return state;
    }
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.sources, kRankThreads)),
                    static_cast<unsigned>(shape.batch));
    state = launch(match::rank, grid, kRankThreads, stream, value, nearest, sources, ranks, keep, source,
                   destination, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(match::arrange, dim3(static_cast<unsigned>(shape.batch)), kArrangeThreads, stream, ranks,
                  sources, destinations, others, keep, shape);
}

}  // namespace tokenrt
