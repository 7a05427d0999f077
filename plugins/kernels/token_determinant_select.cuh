// TokenDeterminantSelect: choose K of N tokens one after the other so that the determinant of their kernel is
// large.
//
// Problem   metric [B,N,D], importance [B,N] float32 -> index [B,K] int64. L_ij is cosine (i, j) times
//           mix + a_i a_j, with the importance a (0 .. 1e9, NaN 0). A token has L_ii left at first; the one
//           that has most left, j, explains c_i = (L_ji - sum_p c_p[j] c_p[i]) / sqrt(left_j + epsilon) of
//           token i, which has c_i^2 less left then: a pivoted Cholesky factorisation. Up to kNothing L_ii +
//           (K - P) epsilon, what rounding and damping may leave, counts as 0. Ties go to the smaller
//           position; a zero row and a NaN cosine count as 0, the cosine of any other token to itself as 1.
//           The first P tokens are always kept, always first.
// Division  1. gram::cosines: those of all pairs, by many blocks. 2. choose: one block an image runs the
//           whole loop. The row c of the token chosen takes the place of its row of cosines, which nobody
//           reads again, so the workspace is that of the cosines alone.
// Bytes     B * (N D size + 4 N + 8 K) from memory; B * 4 (N^2 + K^2 N / 2) written and read in cache or
//           memory.
// Bound     arithmetic before the loop, 2 B N^2 D operations. In the loop what one multiprocessor reads of
//           L2 (about 64 bytes a cycle), B * 2 K^2 N bytes in all, and three barriers a turn.
#pragma once

#include "choose.cuh"
#include "gram.cuh"

namespace tokenrt {

struct DeterminantShape : ChooseShape {  // power stays 0
    float epsilon;
};

constexpr float kMostEpsilon = 1.0f;

namespace determinant {

constexpr float kNothing = 1e-5f;  // of its own entry: up to it is rounding
constexpr float kItself = 0.5f;    // above it is the cosine of a token to itself, 1 but for rounding
constexpr int kUnrolled = 4;       // rows of earlier turns read at a time

// What a token has left, of which no more than `least` is none.
__device__ __forceinline__ float rest(float left, float least) {
    return left > least ? left : 0.0f;
}

// A thread holds what its tokens have left.
template <typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    choose(const float* __restrict__ importance, float* __restrict__ workspace,
           std::int64_t* __restrict__ index, DeterminantShape shape) {
    __shared__ Best slots[Policy::kThreads / kWarp];
    __shared__ int chosen[Policy::kMostTokens];       // of each turn
    __shared__ float of_latest[Policy::kMostTokens];  // what the token of each turn explains of the latest
    constexpr int kHeld = Policy::kHeld, kThreads = Policy::kThreads;
    constexpr float kTaken = -INFINITY;
    const int me = static_cast<int>(threadIdx.x), free = shape.free();
    const std::int64_t image = blockIdx.x, pitch = gram::pitch_of(free);
    const float* ratings = importance + image * shape.tokens + shape.protect;
    std::int64_t* out = index + image * shape.keep;
    const gram::Held held = gram::held_by(workspace, image, free);
    float rating[kHeld], least[kHeld], left[kHeld];

    Best best{-INFINITY, free};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const int row = i * kThreads + me;
        left[i] = kTaken;
        rating[i] = least[i] = 0;
        if (row < free) {
            rating[i] = choose::rated(ratings[row]);
            left[i] = held.rows[row * pitch + row] > kItself ? rating[i] * rating[i] + shape.mix : 0.0f;
            least[i] = kNothing * left[i] + static_cast<float>(shape.wanted()) * shape.epsilon;
            const Best candidate{rest(left[i], least[i]), row};
            best = ahead(candidate, best) ? candidate : best;
        }
    }
    best = block_best<kThreads>(best, slots);

