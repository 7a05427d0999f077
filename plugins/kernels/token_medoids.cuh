// TokenMedoids: the cheapest member of each of K clusters, found in a fixed number of rounds.
//
// Problem   metric [B,N,D], weight [B,N] float32, start [B,K] int64 -> center [B,K], assign [B,N] int64. A
//           round: each token joins the nearest centre (the first of equally near ones), then the member with
//           the least sum of distances to the members, each times the other's weight, becomes the centre (the
//           first of equal ones); a cluster without members keeps its centre. Distances are Euclidean or
//           squared. One that is infinite or NaN counts as 1e15 when a token joins and adds nothing to a
//           cost; a token that is not finite costs 1e30. Weights count from 0 to 1e9, NaN as 0. No N x N
//           matrix.
// Division  begin: the centres. A round is 1. nearest::center: a block takes a tile of tokens and a stretch
// of
//           centres (parts.cuh). 2. rounds::arrange: the nearest over the stretches, and the tokens in the
//           order of their clusters. 3. costs: tiles of pairs in that order, only those in which rows and
//           columns share a cluster, a block a tile of rows and a stretch of columns; 4. move: a warp a
//           cluster adds the stretches. Last nearest::center and nearest::settle. Sums run over the members
//           by ascending position, so that equal members cost the same to the bit.
// Bytes     a round: B * (N D size (2 + members / tile) + 52 N + 16 K), the repeats from cache.
// Bound     arithmetic: a round 3 B N (K + M) D operations, M the mean over the tokens of the members of the
//           cluster each is in, rounded up to tiles, and B N^2 comparisons; one more N K D for `assign`.
#pragma once

#include "nearest.cuh"
#include "rounds.cuh"

