// TokenScore: the attention each token receives from some rows of queries, averaged over heads and rows.
//
// Problem   queries, keys [B,H,N,D], bias float32 broadcast to [B,H,R,N] -> score [B,N] float32: the mean
//           over heads and rows of softmax(scale * q . k + bias). No N x N matrix is written. A row whose
//           logits are all minus infinity, or hold a NaN, makes NaN, as softmax does.
// Division  few rows (up to kFewRows): 1. `few`: a block takes a stretch of keys of one head and reads it
//           once a row, eight lanes a key; it writes the R logits of each and, for the stretch, their maximum
//           and sum of exponentials. 2. `few_mean`: a block joins the stretches of every row once, then a
//           thread a token adds up heads and rows in order. many rows: 1. `row_statistics`: tiles of q . k
//           (tile.cuh), of which each row keeps its maximum and sum of exponentials. 2. `column_sums`: the
//           tiles again, now added down the columns. 3. `many_mean`: over heads.
// Bytes     few: B H (N + R) D size, the keys of all rows but the first from cache, + 8 B H R N for the
//           logits (written, read). many: 2 B H N D size (1 + N / tile), the repeats from cache; + 12 B H N.
// Bound     few: memory bandwidth, one pass over the keys. many: arithmetic, 4 B H R N D operations in fp32.
#pragma once

#include "tile.cuh"

namespace tokenrt {

struct ScoreShape {
    int batch, heads, tokens, width, first_row, end_row;
    float scale;
    long long bias[4];  // strides of the bias along image, head, row, token: 0 where it is broadcast
    __host__ __device__ int rows() const { return end_row - first_row; }
};

struct ScorePolicy {
    static constexpr int kThreads = 256;
    static constexpr int kBlocks = 2;     // a multiprocessor must hold: 128 registers a thread
    static constexpr int kLanes = 8;      // lanes that share a key: 128 bytes a load
    static constexpr int kStretch = 512;  // keys a block takes
};
constexpr int kFewRows = 4, kUsualWidth = 1024;

namespace score {

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
__device__ __forceinline__ long long line(const ScoreShape& shape, long long image, int head, int row) {
    return (image * shape.heads + head) * shape.rows() + row;
}

// kWidth: the most channels of a head, which bounds the shared memory of a block.
template <typename T, typename Policy, int kWidth, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    few(const T* __restrict__ queries, const T* __restrict__ keys, const float* __restrict__ bias,
        float* __restrict__ logits, float* __restrict__ parts, ScoreShape shape) {
    alignas(16) __shared__ float query[kWidth];
    __shared__ float tops[Policy::kThreads / kWarp], sums[Policy::kThreads / kWarp];
    constexpr int kVector = kWhole ? Pack<T>::kCount : 1, kStep = Policy::kLanes * kVector;
    constexpr int kKeys = Policy::kThreads / Policy::kLanes, kHeld = Policy::kStretch / Policy::kThreads;
    struct alignas(sizeof(T) * kVector) Vector {
        T item[kVector];
    };
    const long long image = blockIdx.z;
    const int head = static_cast<int>(blockIdx.y), me = static_cast<int>(threadIdx.x);
    const int first = static_cast<int>(blockIdx.x) * Policy::kStretch, part = me % Policy::kLanes;
    const T* key_rows = keys + (image * shape.heads + head) * shape.tokens * shape.width;
    for (int row = 0; row < shape.rows(); ++row) {
        const T* asking =
            queries + ((image * shape.heads + head) * shape.tokens + shape.first_row + row) * shape.width;
        const long long at = line(shape, image, head, row);
        for (int i = me; i < shape.width; i += Policy::kThreads) {
            query[i] = widened(asking[i]) * shape.scale;
        }
        __syncthreads();
        float held_logit[kHeld];  // the lanes of a key take turns in keeping its logit
        float top = -INFINITY;
#pragma unroll
        for (int turn = 0; turn < kHeld * Policy::kLanes; ++turn) {
            const int token = first + turn * kKeys + me / Policy::kLanes;
            const bool exists = token < shape.tokens;
            float product = 0;
            for (int i = part * kVector; exists && i < shape.width; i += kStep) {
                const Vector held = *reinterpret_cast<const Vector*>(
                    key_rows + static_cast<long long>(token) * shape.width + i);
                alignas(16) float factor[kVector];
                load_floats<kVector>(factor, query + i);
#pragma unroll
                for (int j = 0; j < kVector; ++j) {
                    product += factor[j] * widened(held.item[j]);
                }
            }
            product = group_sum<Policy::kLanes>(product);
            if (part == turn % Policy::kLanes) {
                float logit = -INFINITY;
                if (exists) {
                    logit = product + bias_at(bias, shape, image, head, row, token);
                    logits[at * shape.tokens + token] = logit;
                }
                held_logit[turn / Policy::kLanes] = logit;
                top = fmaxf(top, logit);
            }
        }
        top = group_max<kWarp>(top);
        if (lane() == 0) {
            tops[warp()] = top;
        }
        __syncthreads();
        for (unsigned i = 0; i < Policy::kThreads / kWarp; ++i) {
            top = fmaxf(top, tops[i]);
        }
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            sum += weight(held_logit[i], top);
        }
        sum = group_sum<kWarp>(sum);
        if (lane() == 0) {
            sums[warp()] = sum;
        }
        __syncthreads();
        if (me == 0) {
            for (unsigned i = 1; i < Policy::kThreads / kWarp; ++i) {
                sum += sums[i];
            }
            parts[2 * (at * gridDim.x + blockIdx.x)] = top;
            parts[2 * (at * gridDim.x + blockIdx.x) + 1] = sum;
        }
        __syncthreads();
    }
}

template <typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads)
    few_mean(const float* __restrict__ logits, const float* __restrict__ parts, float* __restrict__ mean,
             int stretches, ScoreShape shape) {
    __shared__ float tops[kMostHeads * kFewRows], sums[kMostHeads * kFewRows];  // of whole rows
    const long long image = blockIdx.y, first = line(shape, image, 0, 0);
    const int rows = shape.heads * shape.rows();
    for (int row = static_cast<int>(threadIdx.x); row < rows; row += Policy::kThreads) {
        const float* part = parts + 2 * (first + row) * stretches;
        float top = part[0], sum = part[1];
        for (int i = 1; i < stretches; ++i) {
            join(top, sum, part[2 * i], part[2 * i + 1]);
        }
        tops[row] = top;
        sums[row] = sum;
    }
    __syncthreads();
    const int token = static_cast<int>(blockIdx.x * Policy::kThreads + threadIdx.x);
    if (token < shape.tokens) {
        float received = 0;
        for (int row = 0; row < rows; ++row) {
            received += weight(logits[(first + row) * shape.tokens + token], tops[row]) / sums[row];
        }
        mean[image * shape.tokens + token] = received / static_cast<float>(rows);
    }
}

