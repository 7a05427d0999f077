// TokenScore of many rows: maxima and sums of the rows of q . k, then sums of the columns, in tiles; no N x N
// matrix is written.
//
// Division  1. row_statistics: a block takes a tile of rows and a stretch of columns, by tiles (tile.cuh),
//           and keeps of each row the maximum and the sum of exponentials. 2. column_sums: a block takes a
//           tile of columns and a stretch of rows, joins what the stretches kept of them, in order, and adds
//           the tiles again down the columns. 3. many_mean: a thread a token adds up heads and stretches, in
//           order. Stretches are as short as it takes for kScoreFill blocks an image, a tile at the least;
//           the batch does not count, so that it does not change a result.
// Bytes     2 B H N D size (1 + N / tile), the repeats from cache; + 8 B H R stretches + 4 B H N stretches,
//           written and read.
// Bound     arithmetic, 4 B H R N D operations in fp32.
#pragma once

#include "score.cuh"
#include "tile.cuh"

namespace tokenrt {

constexpr int kScoreFill = 264;  // blocks: twice the multiprocessors of the largest GPU

namespace score {

using ManyPolicy = TilePolicy<64>;

// How one side of the tiles is divided: tiles of a stretch, and stretches.
struct Division {
    int tiles, stretches;
};

// For `all` tiles, where the other side and the heads already make so many blocks.
inline Division divided(long long all, long long blocks) {
    const long long wanted = ceil_div(kScoreFill, blocks), tiles = ceil_div(all, all < wanted ? all : wanted);
    return {static_cast<int>(tiles), static_cast<int>(ceil_div(all, tiles))};
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
                   float* __restrict__ statistics, Division division, ScoreShape shape) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const long long image = blockIdx.z;
    const int head = static_cast<int>(blockIdx.y),
              stretch = static_cast<int>(blockIdx.x) % division.stretches;
    const int first = static_cast<int>(blockIdx.x) / division.stretches * Policy::kTile;
    const int begin = stretch * division.tiles * Policy::kTile;
    const int end = min(begin + division.tiles * Policy::kTile, shape.tokens);
    float top[kEach], sum[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        top[i] = -INFINITY;
        sum[i] = 0;
    }
    for (int base = begin; base < end; base += Policy::kTile) {
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
            const long long at = line(shape, image, head, row) * division.stretches + stretch;
            statistics[2 * at] = top[i];
            statistics[2 * at + 1] = sum[i];
        }
    }
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    column_sums(const T* __restrict__ queries, const T* __restrict__ keys, const float* __restrict__ bias,
                const float* __restrict__ statistics, float* __restrict__ sums, int parts, Division division,
                ScoreShape shape) {
    __shared__ TileShared<T, Policy> shared;
    __shared__ float columns[Policy::kSide][Policy::kTile];
    __shared__ float tops[2][Policy::kTile],
        inverses[2][Policy::kTile];  // of a tile's rows, and of the next one's
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const long long image = blockIdx.z;
    const int head = static_cast<int>(blockIdx.y),
              stretch = static_cast<int>(blockIdx.x) % division.stretches;
    const int first = static_cast<int>(blockIdx.x) / division.stretches * Policy::kTile;
    const int begin = stretch * division.tiles * Policy::kTile;
    const int end = min(begin + division.tiles * Policy::kTile, shape.rows());
    float received[kEach] = {};
    int turn = 0;
    for (int base = begin; base < end; base += Policy::kTile, turn = 1 - turn) {
        const int mine = static_cast<int>(threadIdx.x);
        if (mine < Policy::kTile && base + mine < end) {
            const float* part = statistics + 2 * line(shape, image, head, base + mine) * parts;
            float top = part[0], sum = part[1];
            for (int i = 1; i < parts; ++i) {
                join(top, sum, part[2 * i], part[2 * i + 1]);
            }
            tops[turn][mine] = top;
            inverses[turn][mine] = 1.0f / sum;
        }
        float logit[kEach][kEach];
        tile_logits<T, Policy, kWhole>(shared, queries, keys, bias, shape, image, head, base, first, logit);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            const int row = kEach * y + i;
            if (base + row < end) {
                const float top = tops[turn][row], inverse = inverses[turn][row];
#pragma unroll
                for (int j = 0; j < kEach; ++j) {
                    received[j] += weight(logit[i][j], top) * inverse;
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
        sums[((image * shape.heads + head) * division.stretches + stretch) * shape.tokens + first + i] = sum;
    }
}

static __global__ void __launch_bounds__(kMeanThreads)
    many_mean(const float* __restrict__ sums, float* __restrict__ mean, int stretches, ScoreShape shape) {
    const long long image = blockIdx.y;
    const int token = static_cast<int>(blockIdx.x * kMeanThreads + threadIdx.x);
    if (token < shape.tokens) {
        float received = 0;
        for (int part = 0; part < shape.heads * stretches; ++part) {
            received += sums[(image * shape.heads * stretches + part) * shape.tokens + token];
        }
        mean[image * shape.tokens + token] =
            received / static_cast<float>(shape.heads) / static_cast<float>(shape.rows());
    }
}

// Floats of an image for this many tokens or fewer: stretches of columns only grow in number with the tokens,
// and kScoreFill bounds those of rows.
inline std::size_t many_floats(const ScoreShape& shape) {
    const long long row_tiles = ceil_div(shape.rows(), ManyPolicy::kTile);
    const long long column_tiles = ceil_div(shape.tokens, ManyPolicy::kTile);
    const long long parts = min(column_tiles, ceil_div(kScoreFill, row_tiles * shape.heads));
    const long long most = ManyPolicy::kTile * ceil_div(kScoreFill, shape.heads) + shape.tokens;
    const long long sums = min(shape.tokens * row_tiles, most);
    return static_cast<std::size_t>(shape.heads * (2 * shape.rows() * parts + sums));
}

template <typename T, bool kWhole>
cudaError_t run_many(const T* queries, const T* keys, const float* bias, float* mean, float* workspace,
                     ScoreShape shape, cudaStream_t stream) {
    using Policy = ManyPolicy;
    const long long row_tiles = ceil_div(shape.rows(), Policy::kTile);
    const long long column_tiles = ceil_div(shape.tokens, Policy::kTile);
    const Division columns = divided(column_tiles, row_tiles * shape.heads);
    const Division rows = divided(row_tiles, column_tiles * shape.heads);
    float* sums = workspace + 2 * line(shape, shape.batch, 0, 0) * columns.stretches;
    cudaError_t state = launch(row_statistics<T, Policy, kWhole>,
                               over(row_tiles * columns.stretches, 1, shape.heads, shape.batch),
                               Policy::kThreads, stream, queries, keys, bias, workspace, columns, shape);
    if (state != cudaSuccess) {
        return state;
    }
    state = launch(column_sums<T, Policy, kWhole>,
                   over(column_tiles * rows.stretches, 1, shape.heads, shape.batch), Policy::kThreads, stream,
                   queries, keys, bias, workspace, sums, columns.stretches, rows, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(many_mean, over(shape.tokens, kMeanThreads, shape.batch, 1), kMeanThreads, stream, sums,
                  mean, rows.stretches, shape);
}

}  // namespace score
}  // namespace tokenrt
