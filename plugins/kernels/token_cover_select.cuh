// TokenCoverSelect: choose K of N tokens so that every token has a similar one among them (facility
// location).
//
// Problem   metric [B,N,D], importance [B,N] float32 -> index [B,K] int64. The gain of token i is a^power *
//           (sum over j of max(0, cos(i,j) - c_j)) + mix * a, with c_j the largest cosine of j to a chosen
//           token, at least 0. Ties, zero rows, NaN, importance and protected tokens as in TokenGreedySelect.
// Division  Gains only fall while tokens are chosen, so an earlier gain is a bound of today's, and only the
//           tokens whose bound leads need a new one (lazy greedy: Minoux, 1978); rounding of sums in a fixed
//           order is monotone, so that holds in floating point too. A turn takes the leading bound, computes
//           that token's gain, and ends when the leader's gain is today's. Up to gram::kMost free tokens: 1.
//           gram::cosines: those of all pairs, by many blocks. 2. bounds_by_rows: a block a row adds up its
//           first gain, in the order of the later ones. 3. choose_by_rows: one block an image runs the whole
//           loop, a row of cosines for each gain. More: 1. bounds: tiles of all pairs (tile.cuh), added up
//           along the rows. 2. choose: a gain compares all rows with the leader's (choose.cuh). Two rows are
//           kept, the leader's and the last one's.
// Bytes     B * (N D size + 4 N + 8 K) from memory; by rows B * 4 N^2 written, read, and a row for each gain;
//           else N D size from cache for each gain computed anew.
// Bound     arithmetic: 2 B N^2 D operations. The loop: latency by rows, else what one multiprocessor reads
// of
//           L2. A turn costs at least one row and at most one of every token; a few are usual.
#pragma once

#include "choose.cuh"
#include "cover_rows.cuh"

