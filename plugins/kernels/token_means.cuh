// TokenMeans: the weighted means of K clusters, found in a fixed number of rounds.
//
// Problem   metric [B,N,D], weight [B,N] float32, start [B,K] int64 -> center [B,K,D] float32, assign [B,N]
//           int64. A round: each token joins the nearest centre (the first of equally near ones), then each
//           centre c moves by the weighted mean of x - c over its members x; a cluster without weight keeps
//           its centre, and so does one whose members all lie on it, to the bit. What is NaN, infinite or of
//           magnitude 1e15 and more counts as 0. Weights count up to 1e9, and as 0 up to 1e-30 or as NaN. No
//           N x N matrix.
// Division  begin: a warp a centre copies its token. A round is 1. join: a block takes a tile of tokens and a
//           stretch of centres (parts.cuh). 2. rounds::arrange: the nearest over the stretches, and the
//           tokens in the order of their clusters, by counting those in front. 3. move: a block a centre and
//           a stretch of 16 bytes a lane; its warps take the members in turns, and their sums are added in
//           the order of the warps, so that the bits depend on the sizes only.
// Bytes     a round: B * (2 N D size + 3 K D 4 + 36 N); the repeats of a tile come from cache.
// Bound     arithmetic: a round 3 B N K D operations for join, and 3 B N D, bound by memory, for move.
#pragma once

#include "nearest.cuh"
#include "rounds.cuh"

namespace tokenrt {

struct MeansShape {
    int batch, tokens, width, keep, rounds;
};

constexpr float kLightest = 1e-30f;
constexpr int kMeansThreads = 128;

namespace means {

struct Policy : TilePolicy<32> {
    static constexpr bool kFinite = true;
};

constexpr int kWarps = kMeansThreads / static_cast<int>(kWarp);

// Copies kCount columns from `column` on of a row, and zeros for those beyond its end.
template <bool kWhole, int kCount, typename T>
__device__ __forceinline__ void load(float (&to)[kCount], const T* row, int column, int width) {
    Pack<T, kCount> held{};
    if (kWhole) {
        if (column < width) {
            held = *reinterpret_cast<const Pack<T, kCount>*>(row + column);
        }
    } else {
        for (int j = 0; j < kCount && column + j < width; ++j) {
            held.item[j] = row[column + j];
        }
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        to[j] = finite(widened(held.item[j]));
    }
}

template <bool kWhole, int kCount>
__device__ __forceinline__ void store(float* row, const float (&from)[kCount], int column, int width) {
    Pack<float, kCount> held;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        held.item[j] = from[j];
    }
    if (kWhole) {
        if (column < width) {
            *reinterpret_cast<Pack<float, kCount>*>(row + column) = held;
        }
    } else {
        for (int j = 0; j < kCount && column + j < width; ++j) {
            row[column + j] = held.item[j];
        }
    }
}

template <typename T, bool kWhole>
static __global__ void __launch_bounds__(kMeansThreads)
    begin(const T* __restrict__ metric, const std::int64_t* __restrict__ start, float* __restrict__ center,
          MeansShape shape) {
    constexpr int kCount = Pack<T>::kCount;
    const std::int64_t image = blockIdx.y;
    const int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(warp());
    if (slot >= shape.keep) {
        return;
    }
    const std::int64_t at = image * shape.keep + slot, place = place_of(start[at], shape.tokens);
    const T* row = metric + (image * shape.tokens + place) * shape.width;
    for (int column = static_cast<int>(lane()) * kCount; column < shape.width;
         column += static_cast<int>(kWarp) * kCount) {
        float held[kCount];
        load<kWhole>(held, row, column, shape.width);
        store<kWhole>(center + at * shape.width, held, column, shape.width);
    }
}

template <typename T, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    join(const T* __restrict__ metric, const float* __restrict__ center, Part* __restrict__ parts,
         int stretch, MeansShape shape) {
    __shared__ TileShared<T, Policy> shared;
    const std::int64_t width = shape.width;
    const float* own = center + static_cast<std::int64_t>(blockIdx.z) * shape.keep * width;
    nearest::join_stretch<T, Policy, kWhole>(
        shared, metric, [=](int slot) { return own + slot * width; }, parts, stretch, shape.tokens,
        shape.width, shape.keep);
}

template <typename T, bool kWhole>
static __global__ void __launch_bounds__(kMeansThreads)
    move(const T* __restrict__ metric, const float* __restrict__ weight, const int* __restrict__ token,
         const int* __restrict__ cluster, float* __restrict__ center, MeansShape shape) {
    constexpr int kCount = Pack<T>::kCount, kColumns = static_cast<int>(kWarp) * kCount;
    __shared__ float part[kWarps][kCount][kWarp], masses[kWarps];
    const std::int64_t image = blockIdx.y;
    const int stretches = (shape.width + kColumns - 1) / kColumns;
    const int slot = static_cast<int>(blockIdx.x) / stretches;
    const int column =
        static_cast<int>(blockIdx.x) % stretches * kColumns + static_cast<int>(lane()) * kCount;
    const T* rows = metric + image * shape.tokens * shape.width;
    const float* weights = weight + image * shape.tokens;
    const int* members = token + image * shape.tokens;
    const int* clusters = cluster + image * shape.tokens;
    float* own = center + (image * shape.keep + slot) * shape.width;
    const int first = rounds::first_of(clusters, slot, shape.tokens),
              end = rounds::first_of(clusters, slot + 1, shape.tokens);
    float old[kCount], sum[kCount] = {}, mass = 0;
    load<kWhole>(old, own, column, shape.width);
#pragma unroll 4
    for (int i = first + static_cast<int>(warp()); i < end; i += kWarps) {
        const std::int64_t member = members[i];
        const float given = weights[member], factor = given > kLightest ? fminf(given, kHeaviest) : 0.0f;
        float held[kCount];
        load<kWhole>(held, rows + member * shape.width, column, shape.width);
        mass += factor;
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            sum[j] += factor * (held[j] - old[j]);
        }
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        part[warp()][j][lane()] = sum[j];
    }
    if (lane() == 0) {
        masses[warp()] = mass;
    }
    __syncthreads();
    if (warp() != 0) {
        return;
    }
    for (int other = 1; other < kWarps; ++other) {
        mass += masses[other];
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            sum[j] += part[other][j][lane()];
        }
    }
    if (mass > 0) {
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            old[j] += sum[j] / mass;
        }
        store<kWhole>(own, old, column, shape.width);
    }
}

