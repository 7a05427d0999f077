// TokenSelect: the positions of the K best of N tokens.
//
// Problem   score [B,N] -> index [B,K] int64. The first P tokens are protected: always kept, always first,
//           their scores never read. Order (score, then position) as in order.cuh; output by position or by
//           descending score.
// Division  one block an image. Rows up to kSortMost: the keys are sorted in shared memory (sort.cuh), which
//           gives descending score as it is; by position, the last key kept tells which tokens stay, and a
//           round of prefix sums numbers them. Longer rows: four rounds of a radix search, 8 bits each, find
//           the score of the last token kept and how many of its equals are; a last round numbers the kept
//           ones, so nothing is sorted and K has no limit. By score a second launch counts, for each kept
//           token, those in front of it.
// Launches  1; by score from more than kSortMost tokens 2.
// Bytes     B * (4 N + 8 K); longer rows are read 5 times, all but the first from cache. Bound latency: the
//           steps of the sort, or five passes of N / threads loads each; by score also K * K / threads
//           comparisons an image.
#pragma once

#include "select.cuh"
#include "sort.cuh"

namespace tokenrt {

struct SearchPolicy {
    static constexpr int kThreads = 512;
};

namespace select {

template <typename T, typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads)
    sorted(const T* __restrict__ score, std::int64_t* __restrict__ index, int tokens, int keep, int protect,
           int order) {
    __shared__ SortKey keys[Policy::kMost];
    const std::int64_t image = blockIdx.x;
    const T* row = score + image * tokens + protect;
    std::int64_t* out = index + image * keep;
    const int me = static_cast<int>(threadIdx.x), free = tokens - protect, wanted = keep - protect;
    SortKey held[Policy::kHeld];
    fill<Policy>(keys, held, free, [=](int i) { return sort_key(widened(row[i]), i); });
    sort<Policy>(keys, free);
    for (int i = me; i < protect; i += Policy::kThreads) {
        out[i] = i;
    }
    if (order == kByScore) {
        for (int i = me; i < wanted; i += Policy::kThreads) {
            out[protect + i] = protect + place_in(keys[i]);
        }
        return;
    }
    const SortKey last = keys[wanted - 1];
    Numbers running{0, 0};
#pragma unroll
    for (int turn = 0; turn < Policy::kHeld; ++turn) {
        const int i = turn * Policy::kThreads + me;
        if (turn * Policy::kThreads >= free) {
            break;
        }
        const bool stays = i < free && up_to(held[turn], last);
        const int before = number<Policy::kThreads>(stays, false, running).first;
        if (stays) {
            out[protect + before] = protect + i;
        }
    }
}

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

// Rows too long to sort.
template <typename T>
cudaError_t search(const T* score, std::int64_t* index, int* kept, int batch, int tokens, int keep,
                   int protect, int order, cudaStream_t stream) {
    constexpr int kThreads = SearchPolicy::kThreads;
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

template <typename T>
cudaError_t run(const T* score, std::int64_t* index, int* kept, int batch, int tokens, int keep, int protect,
                int order, cudaStream_t stream) {
    if (tokens > kSortMost) {
        return search(score, index, kept, batch, tokens, keep, protect, order, stream);
    }
    const bool longer = tokens - protect > kSortLong;
    const auto kernel = longer ? sorted<T, SortPolicy<true>> : sorted<T, SortPolicy<false>>;
    return launch(kernel, dim3(static_cast<unsigned>(batch)),
                  longer ? SortPolicy<true>::kThreads : SortPolicy<false>::kThreads, stream, score, index,
                  tokens, keep, protect, order);
}

}  // namespace select

inline std::size_t token_select_workspace(int batch, int keep, int order) {
    return order == kByScore ? sizeof(int) * static_cast<std::size_t>(batch) * static_cast<std::size_t>(keep)
                             : 0;
}

// score [B,N] of element type `type` -> index [B,K]. `workspace`: token_select_workspace bytes, may be null
// for none, and for no more than kSortMost tokens.
inline cudaError_t token_select(int type, const void* score, std::int64_t* index, void* workspace, int batch,
                                int tokens, int keep, int protect, int order, cudaStream_t stream) {
    if (!within(batch, 1, kMostBatch) || !within(tokens, 1, kMostTokens) || !within(protect, 0, keep - 1) ||
        !within(keep, 1, tokens) || !within(order, kByPosition, kByScore)) {
        return cudaErrorInvalidValue;
    }
    const bool counted = order == kByScore && tokens > kSortMost;
    const cudaError_t bad = counted ? check_pointers(rows_of(type, score), index, workspace)
                                    : check_pointers(rows_of(type, score), index);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        return select::run(static_cast<const T*>(score), index, static_cast<int*>(workspace), batch, tokens,
                           keep, protect, order, stream);
    });
}

}  // namespace tokenrt