    choose::write_protected<Policy>(out, shape);
    for (int turn = 0;; ++turn) {
        const int latest = best.place;
        if (shape.order == kByChoice && me == 0) {
            out[shape.protect + turn] = shape.protect + latest;
        }
        if (turn + 1 == shape.wanted()) {
            break;
        }
        for (int earlier = me; earlier < turn; earlier += kThreads) {
            of_latest[earlier] = held.rows[chosen[earlier] * pitch + latest];
        }
        __syncthreads();
        const float a = choose::rated(ratings[latest]);
        const float scale = best.value > 0 ? 1.0f / sqrtf(best.value + shape.epsilon) : 0.0f;
        float* latest_row = held.rows + latest * pitch;
        best = {-INFINITY, free};
        float part[kHeld];
        gram::read_row<Policy>(part, held, latest, free);
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            part[i] *= rating[i] * a + shape.mix;
        }
#pragma unroll kUnrolled
        for (int earlier = 0; earlier < turn; ++earlier) {
            const float factor = of_latest[earlier];
            float explained[kHeld];
            gram::read_row<Policy>(explained, held, chosen[earlier], free);
#pragma unroll
            for (int i = 0; i < kHeld; ++i) {
                part[i] -= factor * explained[i];
            }
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int row = i * kThreads + me;
            part[i] *= scale;
            if (row < free) {
                latest_row[row] = part[i];
            }
            left[i] = row == latest ? kTaken : left[i] - part[i] * part[i];
            if (left[i] != kTaken) {
                const Best candidate{rest(left[i], least[i]), row};
                best = ahead(candidate, best) ? candidate : best;
            }
        }
        if (me == 0) {
            chosen[turn] = latest;
        }
        best = block_best<kThreads>(best, slots);
    }
    if (shape.order == kByPosition) {
        choose::write_held_by_position<Policy>(
            out, shape, [&](int i, int row) { return left[i] == kTaken || row == best.place; });
    }
}

// Images by as many as their cosines fit into the workspace.
template <typename T, bool kWhole>
cudaError_t run(const T* metric, const float* importance, float* workspace, std::int64_t* index,
                DeterminantShape shape, cudaStream_t stream) {
    const int free = shape.free(), step = gram::at_once(shape.batch, free);
    const bool longer = free > gram::Policy<false>::kMostTokens;
    const auto kernel = longer ? choose<gram::Policy<true>> : choose<gram::Policy<false>>;
    return in_turns(shape, step, [=](std::int64_t first, DeterminantShape part) {
        cudaError_t state =
            gram::run<T, kWhole>(metric + first * shape.tokens * shape.width, workspace, part.batch,
                                 shape.tokens, shape.width, shape.protect, false, stream);
        if (state == cudaSuccess) {
            state =
                launch(kernel, dim3(static_cast<unsigned>(part.batch)), gram::Policy<true>::kThreads, stream,
                       importance + first * shape.tokens, workspace, index + first * shape.keep, part);
        }
        return state;
    });
}

}  // namespace determinant

inline std::size_t token_determinant_select_workspace(int batch, int tokens) {
    return gram::bytes_for(batch, tokens);
}

// metric [B,N,D] of element type `type`, importance [B,N] float32 -> index [B,K].
inline cudaError_t token_determinant_select(int type, const void* metric, const float* importance,
                                            std::int64_t* index, void* workspace, DeterminantShape shape,
                                            cudaStream_t stream) {
    static_assert(kTokenDeterminantSelectTokens <= gram::kMost, "every token has its cosines in memory");
    if (shape.tokens > kTokenDeterminantSelectTokens ||
        !(shape.epsilon >= 0 && shape.epsilon <= kMostEpsilon)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad = choose::check(type, shape, kNoLimit, metric, importance, index, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const bool whole = in_vectors<T>(shape.width, metric);
        const auto run = whole ? determinant::run<T, true> : determinant::run<T, false>;
        return run(static_cast<const T*>(metric), importance, static_cast<float*>(workspace), index, shape,
                   stream);
    });
}

}  // namespace tokenrt
