// TokenMerge: TokenMatch and TokenCombine in one go.
//
// Problem   tokens [B,N,C], size [B,N,1] float32, metric [B,N,D] and the three lists of TokenMatch -> merged
//           [B,K,C] in the type of the tokens, total [B,K,1] float32, and value, keep, source and destination
//           as of TokenMatch; all to the bit what the two operators give one after the other.
// Division  1. match::similarity, as TokenMatch. 2. merge: every block ranks the sources of its image again
//           (pairs.cuh), so that it knows in shared memory who stays where and who goes to which slot, and
//           merges slots as TokenCombine does, a warp a slot and a stretch of channels; only slots of
//           destinations look for what comes. One block an image writes the lists. Blocks are not more than
//           hold kMergeThreads, all images together, and take several turns of slots instead: few rank twice
//           on one multiprocessor.
// Launches  2; from more than kSortMost sources those of TokenMatch and of TokenCombine, 4.
// Bytes     those of both, without the lists read again; parts come again for every block, from cache.
// Bound     latency at batch 1: tiles of products, then a sort of the sources and one read and one write of a
//           row; memory bandwidth in large batches.
#pragma once

#include "token_combine.cuh"
#include "token_match.cuh"

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
    pairs.rank(parts + image * stretches * shape.sources, stretches, shape, [=](int i, float best) {
        if (tells) {
            values[i] = best;
        }
    });
    if (tells) {
        pairs.write(sources, destinations, others, keep + image * shape.keep(), source + image * shape.remove,
                    destination + image * shape.remove, shape);
    }
    const T* rows = tokens + image * shape.tokens * width;
    const int receiving = shape.keep() - shape.destinations;
    for (int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(warp()); slot < shape.keep();
         slot += static_cast<int>(gridDim.x) * kWarps) {
        const std::int64_t row = image * shape.keep() + slot;
        const float mass = merge_slot<Own>(
            rows, size + image * shape.tokens, pairs.kept(slot, sources, destinations, others, shape), width,
            static_cast<int>(blockIdx.y) * Own::kStretch, slot < receiving ? 0 : shape.remove,
            [&](int r) { return pairs.slot(r, shape) == slot; },
            [&](int r) { return pairs.source(r, sources); }, merged + row * width);
        if (blockIdx.y == 0 && lane() == 0) {
            total[row] = mass;
        }
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

inline std::size_t token_merge_workspace(int batch, int sources, int destinations) {
    return token_match_workspace(batch, sources, destinations);
}

// tokens of element type `type`, metric of `metric_type`; shape.width: D, width: C. The rest as token_match
// and token_combine.
inline cudaError_t token_merge(int type, const void* tokens, const float* size, int metric_type,
                               const void* metric, const int* sources, const int* destinations,
                               const int* others, void* merged, float* total, float* value,
                               std::int64_t* keep, std::int64_t* source, std::int64_t* destination,
                               void* workspace, int width, MatchShape shape, cudaStream_t stream) {
    const CombineShape joined{shape.batch, shape.tokens, width, shape.keep(), shape.remove};
    if (!match::takes(shape) || !within_limits(joined)) {
        return cudaErrorInvalidValue;
    }
    for (const int each : {type, metric_type}) {
        if (const cudaError_t known = with_type(each, [](auto*) { return cudaSuccess; });
            known != cudaSuccess) {
            return known;
        }
    }
    cudaError_t state =
        check_pointers(rows_of(type, tokens), size, rows_of(metric_type, metric), sources, destinations,
                       rows_of(type, merged), total, value, keep, source, destination, workspace);
    if (state == cudaSuccess && shape.others > 0) {
        state = check_pointers(others);
    }
    if (state != cudaSuccess) {
        return state;
    }
    if (shape.sources > kSortMost) {
        state = token_match(metric_type, metric, sources, destinations, others, value, keep, source,
                            destination, workspace, shape, stream);
        return state != cudaSuccess ? state
                                    : token_combine(type, tokens, size, keep, source, destination, merged,
                                                    total, joined, stream);
    }
    int stretches = 0;
    Part* parts = static_cast<Part*>(workspace);
    state = match::compare_all(metric_type, metric, sources, destinations, parts, stretches, shape, stream);
    if (state != cudaSuccess) {
        return state;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        constexpr int kVector = 16 / sizeof(T);
        using Short = MergePolicy<256>;
        using Middle = MergePolicy<1024>;
        using Long = MergePolicy<kSortMost>;
        const bool whole = in_vectors<T>(width, tokens, merged);
        const auto run =
            shape.sources <= Short::kMost
                ? (whole ? combine::run_pairs<T, kVector, Short> : combine::run_pairs<T, 1, Short>)
            : shape.sources <= Middle::kMost
                ? (whole ? combine::run_pairs<T, kVector, Middle> : combine::run_pairs<T, 1, Middle>)
                : (whole ? combine::run_pairs<T, kVector, Long> : combine::run_pairs<T, 1, Long>);
        return run(tokens, size, parts, sources, destinations, others, merged, total, value, keep, source,
                   destination, stretches, width, shape, stream);
    });
}

}  // namespace tokenrt
