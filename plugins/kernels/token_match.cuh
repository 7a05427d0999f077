// TokenMatch: pair each source with its most similar destination, and choose the R best pairs.
//
// Problem   metric [B,N,D] and three lists of positions (S sources, T destinations, O others; S + T + O = N)
//           -> value [B,S] float32: the largest cosine of each source; keep [B,K]: others, unmerged sources,
//           destinations; source [B,R]: sources that leave, by falling value; destination [B,R]: their slots.
//           Among equal values the smaller index wins, among destinations as among sources. A zero row and a
//           NaN cosine count as 0.
// Division  1. similarity: a block takes a tile of sources and a stretch of destinations, which it goes over
//           tile by tile: in float32 (tile.cuh), or where filters() says so on tensor cores, and in float32
//           only what these leave open (filter.cuh), with the same bits. The squared lengths are gathered
//           while the rows are loaded, so normalising costs no pass, and only the best of each row is kept:
//           the S x T matrix is never written. With kFill blocks or more an image of one tile of destinations
//           each, stretches grow instead.
//           2. finish: one block an image takes the best of each row's stretches, in their order, sorts the
//           rows (sort.cuh) and arranges the survivors with prefix sums. More than kSortMost sources: 2.
//           rank: each source counts those in front of it. 3. arrange.
// Launches  2; from more than kSortMost sources 3.
// Bytes     B * (D size S T (1 / tile + 1 / tile) + 8 S stretches + 12 S + 8 (K + 2 R)), the repeated rows
//           from cache.
// Bound     arithmetic: 2 B S T D operations, in fp32 or on tensor cores, and 2 B S stretches D or more in
//           fp32 to settle them; at 197 tokens and batch 1, latency.
#pragma once

#include "filter.cuh"
#include "pairs.cuh"

namespace tokenrt {

constexpr int kMatchLarge =
    512;  // from so many sources on, larger tiles save loads; below, smaller ones fill the GPU
constexpr int kArrangeThreads = 128, kRankThreads = 128;

constexpr int match_tile(int sources, bool whole) {
    return whole && sources >= kMatchLarge ? 64 : 32;
}

namespace match {

template <typename T, typename Policy, bool kFilter, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    similarity(const T* __restrict__ metric, const int* __restrict__ sources,
               const int* __restrict__ destinations, Part* __restrict__ parts, int stretch,
               MatchShape shape) {
    using Found = Nearest<T, Policy, kFilter, kWhole>;
    __shared__ typename Found::Shared shared;
    const std::int64_t image = blockIdx.z;
    const int begin = static_cast<int>(blockIdx.y) * stretch;
    Part* own = parts + (image * gridDim.y + blockIdx.y) * shape.sources;
    Found::find(shared, metric + image * shape.tokens * shape.width,
                static_cast<int>(blockIdx.x) * Policy::kTile, begin, min(begin + stretch, shape.destinations),
                sources, destinations, shape,
                [=](int row, float best, int where) { own[row] = Part{best, where}; });
}

template <typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads, 512 / Policy::kThreads)
    finish(const Part* __restrict__ parts, const int* __restrict__ sources,
           const int* __restrict__ destinations, const int* __restrict__ others, float* __restrict__ value,
           std::int64_t* __restrict__ keep, std::int64_t* __restrict__ source,
           std::int64_t* __restrict__ destination, int stretches, MatchShape shape) {
    __shared__ Pairs<Policy> pairs;
    const std::int64_t image = blockIdx.x;
    float* values = value + image * shape.sources;
    const Part* own = parts + image * stretches * shape.sources;
    pairs.rank(shape, [=](int i) {
        const Part best = best_of(own, i, stretches, shape.sources);
        values[i] = best.value;
        return best;
    });
    pairs.write(sources, destinations, others, keep + image * shape.keep(), source + image * shape.remove,
                destination + image * shape.remove, shape);
}

static __global__ void __launch_bounds__(kRankThreads)
    rank(const Part* __restrict__ parts, const int* __restrict__ sources, float* __restrict__ value,
         int* __restrict__ ranks, std::int64_t* __restrict__ keep, std::int64_t* __restrict__ source,
         std::int64_t* __restrict__ destination, int stretches, MatchShape shape) {
    const std::int64_t image = blockIdx.y;
    const Part* own = parts + image * stretches * shape.sources;
    const auto best = [=](int i) { return best_of(own, i, stretches, shape.sources); };
    const int mine = static_cast<int>(blockIdx.x * kRankThreads + threadIdx.x);
    const int before =
        rank_among<kRankThreads>(shape.sources, mine, [=](int i) { return ordered(best(i).value); });
    if (mine >= shape.sources) {
        return;
    }
    const Part found = best(mine);
    value[image * shape.sources + mine] = found.value;
    ranks[image * shape.sources + mine] = before;
    place_source(mine, before, found.nearest, sources, keep + image * shape.keep(),
                 source + image * shape.remove, destination + image * shape.remove, shape);
}

static __global__ void __launch_bounds__(kArrangeThreads)
    arrange(const int* __restrict__ ranks, const int* __restrict__ sources,
            const int* __restrict__ destinations, const int* __restrict__ others,
            std::int64_t* __restrict__ keep, MatchShape shape) {
    const std::int64_t image = blockIdx.x;
    const int* own = ranks + image * shape.sources;
    arrange_survivors<kArrangeThreads>([=](int i) { return own[i] >= shape.remove; }, sources, destinations,
                                       others, keep + image * shape.keep(), shape);
}

template <typename T, typename Policy, bool kWhole>
cudaError_t compare(const void* metric, const int* sources, const int* destinations, Part* parts,
                    Stretches stretches, MatchShape shape, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.sources, Policy::kTile)),
                    static_cast<unsigned>(stretches.count), static_cast<unsigned>(shape.batch));
    const auto compare = kWhole && filters(shape.width) ? similarity<T, Policy, kWhole, kWhole>
                                                        : similarity<T, Policy, false, kWhole>;
    return launch(compare, grid, Policy::kThreads, stream, static_cast<const T*>(metric), sources,
                  destinations, parts, stretches.tiles * Policy::kTile, shape);
}