namespace tokenrt {

namespace cover {

using choose::own_of;
using choose::products;

// What the image keeps for each free token. row: cosines to the leader and to the token looked at last; an
// array of two pointers would lie in local memory.
struct Held {
    float *bound, *length, *cover, *rows;
    std::int64_t free;
    __device__ __forceinline__ float* row(int which) const { return rows + which * free; }
};

__device__ __forceinline__ Held held_by(float* workspace, std::int64_t image, std::int64_t free) {
    float* start = workspace + 5 * image * free;
    return {start, start + free, start + 2 * free, start + 3 * free, free};
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    bounds(const T* __restrict__ metric, const float* __restrict__ importance, float* __restrict__ workspace,
           ChooseShape shape) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const std::int64_t image = blockIdx.y;
    const int first = static_cast<int>(blockIdx.x) * Policy::kTile, free = shape.free();
    const T* rows = metric + (image * shape.tokens + shape.protect) * shape.width;
    const Held held = held_by(workspace, image, free);
    const auto row_at = [=](int row) {
        return row < free ? rows + static_cast<std::int64_t>(row) * shape.width : nullptr;
    };
    float sum[kEach] = {}, length[kEach] = {};
    for (int base = 0; base < free; base += Policy::kTile) {
        float product[kEach][kEach];
        tile_product<T, Policy, kWhole, Tile::kDotsAndSquares>(
            shared, [=](int i) { return row_at(first + i); }, [=](int i) { return row_at(base + i); },
            shape.width, product);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
            length[i] = length_of(shared.left_square[kEach * y + i]);
#pragma unroll
            for (int j = 0; j < kEach; ++j) {
                const float other = length_of(shared.right_square[kEach * x + j]);
                // A column beyond the end is a zero row and adds nothing.
                sum[i] += fmaxf(cosine_of(product[i][j], length[i], other), 0.0f);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        sum[i] = group_sum<Policy::kSide>(sum[i]);
        const int row = first + kEach * y + i;
        if (x == 0 && row < free) {
            const float a = importance[image * shape.tokens + shape.protect + row];
            held.bound[row] = gain(a, sum[i], shape);
            held.length[row] = length[i];
            held.cover[row] = 0;
        }
    }
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    choose(const T* __restrict__ metric, const float* __restrict__ importance, float* __restrict__ workspace,
           std::int64_t* __restrict__ index, ChooseShape shape) {
    alignas(16) __shared__ float latest_row[kMostWidth];
    __shared__ Best slots[Policy::kThreads / kWarp];
    __shared__ float sums[Policy::kThreads / kWarp];
    constexpr int kRows = Policy::kRows, kStep = Policy::kThreads / Policy::kLanes * kRows;
    constexpr float kTaken = -INFINITY;
    const int me = static_cast<int>(threadIdx.x), part = me % Policy::kLanes;
    const int offset = me / Policy::kLanes * kRows, free = shape.free();
    const std::int64_t image = blockIdx.x;
    const T* rows = metric + (image * shape.tokens + shape.protect) * shape.width;
    std::int64_t* out = index + image * shape.keep;
    const Held held = held_by(workspace, image, free);

    choose::write_protected<Policy>(out, shape);
    for (int turn = 0; turn < shape.wanted(); ++turn) {
        Best today{-INFINITY, free};  // the leader of those whose gain is today's
        int spare = 0;                // the row that does not belong to it
        for (;;) {
            Best best{-INFINITY, free};
            for (int row = offset + part; part < kRows && row < free; row += kStep) {
                const Best candidate{held.bound[row], row};
                best = ahead(candidate, best) ? candidate : best;
            }
            best = block_best<Policy::kThreads>(best, slots);
            if (best.place == today.place) {
                break;
            }
            const int latest = best.place;
            choose::widen_row<T, Policy>(latest_row, rows + static_cast<std::int64_t>(latest) * shape.width,
                                         shape.width);
            __syncthreads();
            const float latest_length = held.length[latest];
            float novelty = 0;
            for (int base = 0; base < free; base += kStep) {
                float product[kRows];
                products<T, Policy, kWhole>(rows, base + offset, free, shape.width, latest_row, product);
                const int row = base + offset + part;
                if (part < kRows && row < free) {
                    const float cosine =
                        cosine_of(own_of<Policy>(product, part), held.length[row], latest_length);
                    held.row(spare)[row] = cosine;
                    novelty += fmaxf(cosine - held.cover[row], 0.0f);
                }
            }
            novelty = block_sum<Policy::kThreads>(novelty, sums);
            const float a = importance[image * shape.tokens + shape.protect + latest];
            const Best fresh{gain(a, novelty, shape), latest};
            if (latest % kStep == offset + part && part < kRows) {
                held.bound[latest] = fresh.value;
            }
            if (ahead(fresh, today)) {
                today = fresh;
                spare = 1 - spare;
            }
        }
        for (int row = offset + part; part < kRows && row < free; row += kStep) {
            held.cover[row] = fmaxf(held.cover[row], held.row(1 - spare)[row]);
            held.bound[row] = row == today.place ? kTaken : held.bound[row];
        }
        if (shape.order == kByChoice && me == 0) {
            out[shape.protect + turn] = shape.protect + today.place;
        }
        __syncthreads();
    }
    if (shape.order == kByPosition) {
        choose::write_by_position<Policy>(out, shape, [=](int i) { return held.bound[i] == kTaken; });
    }
}

template <typename T, bool kWhole>
cudaError_t run(const T* metric, const float* importance, float* workspace, std::int64_t* index,
                ChooseShape shape, cudaStream_t stream) {
    if (shape.free() <= gram::kMost) {
        return run_by_rows<T, kWhole>(metric, importance, workspace, index, shape, stream);
    }
    using Policy = TilePolicy<32>;
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.free(), Policy::kTile)),
                    static_cast<unsigned>(shape.batch));
    const cudaError_t state = launch(bounds<T, Policy, kWhole>, grid, Policy::kThreads, stream, metric,
                                     importance, workspace, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(choose<T, ChoosePolicy, kWhole>, dim3(static_cast<unsigned>(shape.batch)),
                  ChoosePolicy::kThreads, stream, metric, importance, workspace, index, shape);
}

}  // namespace cover

inline std::size_t token_cover_select_workspace(int batch, int tokens) {
    const std::size_t states =
        5 * sizeof(float) * static_cast<std::size_t>(batch) * static_cast<std::size_t>(tokens);
    return max(states, gram::bytes_for(batch, tokens));  // a profile may bring fewer tokens
}

// metric [B,N,D] of element type `type`, importance [B,N] float32 -> index [B,K].
inline cudaError_t token_cover_select(int type, const void* metric, const float* importance,
                                      std::int64_t* index, void* workspace, ChooseShape shape,
                                      cudaStream_t stream) {
    const cudaError_t bad =
        choose::check(type, shape, shape.tokens > kTokenCoverSelectBeyond ? kTokenCoverSelectWork : kNoLimit,
                      metric, importance, index, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, metric);
        const auto run = whole ? cover::run<T, true> : cover::run<T, false>;
        return run(static_cast<const T*>(metric), importance, static_cast<float*>(workspace), index, shape,
                   stream);
    });
}

}  // namespace tokenrt
