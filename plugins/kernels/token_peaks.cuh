// TokenPeaks: K tokens that are dense and far from denser ones, and the nearest of them for each (DPC-KNN).
//
// Problem   metric [B,N,D] -> center [B,K] int64 by descending score; assign [B,N] int64. Density is -m, m
//           the mean squared distance to the k nearest tokens (itself included); the score is half the
//           logarithm of the squared distance to the nearest denser token, minus m. Of equally dense tokens
//           the first is the denser; the densest gets the largest distance there is. A distance that is
//           infinite or NaN counts as 1e15. No N x N matrix is written.
// Division  up to gram::kMost tokens: 1. distances::between: those of all pairs, by many blocks. 2.
//           density_by_rows, 3. gaps_by_rows: a warp a row of them, for the k least and for the nearest
//           denser token. 4. rate: one block an image. 5. the K best scores, by TokenSelect's kernel. 6.
//           assign_by_rows: a warp a token. More tokens, without an N x N matrix: 1. density: tiles of all
//           pairs (tile.cuh); two threads a row keep the k least distances of every other column in a sorted
//           list in shared memory, so k has a limit. 2. gaps: the tiles again. 3. rate. 4. the K best
//           scores. 5. nearest::center and nearest::settle: tiles of tokens and centres. 6. own: a centre
//           belongs to itself.
// Bytes     B * (N D size (1 + N / tile) + 4 N^2 written and 3 times read + 24 N + 16 K), the repeats from
//           cache; without the matrix twice the repeats.
// Bound     arithmetic: 3 B N^2 D operations (differences, not products: equal tokens are at 0); without the
//           matrix twice that, and 3 B N K D for the last tiles.
#pragma once

#include "nearest.cuh"
#include "peaks_rows.cuh"
#include "token_select.cuh"

