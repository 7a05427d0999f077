// Merging the pairs of an image that no launch has ranked: every block ranks the sources of its image itself.
#pragma once

#include "combine.cuh"
#include "pairs.cuh"

namespace tokenrt {

constexpr unsigned kMergeThreads = 512 * 256;  // about half of what the largest GPUs hold at once

// A long sort takes a block of all threads there are; then 64 registers are left for each.
template <int kSources>
struct MergePolicy {
    static constexpr int kMost = kSources;
    static constexpr int kThreads = kMost > 1024 ? 1024 : CombinePolicy::kThreads;
    static constexpr int kBlocks = kMost > 1024 ? 1 : CombinePolicy::kBlocks;
    static constexpr int kHeld = kMost / kThreads;
    static constexpr int kVectors = CombinePolicy::kVectors;
};

namespace combine {

// Slot `slot` of one image from channel `first` on, as `pairs` ranks its sources, by one warp.
template <typename Own, typename Pairs, typename T>
__device__ __forceinline__ void merge_ranked(const Pairs& pairs, int slot, int first, const T* rows,
                                             const float* __restrict__ sizes, const int* __restrict__ sources,
                                             const int* __restrict__ destinations,
                                             const int* __restrict__ others, T* merged, float* total,
                                             int width, const MatchShape& shape) {
    const bool receives = slot >= shape.keep() - shape.destinations;
    const float mass = merge_slot<Own>(
        rows, sizes, pairs.kept(slot, sources, destinations, others, shape), width, first,
        receives ? shape.remove : 0, [&](int r) { return pairs.slot(r, shape) == slot; },
        [&](int r) { return pairs.source(r, sources); }, merged + static_cast<std::int64_t>(slot) * width);
    if (first == 0 && lane() == 0) {
        total[slot] = mass;
    }
}

template <typename T, int kVector, typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    merge_pairs(const T* __restrict__ tokens, const float* __restrict__ size, const Part* __restrict__ parts,
                const int* __restrict__ sources, const int* __restrict__ destinations,
                const int* __restrict__ others, T* __restrict__ merged, float* __restrict__ total,
                float* __restrict__ value, std::int64_t* __restrict__ keep, std::int64_t* __restrict__ source,
                std::int64_t* __restrict__ destination, int stretches, int width, MatchShape shape) {
    using Own = Survivor<T, kVector, Policy::kVectors>;
    __shared__ match::Pairs<Policy> pairs;
    constexpr int kWarps = Policy::kThreads / static_cast<int>(kWarp);
    const std::int64_t image = blockIdx.z;
    const bool tells = blockIdx.x == 0 && blockIdx.y == 0;
    float* values = value + image * shape.sources;
    const Part* own = parts + image * stretches * shape.sources;
    pairs.rank(shape, [=](int i) {
        const Part best = best_of(own, i, stretches, shape.sources);
        if (tells) {
            values[i] = best.value;
        }
        return best;
    });
    if (tells) {
        pairs.write(sources, destinations, others, keep + image * shape.keep(), source + image * shape.remove,
                    destination + image * shape.remove, shape);
    }
    const T* rows = tokens + image * shape.tokens * width;
    for (int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(warp()); slot < shape.keep();
         slot += static_cast<int>(gridDim.x) * kWarps) {
        merge_ranked<Own>(pairs, slot, static_cast<int>(blockIdx.y) * Own::kStretch, rows,
                          size + image * shape.tokens, sources, destinations, others,
                          merged + image * shape.keep() * width, total + image * shape.keep(), width, shape);
    }
}

template <typename T, int kVector, typename Policy>
cudaError_t run_pairs(const void* tokens, const float* size, const Part* parts, const int* sources,
                      const int* destinations, const int* others, void* merged, float* total, float* value,
                      std::int64_t* keep, std::int64_t* source, std::int64_t* destination, int stretches,
                      int width, MatchShape shape, cudaStream_t stream) {
    const long long across = ceil_div(width, Survivor<T, kVector, Policy::kVectors>::kStretch),
                    tiles = ceil_div(shape.keep(), Policy::kThreads / kWarp),
                    most = kMergeThreads / Policy::kThreads / (across * shape.batch),
                    turns = ceil_div(tiles, most > 1 ? most : 1);
    const dim3 grid(static_cast<unsigned>(ceil_div(tiles, turns)), static_cast<unsigned>(across),
                    static_cast<unsigned>(shape.batch));
    return launch(merge_pairs<T, kVector, Policy>, grid, Policy::kThreads, stream,
                  static_cast<const T*>(tokens), size, parts, sources, destinations, others,
                  static_cast<T*>(merged), total, value, keep, source, destination, stretches, width, shape);
}

}  // namespace combine

}  // namespace tokenrt
