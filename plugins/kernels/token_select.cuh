// TokenSelect: the positions of the K best of N tokens.
//
// Problem   score [B,N] -> index [B,K] int64. The first P tokens are protected: always kept, always first,
//           their scores never read. Order (score, then position) as in order.cuh; output by position or by
//           descending score.
// Division  by position: one block an image. Four rounds of a radix search, 8 bits each, find the score of
//           the last token kept and how many of its equals are; a last round numbers the kept ones with
//           prefix sums, so nothing is sorted and K has no limit. By score: a second launch counts, for each
//           kept token, those in front of it.
// Bytes     5 readings of the scores, the first from memory and the others from cache, and one writing: B *
//           (4 N + 8 K). Bound latency: five passes of N / threads loads each; by score also K * K / threads
//           comparisons an image.
#pragma once

#include "select.cuh"

namespace tokenrt {

// Small blocks leave room for other images; large ones shorten the passes over long rows.
template <bool kLong>
struct SelectPolicy {
    static constexpr int kThreads = kLong ? 512 : 128;
};
constexpr int kSelectLong = 2048;

namespace select {

template <typename T, typename Index, int kThreads>
static __global__ void __launch_bounds__(kThreads)
    by_position(const T* __restrict__ score, Index* __restrict__ index, int tokens, int keep, int protect) {
    const std::int64_t image = blockIdx.x;
    keep_best<kThreads>(score + image * tokens, index + image * keep, tokens, keep, protect);
}

template <typename T, int kThreads>
static __global__ void __launch_bounds__(kThreads)
    by_score(const T* __restrict__ score, const int* __restrict__ kept, std::int64_t* __restrict__ index,
             int tokens, int keep, int protect) {
    const T* row = score + static_cast<std::int64_t>(blockIdx.y) * tokens;
    const int* positions = kept + static_cast<std::int64_t>(blockIdx.y) * keep;
    std::int64_t* out = index + static_cast<std::int64_t>(blockIdx.y) * keep;
    const int mine = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), free = keep - protect;
    const auto key = [=](int i) { return ordered(widened(row[positions[protect + i]])); };
    const int before = rank_among<kThreads>(free, mine, key);
    if (mine < free) {
        out[protect + before] = positions[protect + mine];
    }
    if (blockIdx.x == 0) {
        for (int i = static_cast<int>(threadIdx.x); i < protect; i += kThreads) {
            out[i] = i;
        }
    }
}

template <typename T, typename Policy>
cudaError_t run(const T* score, std::int64_t* index, int* kept, int batch, int tokens, int keep, int protect,
                int order, cudaStream_t stream) {
    constexpr int kThreads = Policy::kThreads;
    const dim3 rows(static_cast<unsigned>(batch));
    if (order == kByPosition) {
        return launch(by_position<T, std::int64_t, kThreads>, rows, kThreads, stream, score, index, tokens,
                      keep, protect);
    }
    const cudaError_t found =
        launch(by_position<T, int, kThreads>, rows, kThreads, stream, score, kept, tokens, keep, protect);
    if (found != cudaSuccess) {
        return found;
    }
    const dim3 grid(static_cast<unsigned>(ceil_div(keep - protect, kThreads)), static_cast<unsigned>(batch));
    return launch(by_score<T, kThreads>, grid, kThreads, stream, score, kept, index, tokens, keep, protect);
}

}  // namespace select

inline std::size_t token_select_workspace(int batch, int keep, int order) {
    return order == kByScore ? sizeof(int) * static_cast<std::size_t>(batch) * static_cast<std::size_t>(keep)
                             : 0;
}

// score [B,N] of element type `type` -> index [B,K]. `workspace`: token_select_workspace bytes, may be null
// for none.
inline cudaError_t token_select(int type, const void* score, std::int64_t* index, void* workspace, int batch,
                                int tokens, int keep, int protect, int order, cudaStream_t stream) {
    if (!within(batch, 1, kMostBatch) || !within(tokens, 1, kMostTokens) || !within(protect, 0, keep - 1) ||
        !within(keep, 1, tokens) || !within(order, kByPosition, kByScore)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad =
        order == kByScore ? check_pointers(score, index, workspace) : check_pointers(score, index);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const auto run =
            tokens > kSelectLong ? select::run<T, SelectPolicy<true>> : select::run<T, SelectPolicy<false>>;
        return run(static_cast<const T*>(score), index, static_cast<int*>(workspace), batch, tokens, keep,
                   protect, order, stream);
    });
}

}  // namespace tokenrt
