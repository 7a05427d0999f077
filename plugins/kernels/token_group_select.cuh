// TokenGroupSelect: the positions of the best tokens of each group, as many as the group's quota.
//
// Problem   score [B,N], lengths [G] and quotas [G] int32 of G consecutive groups that follow the P protected
//           tokens -> index [B,K] int64, ascending; K = P + the sum of the quotas. Order (score, then
//           position) as in order.cuh.
// Division  one block a group of an image: TokenSelect's radix search on the group's stretch of the scores.
//           Each block adds up the lengths and quotas before its own; what would leave the row is cut off.
// Bytes     B * (4 N + 8 K) from memory, four more readings of the scores from cache. Bound latency.
#pragma once

#include "token_select.cuh"

namespace tokenrt {

struct GroupShape {
    int batch, tokens, keep, protect, groups;
};

constexpr int kMostGroups = 1024;

struct GroupPolicy {
    static constexpr int kThreads = 128;
};

namespace select {

template <typename T, int kThreads>
static __global__ void __launch_bounds__(kThreads)
    by_group(const T* __restrict__ score, const int* __restrict__ lengths, const int* __restrict__ quotas,
             std::int64_t* __restrict__ index, GroupShape shape) {
    const int group = static_cast<int>(blockIdx.x);
    const std::int64_t image = blockIdx.y;
    std::int64_t* out = index + image * shape.keep;
    if (group == 0) {
        for (int i = static_cast<int>(threadIdx.x); i < shape.protect; i += kThreads) {
            out[i] = i;
        }
    }
    int start = shape.protect, slot = shape.protect;
    for (int earlier = 0; earlier < group; ++earlier) {
        start += lengths[earlier];
        slot += quotas[earlier];
    }
    const int length = min(lengths[group], shape.tokens - start);
    const int quota = min(min(quotas[group], length), shape.keep - slot);
    if (quota > 0 && start >= 0 && slot >= 0) {
        keep_best<kThreads>(score + image * shape.tokens + start, out + slot, length, quota, 0, start);
    }
}

}  // namespace select

// score [B,N] of element type `type`, lengths and quotas [G] in device memory -> index [B,K].
inline cudaError_t token_group_select(int type, const void* score, const int* lengths, const int* quotas,
                                      std::int64_t* index, GroupShape shape, cudaStream_t stream) {
    if (!within(shape.batch, 1, kMostBatch) || !within(shape.tokens, 1, kMostTokens) ||
        !within(shape.keep, 1, shape.tokens) || !within(shape.protect, 0, shape.keep) ||
        !within(shape.groups, 1, kMostGroups)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad = check_pointers(rows_of(type, score), lengths, quotas, index);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        constexpr int kThreads = GroupPolicy::kThreads;
        const dim3 grid(static_cast<unsigned>(shape.groups), static_cast<unsigned>(shape.batch));
        return launch(select::by_group<T, kThreads>, grid, kThreads, stream, static_cast<const T*>(score),
                      lengths, quotas, index, shape);
    });
}

}  // namespace tokenrt