namespace tokenrt {

struct MedoidsShape {
    int batch, tokens, width, keep, rounds, power;
};

constexpr int kEuclidean = 1, kSquared = 2;
constexpr int kMedoidThreads = 256;

namespace medoids {

using Policy = TilePolicy<32>;

// What is kept for each place in the order of clusters: token and its cluster, [B,N] each, and the parts of
// its cost, [B,stretches,N].
struct Held {
    int *token, *cluster;
    float* cost;
    int stretches;
    __device__ __forceinline__ Held of(std::int64_t image, int tokens) const {
        const std::int64_t before = image * tokens;
        return {token + before, cluster + before, cost + before * stretches, stretches};
    }
    __device__ __forceinline__ float total(int place, int tokens) const {
        float sum = 0;
        for (int i = 0; i < stretches; ++i) {
            sum += cost[static_cast<std::int64_t>(i) * tokens + place];
        }
        return fminf(sum, kFarthest);
    }
};

static __global__ void __launch_bounds__(kMedoidThreads)
    begin(const std::int64_t* __restrict__ start, std::int64_t* __restrict__ center, MedoidsShape shape) {
    const int slot = static_cast<int>(blockIdx.x) * kMedoidThreads + static_cast<int>(threadIdx.x);
    if (slot < shape.keep) {
        const std::int64_t at = static_cast<std::int64_t>(blockIdx.y) * shape.keep + slot;
        center[at] = place_of(start[at], shape.tokens);
    }
}

template <typename T, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    costs(const T* __restrict__ metric, const float* __restrict__ weight, Held all, int stretch,
          MedoidsShape shape) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach, kTile = Policy::kTile;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const std::int64_t image = blockIdx.z;
    const int first = static_cast<int>(blockIdx.x) * kTile, tokens = shape.tokens;
    const int begin = static_cast<int>(blockIdx.y) * stretch, end = min(begin + stretch, tokens);
    const T* rows = metric + image * tokens * shape.width;
    const float* weights = weight + image * tokens;
    const Held held = all.of(image, tokens);
    const auto row_at = [=](int at) {
        return at < tokens ? rows + static_cast<std::int64_t>(held.token[at]) * shape.width : nullptr;
    };
    int own[kEach];
    float sum[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        own[i] = held.cluster[min(first + kEach * y + i, tokens - 1)];
        sum[i] = 0;
    }
    const int low = held.cluster[first], high = held.cluster[min(first + kTile, tokens) - 1];
    for (int base = begin; base < end && held.cluster[base] <= high; base += kTile) {
        if (held.cluster[min(base + kTile, tokens) - 1] < low) {
            continue;
        }
        float square[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDistances>(
            shared, [=](int i) { return row_at(first + i); }, [=](int i) { return row_at(base + i); },
            shape.width, square);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int column = base + kEach * x + j;
            if (column >= tokens) {
                continue;
            }
            const int cluster = held.cluster[column];
            const float factor = fminf(fmaxf(weights[held.token[column]], 0.0f), kHeaviest);
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const float apart = square[i][j];
                const float distance = shape.power == kSquared ? apart : sqrtf(apart);
                const float unknown = column == first + kEach * y + i ? INFINITY : 0.0f;
                const float term = apart < kFarthest ? distance * factor : unknown;
                sum[i] += cluster == own[i] ? term : 0.0f;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        sum[i] = group_sum<Policy::kSide>(sum[i]);
        const int row = first + kEach * y + i;
        if (x == 0 && row < tokens) {
            held.cost[static_cast<std::int64_t>(blockIdx.y) * tokens + row] = sum[i];
        }
    }
}

static __global__ void __launch_bounds__(kMedoidThreads)
    move(Held all, std::int64_t* __restrict__ center, MedoidsShape shape) {
    constexpr int kWarps = kMedoidThreads / static_cast<int>(kWarp);
    const std::int64_t image = blockIdx.y;
    const int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(warp());
    const Held held = all.of(image, shape.tokens);
    if (slot >= shape.keep) {
        return;
    }
    const int first = rounds::first_of(held.cluster, slot, shape.tokens),
              end = rounds::first_of(held.cluster, slot + 1, shape.tokens);
    Best best{-INFINITY, shape.tokens};
    for (int i = first + static_cast<int>(lane()); i < end; i += static_cast<int>(kWarp)) {
        const Best member{-held.total(i, shape.tokens), held.token[i]};
        best = ahead(member, best) ? member : best;
    }
    best = warp_best(best);
    if (lane() == 0 && best.place < shape.tokens) {
        center[image * shape.keep + slot] = best.place;
    }
}

template <typename T, bool kWhole>
cudaError_t run(const T* metric, const float* weight, const std::int64_t* start, std::int64_t* center,
                std::int64_t* assign, void* workspace, MedoidsShape shape, cudaStream_t stream) {
    const std::int64_t all = static_cast<std::int64_t>(shape.batch) * shape.tokens;
    Part* parts = static_cast<Part*>(workspace);
    int* numbers =
        reinterpret_cast<int*>(parts + static_cast<std::size_t>(shape.batch) * most_parts(shape.tokens));
    // Costs lie where the parts of what is nearest were, which are no more needed then and no fewer.
    const Stretches paired = stretches_of(shape.tokens, shape.tokens, Policy::kTile);
    const Held held{numbers, numbers + all, static_cast<float*>(workspace), paired.count};
    const auto grid = [=](int count, int each) {
        return dim3(static_cast<unsigned>(ceil_div(count, each)), static_cast<unsigned>(shape.batch));
    };
    const dim3 tiles(static_cast<unsigned>(ceil_div(shape.tokens, Policy::kTile)),
                     static_cast<unsigned>(paired.count), static_cast<unsigned>(shape.batch));
    const Stretches divided = stretches_of(shape.tokens, shape.keep, Policy::kTile);
    const auto join = [=] {
        return launch(nearest::center<T, Policy, kWhole>,
                      nearest::grid_of(shape.batch, shape.tokens, Policy::kTile, divided), Policy::kThreads,
                      stream, metric, center, parts, divided.tiles * Policy::kTile, shape.tokens, shape.width,
                      shape.keep);
    };
    cudaError_t state =
        launch(begin, grid(shape.keep, kMedoidThreads), kMedoidThreads, stream, start, center, shape);
    for (int round = 0; round < shape.rounds && state == cudaSuccess; ++round) {
        state = join();
        if (state == cudaSuccess) {
            state = launch(rounds::arrange, grid(shape.tokens, rounds::kOrderThreads), rounds::kOrderThreads,
                           stream, parts, assign, held.token, held.cluster, divided.count, shape.tokens);
        }
        if (state == cudaSuccess) {
            state = launch(costs<T, kWhole>, tiles, Policy::kThreads, stream, metric, weight, held,
                           paired.tiles * Policy::kTile, shape);
        }
        if (state == cudaSuccess) {
            state = launch(move, grid(shape.keep, kMedoidThreads / static_cast<int>(kWarp)), kMedoidThreads,
                           stream, held, center, shape);
        }
    }
    if (state == cudaSuccess) {
        state = join();
    }
    return state == cudaSuccess
               ? nearest::settled(parts, assign, divided.count, shape.batch, shape.tokens, stream)
               : state;
}

}  // namespace medoids

inline std::size_t token_medoids_workspace(int batch, int tokens) {
    return static_cast<std::size_t>(batch) *
           (sizeof(Part) * most_parts(tokens) + 2 * sizeof(int) * static_cast<std::size_t>(tokens));
}

// metric [B,N,D] of element type `type`, weight [B,N], start [B,K] -> center [B,K], assign [B,N].
inline cudaError_t token_medoids(int type, const void* metric, const float* weight, const std::int64_t* start,
                                 std::int64_t* center, std::int64_t* assign, void* workspace,
                                 MedoidsShape shape, cudaStream_t stream) {
    if (!within_limits(shape) || !within(shape.rounds, 0, kMostRounds) ||
        !within(shape.power, kEuclidean, kSquared)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad = check_pointers(rows_of(type, metric), weight, start, center, assign, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, metric);
        const auto run = whole ? medoids::run<T, true> : medoids::run<T, false>;
        return run(static_cast<const T*>(metric), weight, start, center, assign, workspace, shape, stream);
    });
}

}  // namespace tokenrt