template <typename T, bool kWhole>
cudaError_t run(const T* metric, const float* weight, const std::int64_t* start, float* center,
                std::int64_t* assign, void* workspace, MeansShape shape, cudaStream_t stream) {
    const auto grid = [=](long long count, int each) {
        return dim3(static_cast<unsigned>(ceil_div(count, each)), static_cast<unsigned>(shape.batch));
    };
    const long long stretches = ceil_div(shape.width, static_cast<int>(kWarp) * Pack<T>::kCount);
    Part* parts = static_cast<Part*>(workspace);
    int* token =
        reinterpret_cast<int*>(parts + static_cast<std::size_t>(shape.batch) * most_parts(shape.tokens));
    int* cluster = token + static_cast<std::int64_t>(shape.batch) * shape.tokens;
    const Stretches divided = stretches_of(shape.tokens, shape.keep, Policy::kTile);
    cudaError_t state = launch(begin<T, kWhole>, grid(shape.keep, kWarps), kMeansThreads, stream, metric,
                               start, center, shape);
    for (int round = 0; round < shape.rounds && state == cudaSuccess; ++round) {
        state = launch(join<T, kWhole>, nearest::grid_of(shape.batch, shape.tokens, Policy::kTile, divided),
                       Policy::kThreads, stream, metric, center, parts, divided.tiles * Policy::kTile, shape);
        if (state == cudaSuccess) {
            state = launch(rounds::arrange, grid(shape.tokens, rounds::kOrderThreads), rounds::kOrderThreads,
                           stream, parts, assign, token, cluster, divided.count, shape.tokens);
        }
        if (state == cudaSuccess) {
            state = launch(move<T, kWhole>, grid(shape.keep * stretches, 1), kMeansThreads, stream, metric,
                           weight, token, cluster, center, shape);
        }
    }
    return state;
}

}  // namespace means

inline std::size_t token_means_workspace(int batch, int tokens) {
    return static_cast<std::size_t>(batch) *
           (sizeof(Part) * most_parts(tokens) + 2 * sizeof(int) * static_cast<std::size_t>(tokens));
}

// metric [B,N,D] of element type `type`, weight [B,N], start [B,K] -> center [B,K,D], assign [B,N].
inline cudaError_t token_means(int type, const void* metric, const float* weight, const std::int64_t* start,
                               float* center, std::int64_t* assign, void* workspace, MeansShape shape,
                               cudaStream_t stream) {
    if (!within_limits(shape) || !within(shape.rounds, 1, kMostRounds)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad = check_pointers(rows_of(type, metric), weight, start, center, assign, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, metric, center);
        const auto run = whole ? means::run<T, true> : means::run<T, false>;
        return run(static_cast<const T*>(metric), weight, start, center, assign, workspace, shape, stream);
    });
}

}  // namespace tokenrt