// The logits of one tile: rows from `row`, columns from `column`; `product` becomes logits, minus infinity
// outside.
template <typename T, typename Policy, bool kWhole>
__device__ __forceinline__ void tile_logits(TileShared<T, Policy>& shared, const T* queries, const T* keys,
                                            const float* bias, const ScoreShape& shape, long long image,
                                            int head, int row, int column,
                                            float (&product)[Policy::kEach][Policy::kEach]) {
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const long long start = (image * shape.heads + head) * shape.tokens;
    const int rows = shape.rows(), tokens = shape.tokens, width = shape.width;
    const T* asking = queries + (start + shape.first_row + row) * width;
    const T* asked = keys + (start + column) * width;
    const auto left = [=](int i) {
        return row + i < rows ? asking + static_cast<long long>(i) * width : nullptr;
    };
    const auto right = [=](int i) {
        return column + i < tokens ? asked + static_cast<long long>(i) * width : nullptr;
    };
    tile_product<T, Policy, kWhole, Tile::kDots>(shared, left, right, width, product);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int r = row + kEach * y + i, c = column + kEach * x + j;
            product[i][j] = r < rows && c < tokens
                                ? product[i][j] * shape.scale + bias_at(bias, shape, image, head, r, c)
                                : -INFINITY;
        }
    }
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    row_statistics(const T* __restrict__ queries, const T* __restrict__ keys, const float* __restrict__ bias,
                   float* __restrict__ statistics, ScoreShape shape) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const long long image = blockIdx.z;
    const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * Policy::kTile;
    float top[kEach], sum[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        top[i] = -INFINITY;
        sum[i] = 0;
    }
    for (int base = 0; base < shape.tokens; base += Policy::kTile) {
        float logit[kEach][kEach];
        tile_logits<T, Policy, kWhole>(shared, queries, keys, bias, shape, image, head, first, base, logit);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            float highest = -INFINITY, part = 0;
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                highest = fmaxf(highest, logit[i][j]);
            }
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                part += weight(logit[i][j], highest);
            }
            join(top[i], sum[i], highest, part);
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        for (int step = Policy::kSide / 2; step > 0; step /= 2) {
            const float other_top = __shfl_xor_sync(kEveryLane, top[i], step);
            const float other = __shfl_xor_sync(kEveryLane, sum[i], step);
            join(top[i], sum[i], other_top, other);
        }
        const int row = first + kEach * y + i;
        if (x == 0 && row < shape.rows()) {
            const long long at = line(shape, image, head, row);
            statistics[2 * at] = top[i];
            statistics[2 * at + 1] = sum[i];
        }
    }
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    column_sums(const T* __restrict__ queries, const T* __restrict__ keys, const float* __restrict__ bias,
                const float* __restrict__ statistics, float* __restrict__ sums, ScoreShape shape) {
    __shared__ TileShared<T, Policy> shared;
    __shared__ float columns[Policy::kSide][Policy::kTile];
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const long long image = blockIdx.z;
    const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x) * Policy::kTile;
    float received[kEach] = {};
    for (int base = 0; base < shape.rows(); base += Policy::kTile) {
        float logit[kEach][kEach];
        tile_logits<T, Policy, kWhole>(shared, queries, keys, bias, shape, image, head, base, first, logit);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            const int row = base + kEach * y + i;
            if (row < shape.rows()) {
                const long long at = line(shape, image, head, row);
                const float top = statistics[2 * at], sum = statistics[2 * at + 1];
#pragma unroll
                for (int j = 0; j < kEach; ++j) {
                    received[j] += weight(logit[i][j], top) / sum;
                }
            }
        }
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
        columns[y][kEach * x + j] = received[j];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < Policy::kTile && first + i < shape.tokens;
         i += Policy::kThreads) {
        float sum = 0;
        for (int part = 0; part < Policy::kSide; ++part) {
            sum += columns[part][i];
        }
        sums[(image * shape.heads + head) * shape.tokens + first + i] = sum;
    }
}

