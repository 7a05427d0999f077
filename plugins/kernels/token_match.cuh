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

#include "match.cuh"

namespace tokenrt {

constexpr int kMatchLarge =
    512;  // from so many sources on, larger tiles save loads; below, smaller ones fill the GPU
constexpr int kArrangeThreads = 128, kRankThreads = 128;

namespace match {

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    similarity(const T* __restrict__ metric, const int* __restrict__ sources,
               const int* __restrict__ destinations, float* __restrict__ value, int* __restrict__ nearest,
               MatchShape shape) {
    __shared__ TileShared<T, Policy> shared;
    const std::int64_t image = blockIdx.y;
    nearest_of<kWhole>(shared, metric + image * shape.tokens * shape.width,
                       static_cast<int>(blockIdx.x) * Policy::kTile, sources, destinations,
                       value + image * shape.sources, nearest + image * shape.sources, shape);
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
    place_source(mine, before, nearest + image * shape.sources, sources, keep + image * shape.keep(),
                 source + image * shape.remove, destination + image * shape.remove, shape);
}

static __global__ void __launch_bounds__(kArrangeThreads)
    arrange(const int* __restrict__ ranks, const int* __restrict__ sources,
            const int* __restrict__ destinations, const int* __restrict__ others,
            std::int64_t* __restrict__ keep, MatchShape shape) {
    const std::int64_t image = blockIdx.x;
    arrange_survivors<kArrangeThreads>(ranks + image * shape.sources, sources, destinations, others,
                                       keep + image * shape.keep(), shape);
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
        !countable(shape.tokens, shape.width) || !within(shape.sources, 1, shape.tokens) ||
        !within(shape.destinations, 1, shape.tokens) || !within(shape.others, 0, shape.tokens) ||
        shape.sources + shape.destinations + shape.others != shape.tokens ||
        !within(shape.remove, 1, shape.sources) ||
        !within(shape.order, kSourcesByPosition, kSourcesByValue)) {
        return cudaErrorInvalidValue;
    }
    cudaError_t state = check_pointers(rows_of(type, metric), sources, destinations, value, keep, source,
                                       destination, workspace);
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
        const bool whole = in_vectors<T>(shape.width, metric), large = shape.sources >= kMatchLarge;
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
