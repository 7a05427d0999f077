// TokenGreedySelect: choose K of N tokens one after the other, each time the one with the most to add.
//
// Problem   metric [B,N,D], importance [B,N] float32 -> index [B,K] int64. The gain of token i is a^power *
//           novelty + mix * a, with its importance a (0 .. 1e9, NaN 0); novelty is 1 - the largest cosine to
//           a chosen token (max-min) or minus the sum of the cosines (max-sum). Among equal gains the smaller
//           position wins. A zero row and a NaN cosine count as 0. The first P tokens are always kept, always
//           first, and compared with nobody.
// Division  up to gram::kMost free tokens: 1. gram::cosines: those of all pairs, by many blocks. 2.
//           choose_by_rows: one block an image runs the whole loop, a row of cosines a turn. More: 1.
//           isolation, only where the first token is the farthest from its neighbours: tiles of all pairs
//           (tile.cuh), of which each row keeps its largest cosine. 2. choose: one block an image compares
//           all rows with the latest one each turn (choose.cuh); no N x N matrix. A similarity is the same
//           function of two rows wherever they stand.
// Bytes     B * (N D size + 4 N + 8 K) from memory; by rows B * 4 (N^2 + K N) written and read in cache or
//           memory, else the rows again each turn, B K N D size from cache.
// Bound     by rows: latency, a row from cache, a reduction and a barrier a turn; before it arithmetic, 2 B
// N^2
//           D operations. Else what one multiprocessor reads of L2 (about 64 bytes a cycle), an image each.
#pragma once

#include "choose.cuh"
#include "greedy_rows.cuh"

