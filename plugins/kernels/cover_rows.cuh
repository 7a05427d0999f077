// TokenCoverSelect over the cosines of all pairs (gram.cuh): a gain reads one row of them.
#pragma once

#include "choose.cuh"
#include "gram.cuh"

namespace tokenrt {
namespace cover {

__device__ __forceinline__ float gain(float importance, float novelty, const ChooseShape& shape) {
    const float a = choose::rated(importance);
    return choose::gain(a, choose::weight_of(a, shape.power), novelty, shape.mix);
}

// What a token with these cosines adds to what is covered, added up over the block in an order that depends
// on neither: larger covers never make it larger, in floating point too. `sums` must be free: a barrier lies
// between two calls.
template <typename Policy>
__device__ __forceinline__ float added(const float (&cosine)[Policy::kHeld],
                                       const float (&covered)[Policy::kHeld],
                                       float (&sums)[Policy::kThreads / kWarp]) {
    float novelty = 0;
#pragma unroll
    for (int i = 0; i < Policy::kHeld; ++i) {
        novelty += fmaxf(cosine[i] - covered[i], 0.0f);
    }
    return block_sum<Policy::kThreads>(novelty, sums);
}

// The gains of all free tokens while none is chosen, where gram.cuh keeps a number a row: [n]. Grid: tokens,
// images.
template <typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    bounds_by_rows(const float* __restrict__ importance, float* __restrict__ workspace, ChooseShape shape) {
    __shared__ float sums[Policy::kThreads / kWarp];
    const int row = static_cast<int>(blockIdx.x), free = shape.free();
    const std::int64_t image = blockIdx.y;
    const gram::Held held = gram::held_by(workspace, image, free);
    float cosine[Policy::kHeld];
    const float covered[Policy::kHeld] = {};
    gram::read_row<Policy>(cosine, held, row, free);
    const float novelty = added<Policy>(cosine, covered, sums);
    if (threadIdx.x == 0) {
        held.nearest[row] = gain(importance[image * shape.tokens + shape.protect + row], novelty, shape);
    }
}

// One block an image; a thread holds what belongs to its tokens, and their cosines to the leader.
template <typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    choose_by_rows(const float* __restrict__ importance, float* __restrict__ workspace,
                   std::int64_t* __restrict__ index, ChooseShape shape) {
    __shared__ Best slots[Policy::kThreads / kWarp];
    __shared__ float sums[Policy::kThreads / kWarp];
    constexpr int kHeld = Policy::kHeld;
    constexpr float kTaken = -INFINITY;  // below every gain
    const int me = static_cast<int>(threadIdx.x), free = shape.free();
    const std::int64_t image = blockIdx.x;
    std::int64_t* out = index + image * shape.keep;
    const gram::Held held = gram::held_by(workspace, image, free);
    float bound[kHeld], covered[kHeld], lead[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const int row = i * Policy::kThreads + me;
        bound[i] = row < free ? held.nearest[row] : kTaken;
        covered[i] = lead[i] = 0;
    }

    choose::write_protected<Policy>(out, shape);
    for (int turn = 0; turn < shape.wanted(); ++turn) {
        Best today{-INFINITY, free};  // the leader of those whose gain is today's
        for (;;) {
            Best best{-INFINITY, free};
#pragma unroll
            for (int i = 0; i < kHeld; ++i) {
                const Best candidate{bound[i], i * Policy::kThreads + me};
                best = ahead(candidate, best) ? candidate : best;
            }
            best = block_best<Policy::kThreads>(best, slots);
            if (best.place == today.place) {
                break;
            }
            const int latest = best.place;
            float cosine[kHeld];
            gram::read_row<Policy>(cosine, held, latest, free);
            const float novelty = added<Policy>(cosine, covered, sums);
            const float a = importance[image * shape.tokens + shape.protect + latest];
            const Best fresh{gain(a, novelty, shape), latest};
            const bool leads = ahead(fresh, today);
            today = leads ? fresh : today;
#pragma unroll
            for (int i = 0; i < kHeld; ++i) {
                bound[i] = i * Policy::kThreads + me == latest ? fresh.value : bound[i];
                lead[i] = leads ? cosine[i] : lead[i];
            }
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            covered[i] = fmaxf(covered[i], lead[i]);
            bound[i] = i * Policy::kThreads + me == today.place ? kTaken : bound[i];
        }
        if (shape.order == kByChoice && me == 0) {
            out[shape.protect + turn] = shape.protect + today.place;
        }
        __syncthreads();
    }
    if (shape.order == kByPosition) {
        choose::write_held_by_position<Policy>(out, shape, [&](int i, int) { return bound[i] == kTaken; });
    }
}

// Images by as many as their cosines fit into the workspace.
template <typename T, bool kWhole>
cudaError_t run_by_rows(const T* metric, const float* importance, float* workspace, std::int64_t* index,
                        ChooseShape shape, cudaStream_t stream) {
    const int free = shape.free(), step = gram::at_once(shape.batch, free);
    const bool longer = free > gram::Policy<false>::kMostTokens;
    const auto bounds = longer ? bounds_by_rows<gram::Policy<true>> : bounds_by_rows<gram::Policy<false>>;
    const auto choose = longer ? choose_by_rows<gram::Policy<true>> : choose_by_rows<gram::Policy<false>>;
    constexpr unsigned kThreads = gram::Policy<true>::kThreads;
    return in_turns(shape, step, [=](std::int64_t first, ChooseShape part) {
        const dim3 images(static_cast<unsigned>(part.batch));
        const float* ratings = importance + first * shape.tokens;
        cudaError_t state =
            gram::run<T, kWhole>(metric + first * shape.tokens * shape.width, workspace, part.batch,
                                 shape.tokens, shape.width, shape.protect, false, stream);
        if (state == cudaSuccess) {
            state = launch(bounds, dim3(static_cast<unsigned>(free), images.x), kThreads, stream, ratings,
                           workspace, part);
        }
        if (state == cudaSuccess) {
            state = launch(choose, images, kThreads, stream, ratings, workspace, index + first * shape.keep,
                           part);
        }
        return state;
    });
}

}  // namespace cover
}  // namespace tokenrt
