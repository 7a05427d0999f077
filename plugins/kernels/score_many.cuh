// TokenScore of many rows: maxima and sums of the rows of q . k, then sums of the columns, in tiles; no N x N
// matrix is written.
//
// Division  1. row_statistics: a block takes a tile of rows and a stretch of columns, which stream past it
//           (stream.cuh), and keeps of each row the maximum and the sum of exponentials. 2. column_sums: a
//           block takes a tile of columns and a stretch of rows, joins what the stretches kept of them, in
//           order, and adds the tiles again down the columns; the block that is the last of a tile, of all
//           heads and stretches, adds these up, in order. Stretches are as short as it takes for kScoreFill
//           blocks an image, a tile at the least; the batch does not count, so that it does not change a
//           result, nor does it which block is the last. Halves are multiplied on tensor cores, floats not:
//           11 bits of them are too few for a score. A column's sum needs the sums of all rows first, so two
//           passes over q . k remain, or a matrix of B H R N logits, written and read: more than what the
//           second pass takes on tensor cores.
// Launches  2. The first clears the counters of the second.
// Bytes     2 B H N D size (1 + N / tile), the repeats from cache; + 8 B H R stretches + 4 B H N stretches,
//           written and read.
// Bound     arithmetic, 4 B H R N D operations, in fp32 or on tensor cores, and two exponentials a logit.
#pragma once

#include "score.cuh"
#include "stream.cuh"

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

// One head of one image: its rows of queries, from the first that is read on, and its logits.
template <typename T>
struct Head {
    const T *queries, *keys;
    const float* bias;
    int rows, tokens, width;
    unsigned row_bytes,
        token_bytes;  // strides of the bias: 32 bits hold its offsets, as token_score() checks
    float scale;

    __device__ Head(const T* all_queries, const T* all_keys, const float* all_bias, const ScoreShape& shape)
        : rows(shape.rows()),
          tokens(shape.tokens),
          width(shape.width),
          row_bytes(static_cast<unsigned>(shape.bias[2] * sizeof(float))),
          token_bytes(static_cast<unsigned>(shape.bias[3] * sizeof(float))),
          scale(shape.scale) {
        const long long image = blockIdx.z, head = blockIdx.y;
        const long long start = (image * shape.heads + head) * shape.tokens;
        queries = all_queries + (start + shape.first_row) * shape.width;
        keys = all_keys + start * shape.width;
        bias = all_bias + image * shape.bias[0] + head * shape.bias[1];
    }
    __device__ __forceinline__ const T* query(int row) const {
        return row < rows ? queries + static_cast<long long>(row) * width : nullptr;
    }
    __device__ __forceinline__ const T* key(int token) const {
        return token < tokens ? keys + static_cast<long long>(token) * width : nullptr;
    }
    // Of a row or a token beyond the end, what the last one's bias makes of it.
    __device__ __forceinline__ float logit(float product, int row, int token) const {
        const unsigned at = static_cast<unsigned>(min(row, rows - 1)) * row_bytes +
                            static_cast<unsigned>(min(token, tokens - 1)) * token_bytes;
        return product * scale + *reinterpret_cast<const float*>(reinterpret_cast<const char*>(bias) + at);
    }
};

// The rows of a block, and the others that stream past it: tiles of a stretch.
template <typename Policy>
struct Share {
    int stretch, first, begin, tiles;

