// What the two ways of scoring by attention share: the shape, exponentials against a running maximum, the
// bias.
#pragma once

#include "common.cuh"

namespace tokenrt {

struct ScoreShape {
    int batch, heads, tokens, width, first_row, end_row;
    float scale;
    long long bias[4];  // strides of the bias along image, head, row, token: 0 where it is broadcast
    __host__ __device__ int rows() const { return end_row - first_row; }
};

namespace score {

constexpr int kMeanThreads = 64;  // tokens of a block that adds up heads: few, to fill a GPU

// exp(logit - top), where a row that is minus infinity so far has no top yet.
__device__ __forceinline__ float weight(float logit, float top) {
    return expf(logit - (top == -INFINITY ? 0.0f : top));
}

// Adds the sum of exponentials `other`, taken against `other_top`, to `sum`, taken against `top`.
__device__ __forceinline__ void join(float& top, float& sum, float other_top, float other) {
    const float highest = fmaxf(top, other_top);
    const float own = top == -INFINITY ? sum : sum * weight(top, highest);
    const float more = other_top == -INFINITY ? other : other * weight(other_top, highest);
    top = highest;
    sum = own + more;
}

__device__ __forceinline__ float bias_at(const float* bias, const ScoreShape& shape, long long image,
                                         int head, int row, int token) {
    return bias[image * shape.bias[0] + head * shape.bias[1] + row * shape.bias[2] + token * shape.bias[3]];
}

// Where the numbers of (image, head, row) start, in units of rows.
__host__ __device__ __forceinline__ long long line(const ScoreShape& shape, long long image, int head,
                                                   int row) {
    return (image * shape.heads + head) * shape.rows() + row;
}

inline dim3 over(long long length, int tile, long long second, long long third) {
    return dim3(static_cast<unsigned>(ceil_div(length, tile)), static_cast<unsigned>(second),
                static_cast<unsigned>(third));
}

}  // namespace score
}  // namespace tokenrt