template <typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads)
    many_mean(const float* __restrict__ sums, float* __restrict__ mean, ScoreShape shape) {
    const long long image = blockIdx.y;
    const int token = static_cast<int>(blockIdx.x * Policy::kThreads + threadIdx.x);
    if (token < shape.tokens) {
        float received = 0;
        for (int head = 0; head < shape.heads; ++head) {
            received += sums[(image * shape.heads + head) * shape.tokens + token];
        }
        mean[image * shape.tokens + token] =
            received / static_cast<float>(shape.heads) / static_cast<float>(shape.rows());
    }
}

inline dim3 over(long long length, int tile, long long second, long long third) {
    return dim3(static_cast<unsigned>(ceil_div(length, tile)), static_cast<unsigned>(second),
                static_cast<unsigned>(third));
}

template <typename T, bool kWhole>
cudaError_t run_few(const T* queries, const T* keys, const float* bias, float* mean, float* workspace,
                    ScoreShape shape, cudaStream_t stream) {
    using Policy = ScorePolicy;
    const dim3 grid = over(shape.tokens, Policy::kStretch, shape.heads, shape.batch);
    float* parts = workspace + static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.heads) *
                                   static_cast<std::size_t>(shape.rows()) *
                                   static_cast<std::size_t>(shape.tokens);
    const cudaError_t state = launch(
        shape.width <= kUsualWidth ? few<T, Policy, kUsualWidth, kWhole> : few<T, Policy, kMostWidth, kWhole>,
        grid, Policy::kThreads, stream, queries, keys, bias, workspace, parts, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(few_mean<Policy>, over(shape.tokens, Policy::kThreads, shape.batch, 1), Policy::kThreads,
                  stream, workspace, parts, mean, static_cast<int>(grid.x), shape);
}

template <typename T, bool kWhole>
cudaError_t run_many(const T* queries, const T* keys, const float* bias, float* mean, float* workspace,
                     ScoreShape shape, cudaStream_t stream) {
    using Policy = TilePolicy<64>;
    float* sums = workspace + 2 * static_cast<std::size_t>(shape.batch) *
                                  static_cast<std::size_t>(shape.heads) *
                                  static_cast<std::size_t>(shape.rows());
    cudaError_t state =
        launch(row_statistics<T, Policy, kWhole>, over(shape.rows(), Policy::kTile, shape.heads, shape.batch),
               Policy::kThreads, stream, queries, keys, bias, workspace, shape);
    if (state != cudaSuccess) {
        return state;
    }
    state =
        launch(column_sums<T, Policy, kWhole>, over(shape.tokens, Policy::kTile, shape.heads, shape.batch),
               Policy::kThreads, stream, queries, keys, bias, workspace, sums, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(many_mean<ScorePolicy>, over(shape.tokens, ScorePolicy::kThreads, shape.batch, 1),
                  ScorePolicy::kThreads, stream, sums, mean, shape);
}

}  // namespace score

inline std::size_t token_score_workspace(ScoreShape shape) {
    const std::size_t images = static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.heads);
    const std::size_t rows = static_cast<std::size_t>(shape.rows()),
                      tokens = static_cast<std::size_t>(shape.tokens);
    const std::size_t stretches = static_cast<std::size_t>(ceil_div(shape.tokens, ScorePolicy::kStretch));
    return sizeof(float) * images * (rows <= kFewRows ? rows * (tokens + 2 * stretches) : 2 * rows + tokens);
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