    __device__ Share(const Division& division, int others) {
        stretch = static_cast<int>(blockIdx.x) % division.stretches;
        first = static_cast<int>(blockIdx.x) / division.stretches * Policy::kTile;
        begin = stretch * division.tiles * Policy::kTile;
        tiles = min(division.tiles, (others - begin + Policy::kTile - 1) / Policy::kTile);
    }
};

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    row_statistics(const T* __restrict__ queries, const T* __restrict__ keys, const float* __restrict__ bias,
                   float* __restrict__ statistics, unsigned* __restrict__ arrived, Division division,
                   ScoreShape shape) {
    using Tiles = TilesFor<T, Policy, kWhole>;
    __shared__ typename Tiles::Shared shared;
    __shared__ float tops[Tiles::kSides][Policy::kTile], sums[Tiles::kSides][Policy::kTile];
    const int me = static_cast<int>(threadIdx.x);
    const Head<T> head(queries, keys, bias, shape);
    const Share<Policy> part(division, shape.tokens);
    if (blockIdx.x == 0 && blockIdx.y == 0) {
        const int tiles = (shape.tokens + Policy::kTile - 1) / Policy::kTile;
        for (int i = me; i < tiles; i += Policy::kThreads) {
            arrived[blockIdx.z * tiles + i] = 0;
        }
    }
    float top[Tiles::kRows], sum[Tiles::kRows];
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
        top[i] = -INFINITY;
        sum[i] = 0;
    }
    Tiles::template stream<false>(
        shared, [=](int i) { return head.query(part.first + i); },
        [=](int tile, int i) { return head.key(part.begin + tile * Policy::kTile + i); }, part.tiles,
        shape.width, [](int) {},
        [&](int tile, const typename Tiles::Products& products) {
            const int base = part.begin + tile * Policy::kTile;
#pragma unroll
            for (int i = 0; i < Tiles::kRows; ++i) {
                float logits[Tiles::kColumns], highest = top[i], more = 0;
#pragma unroll
                for (int j = 0; j < Tiles::kColumns; ++j) {
                    const int token = base + Tiles::column(j);
                    const float logit = head.logit(products[i][j], part.first + Tiles::row(i), token);
                    logits[j] = token < head.tokens ? logit : -INFINITY;
                    highest = fmaxf(highest, logits[j]);
                }
#pragma unroll
                for (int j = 0; j < Tiles::kColumns; ++j) {
                    more += weight(logits[j], highest);
                }
                sum[i] = sum[i] * weight(top[i], highest) + more;
                top[i] = highest;
            }
        });
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
        for (int step = Tiles::kLanes / 2; step > 0; step /= 2) {
            const float other_top = __shfl_xor_sync(kEveryLane, top[i], step);
            const float other = __shfl_xor_sync(kEveryLane, sum[i], step);
            join(top[i], sum[i], other_top, other);
        }
        if (static_cast<int>(lane()) % Tiles::kLanes == 0) {
            tops[Tiles::side()][Tiles::row(i)] = top[i];
            sums[Tiles::side()][Tiles::row(i)] = sum[i];
        }
    }
    __syncthreads();
    if (me < Policy::kTile && part.first + me < shape.rows()) {
        for (int side = 1; side < Tiles::kSides; ++side) {
            join(tops[0][me], sums[0][me], tops[side][me], sums[side][me]);
        }
        const long long row = line(shape, blockIdx.z, static_cast<int>(blockIdx.y), part.first + me);
        float* const own = statistics + 2 * (row * division.stretches + part.stretch);
        own[0] = tops[0][me];
        own[1] = sums[0][me];
    }
}

