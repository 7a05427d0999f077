// TokenGreedySelect over the cosines of all pairs (gram.cuh): a turn reads one row of them.
#pragma once

#include "choose.cuh"
#include "gram.cuh"

namespace tokenrt {

struct GreedyShape : ChooseShape {
    int objective, seed;
};

constexpr int kMaxMin = 0, kMaxSum = 1;
constexpr int kFromNothing = 0, kMostImportant = 1, kMostIsolated = 2;

namespace greedy {

constexpr float kBelow = gram::kBelow;  // the similarity to nothing

// The state of a token that is chosen.
__device__ __forceinline__ float taken() {
    return INFINITY;
}

// One block an image; a thread holds the state of its tokens. A turn is one row from cache and one barrier.
template <typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    choose_by_rows(const float* __restrict__ importance, float* __restrict__ workspace,
                   std::int64_t* __restrict__ index, GreedyShape shape) {
    __shared__ Best slots[2][Policy::kThreads / kWarp];  // a turn's are read while the next one's are written
    constexpr int kHeld = Policy::kHeld;
    const int me = static_cast<int>(threadIdx.x), free = shape.free();
    const std::int64_t image = blockIdx.x;
    const float* ratings = importance + image * shape.tokens + shape.protect;
    std::int64_t* out = index + image * shape.keep;
    const gram::Held held = gram::held_by(workspace, image, free);
    const float base_novelty = shape.objective == kMaxSum ? 0.0f : 1.0f;
    float state[kHeld], weight[kHeld], rating[kHeld];

    Best best{-INFINITY, free};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        const int row = i * Policy::kThreads + me;
        state[i] = taken();
        weight[i] = rating[i] = 0;
        if (row < free) {
            const float a = choose::rated(ratings[row]);
            rating[i] = a;
            weight[i] = choose::weight_of(a, shape.power);
            state[i] = shape.objective == kMaxSum ? 0.0f : kBelow;
            float novelty = base_novelty;
            if (shape.seed == kMostIsolated) {
                float nearest = kBelow;
                for (int stretch = 0; stretch < gram::stretches_of(free); ++stretch) {
                    nearest =
                        fmaxf(nearest,
                              held.nearest[static_cast<std::int64_t>(stretch) * gram::pitch_of(free) + row]);
                }
                novelty = 1.0f - nearest;
            }
            const float value =
                shape.seed == kMostImportant ? a : choose::gain(a, weight[i], novelty, shape.mix);
            best = ahead(Best{value, row}, best) ? Best{value, row} : best;
        }
    }
    best = block_best<Policy::kThreads>(best, slots[0]);

    choose::write_protected<Policy>(out, shape);
    for (int turn = 1;; ++turn) {
        const int latest = best.place;
        if (shape.order == kByChoice && me == 0) {
            out[shape.protect + turn - 1] = shape.protect + latest;
        }
        if (turn == shape.wanted()) {
            break;
        }
        float cosine[kHeld];
        gram::read_row<Policy>(cosine, held, latest, free);
        best = {-INFINITY, free};
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int row = i * Policy::kThreads + me;
            if (row == latest) {
                state[i] = taken();
            }
            if (state[i] != taken()) {
                state[i] = shape.objective == kMaxSum ? state[i] + cosine[i] : fmaxf(state[i], cosine[i]);
                const float value = choose::gain(rating[i], weight[i], base_novelty - state[i], shape.mix);
                best = ahead(Best{value, row}, best) ? Best{value, row} : best;
            }
        }
        best = block_best<Policy::kThreads>(best, slots[turn % 2]);
    }
    if (shape.order == kByPosition) {
        choose::write_held_by_position<Policy>(
            out, shape, [&](int i, int row) { return state[i] == taken() || row == best.place; });
    }
}

// Images by as many as their cosines fit into the workspace.
template <typename T, bool kWhole>
cudaError_t run_by_rows(const T* metric, const float* importance, float* workspace, std::int64_t* index,
                        GreedyShape shape, cudaStream_t stream) {
    const int free = shape.free(), step = gram::at_once(shape.batch, free);
    const bool longer = free > gram::Policy<false>::kMostTokens;
    const auto choose = longer ? choose_by_rows<gram::Policy<true>> : choose_by_rows<gram::Policy<false>>;
    return in_turns(shape, step, [=](std::int64_t first, GreedyShape part) {
        cudaError_t state = gram::run<T, kWhole>(metric + first * shape.tokens * shape.width, workspace,
                                                 part.batch, shape.tokens, shape.width, shape.protect,
                                                 shape.seed == kMostIsolated, stream);
        if (state == cudaSuccess) {
            state =
                launch(choose, dim3(static_cast<unsigned>(part.batch)), gram::Policy<true>::kThreads, stream,
                       importance + first * shape.tokens, workspace, index + first * shape.keep, part);
        }
        return state;
    });
}

}  // namespace greedy
}  // namespace tokenrt
