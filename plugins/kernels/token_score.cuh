// TokenScore: the attention each token receives from some rows of queries, averaged over heads and rows.
//
// Problem   queries, keys [B,H,N,D], bias float32 broadcast to [B,H,R,N] -> score [B,N] float32: the mean
//           over heads and rows of softmax(scale * q . k + bias). No N x N matrix is written. A row whose
//           logits are all minus infinity, or hold a NaN, makes NaN, as softmax does.
// Division  up to kFewRows rows: score_few.cuh; more: score_many.cuh. 2 launches each.
#pragma once

#include "score_few.cuh"
#include "score_many.cuh"

namespace tokenrt {

inline std::size_t token_score_workspace(ScoreShape shape) {
    const std::size_t heads = static_cast<std::size_t>(shape.heads);
    const std::size_t image =
        shape.rows() <= kFewRows ? heads * score::few_floats(shape) : score::many_floats(shape);
    return sizeof(float) * static_cast<std::size_t>(shape.batch) * image;
}

// queries, keys [B,H,N,D] of element type `type`, bias float32 with the strides of `shape` -> mean [B,N].
inline cudaError_t token_score(int type, const void* queries, const void* keys, const float* bias,
                               float* mean, void* workspace, ScoreShape shape, cudaStream_t stream) {
    if (!within(shape.batch, 1, kMostBatch) || !within(shape.heads, 1, kMostHeads) ||
        !within(shape.tokens, 1, kMostTokens) || !within(shape.width, 1, kMostWidth) ||
        !countable(shape.tokens, shape.width) || !within(shape.first_row, 0, shape.tokens - 1) ||
        !within(shape.end_row, shape.first_row + 1, shape.tokens)) {
        return cudaErrorInvalidValue;
    }
    const long long last = (shape.rows() - 1) * shape.bias[2] + (shape.tokens - 1) * shape.bias[3];
    if (shape.bias[2] < 0 || shape.bias[3] < 0 || last > kMostElements / 2) {  // bytes of it in 32 bits
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad =
        check_pointers(rows_of(type, queries), rows_of(type, keys), bias, mean, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, queries, keys), is_few = shape.rows() <= kFewRows;
        const auto run = is_few  ? whole ? score::run_few<T, true> : score::run_few<T, false>
                         : whole ? score::run_many<T, true>
                                 : score::run_many<T, false>;
        return run(static_cast<const T*>(queries), static_cast<const T*>(keys), bias, mean,
                   static_cast<float*>(workspace), shape, stream);
    });
}

}  // namespace tokenrt