// The maxima, and what the sums are to be multiplied with, of the rows of as many tiles as are on their way.
template <typename Tiles>
struct RowStatistics {
    float top[Tiles::kStages][Tiles::kTile], inverse[Tiles::kStages][Tiles::kTile];
};

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    column_sums(const T* __restrict__ queries, const T* __restrict__ keys, const float* __restrict__ bias,
                const float* __restrict__ statistics, float* __restrict__ sums, float* __restrict__ mean,
                unsigned* __restrict__ arrived, int parts, Division division, ScoreShape shape) {
    using Tiles = TilesFor<T, Policy, kWhole>;
    __shared__ typename Tiles::Shared shared;
    __shared__ RowStatistics<Tiles> rows;
    __shared__ float columns[Tiles::kSides][Policy::kTile];
    __shared__ bool last;
    const long long image = blockIdx.z;
    const int me = static_cast<int>(threadIdx.x), at = static_cast<int>(blockIdx.y);
    const Head<T> head(queries, keys, bias, shape);
    const Share<Policy> part(division, shape.rows());
    float received[Tiles::kRows] = {};
    Tiles::template stream<false>(
        shared, [=](int i) { return head.key(part.first + i); },
        [=](int tile, int i) { return head.query(part.begin + tile * Policy::kTile + i); }, part.tiles,
        shape.width,
        [&](int tile) {
            const int row = part.begin + tile * Policy::kTile + me;
            if (me < Policy::kTile && row < shape.rows()) {
                const float* own = statistics + 2 * line(shape, image, at, row) * parts;
                float top = own[0], sum = own[1];
                for (int i = 1; i < parts; ++i) {
                    join(top, sum, own[2 * i], own[2 * i + 1]);
                }
                rows.top[tile % Tiles::kStages][me] = top;
                rows.inverse[tile % Tiles::kStages][me] = 1.0f / sum;
            }
        },
        [&](int tile, const typename Tiles::Products& products) {
            const int base = part.begin + tile * Policy::kTile, stage = tile % Tiles::kStages;
#pragma unroll
            for (int j = 0; j < Tiles::kColumns; ++j) {
                const int row = base + Tiles::column(j);
                if (row < shape.rows()) {
                    const float top = rows.top[stage][Tiles::column(j)];
                    const float inverse = rows.inverse[stage][Tiles::column(j)];
#pragma unroll
                    for (int i = 0; i < Tiles::kRows; ++i) {
                        const float logit = head.logit(products[i][j], row, part.first + Tiles::row(i));
                        received[i] += weight(logit, top) * inverse;
                    }
                }
            }
        });
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
        received[i] = group_sum<Tiles::kLanes>(received[i]);
        if (static_cast<int>(lane()) % Tiles::kLanes == 0) {
            columns[Tiles::side()][Tiles::row(i)] = received[i];
        }
    }
    __syncthreads();
    const int token = part.first + me, all = shape.heads * division.stretches;
    const bool exists = me < Policy::kTile && token < shape.tokens;
    float* const own = sums + image * all * shape.tokens + token;
    if (exists) {
        float sum = columns[0][me];
        for (int side = 1; side < Tiles::kSides; ++side) {
            sum += columns[side][me];
        }
        own[static_cast<long long>(at * division.stretches + part.stretch) * shape.tokens] = sum;
    }
    __threadfence();
    __syncthreads();
    if (me == 0) {
        const long long tiles = (shape.tokens + Policy::kTile - 1) / Policy::kTile;
        unsigned* const counter = arrived + image * tiles + part.first / Policy::kTile;
        last = atomicAdd(counter, 1u) + 1 == static_cast<unsigned>(all);
    }
    __syncthreads();
    if (last && exists) {
        __threadfence();
        float sum = 0;
        for (int i = 0; i < all; ++i) {
            sum += __ldcg(own + static_cast<long long>(i) * shape.tokens);
        }
        mean[image * shape.tokens + token] =
            sum / static_cast<float>(shape.heads) / static_cast<float>(shape.rows());
    }
}

// Floats of an image for this many tokens or fewer: stretches of columns only grow in number with the tokens,
// and kScoreFill bounds those of rows. A counter
// is as large as a float.
inline std::size_t many_floats(const ScoreShape& shape) {
    const long long row_tiles = ceil_div(shape.rows(), ManyPolicy::kTile);
    const long long column_tiles = ceil_div(shape.tokens, ManyPolicy::kTile);
    const long long parts = min(column_tiles, ceil_div(kScoreFill, row_tiles * shape.heads));
    const long long most = ManyPolicy::kTile * ceil_div(kScoreFill, shape.heads) + shape.tokens;
    const long long sums = min(shape.tokens * row_tiles, most);
    return static_cast<std::size_t>(shape.heads * (2 * shape.rows() * parts + sums) + column_tiles);
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
    const long long parts = 1ll * shape.batch * shape.heads * rows.stretches * shape.tokens;
    unsigned* arrived = reinterpret_cast<unsigned*>(sums + parts);
    const cudaError_t state = launch(
        row_statistics<T, Policy, kWhole>, over(row_tiles * columns.stretches, 1, shape.heads, shape.batch),
        Policy::kThreads, stream, queries, keys, bias, workspace, arrived, columns, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(column_sums<T, Policy, kWhole>,
                  over(column_tiles * rows.stretches, 1, shape.heads, shape.batch), Policy::kThreads, stream,
                  queries, keys, bias, workspace, sums, mean, arrived, columns.stretches, rows, shape);
}

}  // namespace score
}  // namespace tokenrt
