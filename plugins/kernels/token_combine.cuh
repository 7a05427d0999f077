// TokenCombine: merge tokens into their survivors by size-weighted mean.
//
// Problem   tokens [B,N,C], size [B,N,1] float32, keep [B,K], source [B,R], destination [B,R] int64 -> merged
//           [B,K,C] in the type of the tokens, total [B,K,1] float32. Sums are taken in float32, by ascending
//           r, so that a result never depends on scheduling. A survivor whose size does not grow passes bit
//           for bit, and so does a channel in which all that is merged is equal. An index out of range counts
//           for nothing: no read beside a tensor.
// Division  one warp a survivor and a stretch of channels. The block stages destinations in shared memory;
//           each warp looks through them 32 at a time with a vote and adds the sources that go to its slot.
//           No atomics, no one-hot matrix, no list to build first.
// Bytes     B * (C * size * (N + K) + 8 (K + 2 R) + 4 (N + K)): each token is read once, each survivor
//           written once; the destinations come again for every 8 survivors, from cache.
// Bound     memory bandwidth; with thousands of sources the votes, R / 32 a survivor, cost about as much
//           again.
#pragma once

#include "combine.cuh"

namespace tokenrt {

namespace combine {

template <typename T, int kVector, typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    merge(const T* __restrict__ tokens, const float* __restrict__ size, const std::int64_t* __restrict__ keep,
          const std::int64_t* __restrict__ source, const std::int64_t* __restrict__ destination,
          T* __restrict__ merged, float* __restrict__ total, CombineShape shape) {
    merge_block<kVector, Policy>(tokens, size, keep, source, destination, merged, total, shape);
}

inline dim3 grid(const CombineShape& shape, int vector) {
    using Policy = CombinePolicy;
    return dim3(static_cast<unsigned>(ceil_div(shape.keep, Policy::kThreads / kWarp)),
                static_cast<unsigned>(ceil_div(shape.width, kWarp * Policy::kVectors * vector)),
                static_cast<unsigned>(shape.batch));
}

template <typename T, int kVector>
cudaError_t run(const void* tokens, const float* size, const std::int64_t* keep, const std::int64_t* source,
                const std::int64_t* destination, void* merged, float* total, CombineShape shape,
                cudaStream_t stream) {
    using Policy = CombinePolicy;
    return launch(merge<T, kVector, Policy>, grid(shape, kVector), Policy::kThreads, stream,
                  static_cast<const T*>(tokens), size, keep, source, destination, static_cast<T*>(merged),
                  total, shape);
}

}  // namespace combine

// tokens [B,N,C] of element type `type`, and the lists of TokenMatch -> merged [B,K,C], total [B,K,1].
inline cudaError_t token_combine(int type, const void* tokens, const float* size, const std::int64_t* keep,
                                 const std::int64_t* source, const std::int64_t* destination, void* merged,
                                 float* total, CombineShape shape, cudaStream_t stream) {
    if (!within_limits(shape) || !within(shape.remove, 0, shape.tokens)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad =
        shape.remove > 0 ? check_pointers(rows_of(type, tokens), size, keep, source, destination,
                                          rows_of(type, merged), total)
                         : check_pointers(rows_of(type, tokens), size, keep, rows_of(type, merged), total);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const auto run =
            in_vectors<T>(shape.width, tokens, merged) ? combine::run<T, 16 / sizeof(T)> : combine::run<T, 1>;
        return run(tokens, size, keep, source, destination, merged, total, shape, stream);
    });
}

}  // namespace tokenrt