// Whether the kernels take lists of these lengths; the lists hold each position 0 .. N-1 once.
inline bool takes(const MatchShape& shape) {
    return within(shape.batch, 1, kMostBatch) && within(shape.tokens, 1, kMostTokens) &&
           countable(shape.tokens, shape.width) && within(shape.sources, 1, shape.tokens) &&
           within(shape.destinations, 1, shape.tokens) && within(shape.others, 0, shape.tokens) &&
           shape.sources + shape.destinations + shape.others == shape.tokens &&
           within(shape.remove, 1, shape.sources) && within(shape.order, kSourcesByPosition, kSourcesByValue);
}

// The first launch: the bests of every stretch to `parts`, and the number of stretches.
inline cudaError_t compare_all(int type, const void* metric, const int* sources, const int* destinations,
                               Part* parts, int& stretches, MatchShape shape, cudaStream_t stream) {
    return with_type(type, [=, &stretches](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, metric);
        const int tile = match_tile(shape.sources, whole);
        const Stretches divided = stretches_of(shape.sources, shape.destinations, tile);
        stretches = divided.count;
        const auto run = !whole       ? compare<T, TilePolicy<32>, false>
                         : tile == 64 ? compare<T, TilePolicy<64>, true>
                                      : compare<T, TilePolicy<32>, true>;
        return run(metric, sources, destinations, parts, divided, shape, stream);
    });
}

}  // namespace match

// Enough for either tile.
inline std::size_t token_match_workspace(int batch, int sources, int destinations) {
    const int small = stretches_of(sources, destinations, match_tile(sources, false)).count;
    const int large = stretches_of(sources, destinations, match_tile(sources, true)).count;
    const std::size_t parts = sizeof(Part) * static_cast<std::size_t>(max(small, large));
    return static_cast<std::size_t>(batch) * static_cast<std::size_t>(sources) *
           (parts + (sources > kSortMost ? sizeof(int) : 0));
}

// The lists hold each position 0 .. N-1 once and lie in device memory; `others` may be null when there are
// none.
inline cudaError_t token_match(int type, const void* metric, const int* sources, const int* destinations,
                               const int* others, float* value, std::int64_t* keep, std::int64_t* source,
                               std::int64_t* destination, void* workspace, MatchShape shape,
                               cudaStream_t stream) {
    if (!match::takes(shape)) {
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
    int stretches = 0;
    Part* parts = static_cast<Part*>(workspace);
    state = match::compare_all(type, metric, sources, destinations, parts, stretches, shape, stream);
    if (state != cudaSuccess) {
        return state;
    }
    const dim3 images(static_cast<unsigned>(shape.batch));
    if (shape.sources <= kSortMost) {
        const bool longer = shape.sources > kSortLong;
        return launch(longer ? match::finish<SortPolicy<true>> : match::finish<SortPolicy<false>>, images,
                      longer ? SortPolicy<true>::kThreads : SortPolicy<false>::kThreads, stream, parts,
                      sources, destinations, others, value, keep, source, destination, stretches, shape);
    }
    int* ranks = reinterpret_cast<int*>(parts + static_cast<std::size_t>(shape.batch) *
                                                    static_cast<std::size_t>(stretches) *
                                                    static_cast<std::size_t>(shape.sources));
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.sources, kRankThreads)),
                    static_cast<unsigned>(shape.batch));
    state = launch(match::rank, grid, kRankThreads, stream, parts, sources, value, ranks, keep, source,
                   destination, stretches, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(match::arrange, images, kArrangeThreads, stream, ranks, sources, destinations, others, keep,
                  shape);
}

}  // namespace tokenrt
