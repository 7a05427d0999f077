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
//           on one multiprocessor. Small images do both in one launch where there are clusters:
//           merge_image.cuh.
// Launches  1 where image_blocks() says so, else 2; from more than kSortMost sources 4: those of TokenMatch
//           and of TokenCombine.
// Bytes     those of both, without the lists read again; parts come again for every block, from cache.
// Bound     latency at batch 1: tiles of products, then a sort of the sources and one read and one write of a
//           row; memory bandwidth in large batches.
#pragma once

#include "merge_image.cuh"
#include "token_combine.cuh"
#include "token_match.cuh"

namespace tokenrt {

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
    // Metrics have the type of the tokens, or are float32 beside half ones: other pairs take two launches.
    const auto at_once = [=](auto* like, auto* metric_like) {
        return combine::run_image<std::remove_pointer_t<decltype(like)>,
                                  std::remove_pointer_t<decltype(metric_like)>>(
            tokens, size, metric, sources, destinations, others, merged, total, value, keep, source,
            destination, width, shape, stream);
    };
    state = with_type(type, [=](auto* like) {
        return metric_type == type     ? at_once(like, like)
               : metric_type == kFloat ? at_once(like, static_cast<float*>(nullptr))
                                       : cudaErrorNotSupported;
    });
    if (state == cudaSuccess) {
        return state;
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