namespace tokenrt {

static_assert(kTokenGreedySelectBeyond <= gram::kMost, "what is not bounded is chosen by rows");

namespace greedy {

using choose::own_of;
using choose::products;

// What the image keeps for each free token, in its part of the workspace.
struct Held {
    float *state, *length, *weight;
};

__device__ __forceinline__ Held held_by(float* workspace, std::int64_t image, int free) {
    float* start = workspace + 3 * image * free;
    return {start, start + free, start + 2 * static_cast<std::int64_t>(free)};
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    isolation(const T* __restrict__ metric, float* __restrict__ workspace, GreedyShape shape) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const std::int64_t image = blockIdx.y;
    const int first = static_cast<int>(blockIdx.x) * Policy::kTile, free = shape.free();
    const T* rows = metric + (image * shape.tokens + shape.protect) * shape.width;
    const auto row_at = [=](int row) {
        return row < free ? rows + static_cast<std::int64_t>(row) * shape.width : nullptr;
    };
    float nearest[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        nearest[i] = kBelow;
    }
    for (int base = 0; base < free; base += Policy::kTile) {
        float product[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDotsAndSquares>(
            shared, [=](int i) { return row_at(first + i); }, [=](int i) { return row_at(base + i); },
            shape.width, product);
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            const int column = base + kEach * x + j;
            const float right_length = length_of(shared.right_square[kEach * x + j]);
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
                const float left_length = length_of(shared.left_square[kEach * y + i]);
                const float cosine = cosine_of(product[i][j], left_length, right_length);
                const bool other = column < free && column != first + kEach * y + i;
                nearest[i] = other ? fmaxf(nearest[i], cosine) : nearest[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        nearest[i] = group_max<Policy::kSide>(nearest[i]);
        const int row = first + kEach * y + i;
        if (x == 0 && row < free) {
            held_by(workspace, image, free).state[row] = nearest[i];
        }
    }
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    choose(const T* __restrict__ metric, const float* __restrict__ importance, float* __restrict__ workspace,
           std::int64_t* __restrict__ index, GreedyShape shape) {
    alignas(16) __shared__ float latest_row[kMostWidth];
    __shared__ Best slots[Policy::kThreads / kWarp];
    constexpr int kRows = Policy::kRows, kStep = Policy::kThreads / Policy::kLanes * kRows;
    const int me = static_cast<int>(threadIdx.x), part = me % Policy::kLanes;
    const int offset = me / Policy::kLanes * kRows, free = shape.free();
    const std::int64_t image = blockIdx.x;
    const T* rows = metric + (image * shape.tokens + shape.protect) * shape.width;
    const float* ratings = importance + image * shape.tokens + shape.protect;
    std::int64_t* out = index + image * shape.keep;
    const Held held = held_by(workspace, image, free);
    const float base_novelty = shape.objective == kMaxSum ? 0.0f : 1.0f;
    const auto gain = [=](int row, float weight, float novelty) {
        return Best{choose::gain(choose::rated(ratings[row]), weight, novelty, shape.mix), row};
    };

    Best best{-INFINITY, free};
    for (int base = 0; base < free; base += kStep) {
        float square[kRows];
        products<T, Policy, kWhole>(rows, base + offset, free, shape.width, nullptr, square);
        const int row = base + offset + part;
        if (part < kRows && row < free) {
            const float a = choose::rated(ratings[row]);
            const float weight = choose::weight_of(a, shape.power);
            const float novelty = shape.seed == kMostIsolated ? 1.0f - held.state[row] : base_novelty;
            const Best candidate = shape.seed == kMostImportant ? Best{a, row} : gain(row, weight, novelty);
            best = ahead(candidate, best) ? candidate : best;
            held.length[row] = length_of(own_of<Policy>(square, part));
            held.weight[row] = weight;
            held.state[row] = shape.objective == kMaxSum ? 0.0f : kBelow;
        }
    }
    best = block_best<Policy::kThreads>(best, slots);

    choose::write_protected<Policy>(out, shape);
    for (int turn = 1;; ++turn) {
        const int latest = best.place;
        if (shape.order == kByChoice && me == 0) {
            out[shape.protect + turn - 1] = shape.protect + latest;
        }
        if (turn == shape.wanted()) {
            break;
        }
        choose::widen_row<T, Policy>(latest_row, rows + static_cast<std::int64_t>(latest) * shape.width,
                                     shape.width);
        __syncthreads();
        const float latest_length = held.length[latest];
        best = {-INFINITY, free};
        for (int base = 0; base < free; base += kStep) {
            float product[kRows];
            products<T, Policy, kWhole>(rows, base + offset, free, shape.width, latest_row, product);
            const int row = base + offset + part;
            if (part >= kRows || row >= free || held.state[row] == taken()) {
                continue;
            }
            const float cosine = cosine_of(own_of<Policy>(product, part), held.length[row], latest_length);
            float state = held.state[row];
            state = shape.objective == kMaxSum ? state + cosine : fmaxf(state, cosine);
            held.state[row] = row == latest ? taken() : state;
            const Best candidate = gain(row, held.weight[row], base_novelty - state);
            best = row != latest && ahead(candidate, best) ? candidate : best;
        }
        best = block_best<Policy::kThreads>(best, slots);
    }
    if (shape.order == kByPosition) {
        choose::write_by_position<Policy>(out, shape,
                                          [=](int i) { return held.state[i] == taken() || i == best.place; });
    }
}

template <typename T, bool kWhole>
cudaError_t run(const T* metric, const float* importance, float* workspace, std::int64_t* index,
                GreedyShape shape, cudaStream_t stream) {
    if (shape.free() <= gram::kMost) {
        return run_by_rows<T, kWhole>(metric, importance, workspace, index, shape, stream);
    }
    if (shape.seed == kMostIsolated) {
        using Policy = TilePolicy<64>;
        const dim3 grid(static_cast<unsigned>(ceil_div(shape.free(), Policy::kTile)),
                        static_cast<unsigned>(shape.batch));
        const cudaError_t state =
            launch(isolation<T, Policy, kWhole>, grid, Policy::kThreads, stream, metric, workspace, shape);
        if (state != cudaSuccess) {
            return state;
        }
    }
    return launch(choose<T, ChoosePolicy, kWhole>, dim3(static_cast<unsigned>(shape.batch)),
                  ChoosePolicy::kThreads, stream, metric, importance, workspace, index, shape);
}

}  // namespace greedy

inline std::size_t token_greedy_select_workspace(int batch, int tokens) {
    const std::size_t states =
        3 * sizeof(float) * static_cast<std::size_t>(batch) * static_cast<std::size_t>(tokens);
    return max(states, gram::bytes_for(batch, tokens));  // a profile may bring fewer tokens
}

// metric [B,N,D] of element type `type`, importance [B,N] float32 -> index [B,K].
inline cudaError_t token_greedy_select(int type, const void* metric, const float* importance,
                                       std::int64_t* index, void* workspace, GreedyShape shape,
                                       cudaStream_t stream) {
    if (!within(shape.objective, kMaxMin, kMaxSum) || !within(shape.seed, kFromNothing, kMostIsolated)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad = choose::check(
        type, shape, shape.tokens > kTokenGreedySelectBeyond ? kTokenGreedySelectWork : kNoLimit, metric,
        importance, index, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, metric);
        const auto run = whole ? greedy::run<T, true> : greedy::run<T, false>;
        return run(static_cast<const T*>(metric), importance, static_cast<float*>(workspace), index, shape,
                   stream);
    });
}

}  // namespace tokenrt