namespace tokenrt {

constexpr int kRateThreads = 256;

namespace peaks {

using Policy = TilePolicy<32>;

// Where a row of a tile of distances keeps a column: neither the 32 lanes that store what they hold of 4 rows
// and 8 fours of columns, nor the 32 that read one column, then wait for the same bank.
__host__ __device__ constexpr int placed(int row, int column) {
    static_assert(Policy::kTile == 32 && Policy::kEach == 4,
                  "the low bits of a row and its fours change places");
    return column ^ (row >> 2 & 3) ^ (row & 3) << 2 ^ (row & 16);
}

// kMost: the largest k; short lists leave room for more blocks.
template <typename T, int kMost, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    density(const T* __restrict__ metric, float* __restrict__ workspace, PeaksShape shape) {
    constexpr int kEach = Policy::kEach, kTile = Policy::kTile, kThreads = Policy::kThreads;
    constexpr int kLists = kThreads / kTile;  // threads, and lists, a row has
    __shared__ TileShared<T, Policy> shared;
    __shared__ float apart[kTile][kTile];
    __shared__ float lists[kMost][kThreads];
    const int me = static_cast<int>(threadIdx.x), x = me % Policy::kSide, y = me / Policy::kSide;
    const std::int64_t image = blockIdx.y;
    const int first = static_cast<int>(blockIdx.x) * kTile, wanted = shape.neighbours;
    const T* rows = metric + image * shape.tokens * shape.width;
    for (int i = 0; i < wanted; ++i) {
        lists[i][me] = INFINITY;
    }
    for (int base = 0; base < shape.tokens; base += kTile) {
        float square[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDistances>(
            shared, [=](int i) { return row_of(rows, first + i, shape.tokens, shape.width); },
            [=](int i) { return row_of(rows, base + i, shape.tokens, shape.width); }, shape.width, square);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                const int row = kEach * y + i;
                apart[row][placed(row, kEach * x + j)] = measured(square[i][j]);
            }
        }
        __syncthreads();
        const int columns = min(kTile, shape.tokens - base);
        for (int column = me / kTile; column < columns; column += kLists) {
            insert(&lists[0][me], wanted, kThreads, apart[me % kTile][placed(me % kTile, column)]);
        }
    }
    __syncthreads();
    const int row = first + me;
    if (me < kTile && row < shape.tokens) {  // the k least of both lists, in ascending order
        float sum = 0;
        int next[kLists] = {};
        for (int i = 0; i < wanted; ++i) {
            const float one = lists[next[0]][me], other = lists[next[1]][me + kTile];
            const bool is_one = one <= other;
            sum += is_one ? one : other;
            next[0] += is_one;
            next[1] += !is_one;
        }
        held_by(workspace, image, shape.tokens).sparse[row] = sum / static_cast<float>(wanted);
    }
}

template <typename T, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    gaps(const T* __restrict__ metric, float* __restrict__ workspace, PeaksShape shape) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const std::int64_t image = blockIdx.y;
    const int first = static_cast<int>(blockIdx.x) * Policy::kTile;
    const T* rows = metric + image * shape.tokens * shape.width;
    const Held held = held_by(workspace, image, shape.tokens);
    float own[kEach], gap[kEach], far[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int row = first + kEach * y + i;
        own[i] = row < shape.tokens ? held.sparse[row] : 0;
        gap[i] = INFINITY;
        far[i] = 0;
    }
    for (int base = 0; base < shape.tokens; base += Policy::kTile) {
        float square[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDistances>(
            shared, [=](int i) { return row_of(rows, first + i, shape.tokens, shape.width); },
            [=](int i) { return row_of(rows, base + i, shape.tokens, shape.width); }, shape.width, square);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int column = base + kEach * x + j;
            const float sparse = column < shape.tokens ? held.sparse[column] : INFINITY;
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const float distance = measured(square[i][j]);
                const bool denser = sparse < own[i] || (sparse == own[i] && column < first + kEach * y + i);
                gap[i] = denser ? fminf(gap[i], distance) : gap[i];
                far[i] = column < shape.tokens ? fmaxf(far[i], distance) : far[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        gap[i] = -group_max<Policy::kSide>(-gap[i]);
        far[i] = group_max<Policy::kSide>(far[i]);
        const int row = first + kEach * y + i;
        if (x == 0 && row < shape.tokens) {
            held.gap[row] = gap[i];
            held.far[row] = far[i];
        }
    }
}

// The scores of an image, written over `far`.
static __global__ void __launch_bounds__(kRateThreads)
    rate(float* __restrict__ workspace, float* __restrict__ score, PeaksShape shape) {
    __shared__ float tops[kRateThreads / kWarp];
    const std::int64_t image = blockIdx.x;
    const int me = static_cast<int>(threadIdx.x);
    const Held held = held_by(workspace, image, shape.tokens);
    float farthest = 0;
    for (int i = me; i < shape.tokens; i += kRateThreads) {
        farthest = fmaxf(farthest, held.far[i]);
    }
    farthest = group_max<kWarp>(farthest);
    if (lane() == 0) {
        tops[warp()] = farthest;
    }
    __syncthreads();
    for (const float top : tops) {
        farthest = fmaxf(farthest, top);
    }
    for (int i = me; i < shape.tokens; i += kRateThreads) {
        const float gap = held.gap[i] == INFINITY ? farthest : held.gap[i];
        score[image * shape.tokens + i] = 0.5f * logf(gap) - held.sparse[i];
    }
}

static __global__ void __launch_bounds__(kRateThreads)
    own(const std::int64_t* __restrict__ center, std::int64_t* __restrict__ assign, PeaksShape shape) {
    const std::int64_t image = blockIdx.y;
    const int slot = static_cast<int>(blockIdx.x) * kRateThreads + static_cast<int>(threadIdx.x);
    if (slot < shape.keep) {
        assign[image * shape.tokens + center[image * shape.keep + slot]] = slot;
    }
}

// Images by as many as their distances fit into the workspace.
template <typename T, bool kWhole>
cudaError_t run_by_rows(const T* metric, std::int64_t* center, std::int64_t* assign, float* pairs,
                        float* workspace, PeaksShape shape, cudaStream_t stream) {
    const auto densities = shape.neighbours <= kFewNeighbours ? density_by_rows<kFewNeighbours>
                                                              : density_by_rows<kMostNeighbours>;
    const int step = gram::at_once(shape.batch, shape.tokens);
    return in_turns(shape, step, [=](std::int64_t first, PeaksShape part) {
        const unsigned images = static_cast<unsigned>(part.batch);
        const dim3 rows(static_cast<unsigned>(ceil_div(shape.tokens, kRowsOfABlock)), images);
        const std::int64_t all = static_cast<std::int64_t>(part.batch) * shape.tokens;
        float* score = workspace + 3 * all;
        int* kept = reinterpret_cast<int*>(score + all);
        std::int64_t* centers = center + first * shape.keep;
        cudaError_t state = distances::run<T, kWhole>(metric + first * shape.tokens * shape.width, pairs,
                                                      part.batch, shape.tokens, shape.width, stream);
        if (state == cudaSuccess) {
            state = launch(densities, rows, kRowThreads, stream, pairs, workspace, part);
        }
        if (state == cudaSuccess) {
            state = launch(gaps_by_rows, rows, kRowThreads, stream, pairs, workspace, part);
        }
        if (state == cudaSuccess) {
            state = launch(rate, dim3(images), kRateThreads, stream, workspace, score, part);
        }
        if (state == cudaSuccess) {
            state =
                select::run(score, centers, kept, part.batch, shape.tokens, shape.keep, 0, kByScore, stream);
        }
        if (state == cudaSuccess) {
            state = launch(assign_by_rows, rows, kRowThreads, stream, pairs, centers,
                           assign + first * shape.tokens, part);
        }
        return state;
    });
}

template <typename T, bool kWhole>
cudaError_t run(const T* metric, std::int64_t* center, std::int64_t* assign, float* workspace,
                PeaksShape shape, cudaStream_t stream) {
    if (shape.tokens <= gram::kMost) {
        const std::size_t pairs = gram::bytes_for(shape.batch, shape.tokens) / sizeof(float);
        return run_by_rows<T, kWhole>(metric, center, assign, workspace, workspace + pairs, shape, stream);
    }
    const unsigned batch = static_cast<unsigned>(shape.batch);
    const dim3 tiles(static_cast<unsigned>(ceil_div(shape.tokens, Policy::kTile)), batch);
    const std::size_t images = static_cast<std::size_t>(shape.batch) * static_cast<std::size_t>(shape.tokens);
    float* score = workspace + 3 * images;
    int* kept = reinterpret_cast<int*>(score + images);
    const auto densities = shape.neighbours <= kFewNeighbours ? density<T, kFewNeighbours, kWhole>
                                                              : density<T, kMostNeighbours, kWhole>;
    cudaError_t state = launch(densities, tiles, Policy::kThreads, stream, metric, workspace, shape);
    if (state == cudaSuccess) {
        state = launch(gaps<T, kWhole>, tiles, Policy::kThreads, stream, metric, workspace, shape);
    }
    if (state == cudaSuccess) {
        state = launch(rate, dim3(batch), kRateThreads, stream, workspace, score, shape);
    }
    if (state == cudaSuccess) {
        state = select::run(score, center, kept, shape.batch, shape.tokens, shape.keep, 0, kByScore, stream);
    }
    if (state == cudaSuccess) {
        // In the place of what is no longer read: a part a token, where three numbers were.
        Part* parts = reinterpret_cast<Part*>(workspace);
        const Stretches whole{static_cast<int>(ceil_div(shape.keep, Policy::kTile)), 1};
        state = launch(nearest::center<T, Policy, kWhole>,
                       nearest::grid_of(shape.batch, shape.tokens, Policy::kTile, whole), Policy::kThreads,
                       stream, metric, center, parts, shape.keep, shape.tokens, shape.width, shape.keep);
        if (state == cudaSuccess) {
            state = nearest::settled(parts, assign, whole.count, shape.batch, shape.tokens, stream);
        }
    }
    if (state == cudaSuccess) {
        const dim3 slots(static_cast<unsigned>(ceil_div(shape.keep, kRateThreads)), batch);
        state = launch(own, slots, kRateThreads, stream, center, assign, shape);
    }
    return state;
}

}  // namespace peaks

inline std::size_t token_peaks_workspace(int batch, int tokens) {
    const std::size_t each = static_cast<std::size_t>(batch) * static_cast<std::size_t>(tokens);
    return gram::bytes_for(batch, tokens) + 5 * sizeof(float) * each;
}

// metric [B,N,D] of element type `type` -> center [B,K], assign [B,N].
inline cudaError_t token_peaks(int type, const void* metric, std::int64_t* center, std::int64_t* assign,
                               void* workspace, PeaksShape shape, cudaStream_t stream) {
    if (!within_limits(shape) || !within(shape.neighbours, 1, min(shape.tokens, kMostNeighbours))) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad = check_pointers(rows_of(type, metric), center, assign, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, metric);
        const auto run = whole ? peaks::run<T, true> : peaks::run<T, false>;
        return run(static_cast<const T*>(metric), center, assign, static_cast<float*>(workspace), shape,
                   stream);
    });
}

}  // namespace tokenrt
