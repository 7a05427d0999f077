// TokenScore of few rows: a pass over the keys for each, whose logits are kept.
//
// Division  1. few: a block takes a stretch of keys of one head and reads it once a row, eight lanes a key;
//           it writes the R logits of each and, for the stretch, their maximum and sum of exponentials.
//           2. few_mean: a block joins the stretches of every row once, then a thread a token adds up heads
//           and rows in order.
// Bytes     B H (N + R) D size, the keys of all rows but the first from cache, + 8 B H R N for the logits
//           (written, read).
// Bound     memory bandwidth, one pass over the keys; at 197 tokens and batch 1, latency.
#pragma once

#include "score.cuh"

namespace tokenrt {

// Short stretches fill a GPU; where there are many tokens, long ones leave fewer to join.
template <bool kLong>
struct FewPolicy {
    static constexpr int kThreads = 256;
    static constexpr int kBlocks = 2;                  // a multiprocessor must hold: 128 registers a thread
    static constexpr int kLanes = 8;                   // lanes that share a key: 128 bytes a load
    static constexpr int kStretch = kLong ? 256 : 64;  // keys a block takes
};
constexpr int kFewRows = 4, kUsualWidth = 1024;
constexpr int kFewLong = 1024;  // tokens, beyond which stretches are long

namespace score {

// kWidth: the most channels of a head, which bounds the shared memory of a block.
template <typename T, typename Policy, int kWidth, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    few(const T* __restrict__ queries, const T* __restrict__ keys, const float* __restrict__ bias,
        float* __restrict__ logits, float* __restrict__ parts, ScoreShape shape) {
    alignas(16) __shared__ float query[kWidth];
    __shared__ float tops[Policy::kThreads / kWarp], sums[Policy::kThreads / kWarp];
    constexpr int kVector = kWhole ? Pack<T>::kCount : 1, kStep = Policy::kLanes * kVector;
    constexpr int kKeys = Policy::kThreads / Policy::kLanes, kTurns = Policy::kStretch / kKeys;
    constexpr int kHeld = (kTurns + Policy::kLanes - 1) / Policy::kLanes;
    struct alignas(sizeof(T) * kVector) Vector {
        T item[kVector];
    };
    const long long image = blockIdx.z;
    const int head = static_cast<int>(blockIdx.y), me = static_cast<int>(threadIdx.x);
    const int first = static_cast<int>(blockIdx.x) * Policy::kStretch, part = me % Policy::kLanes;
    const T* key_rows = keys + (image * shape.heads + head) * shape.tokens * shape.width;
    for (int row = 0; row < shape.rows(); ++row) {
        const T* asking =
            queries + ((image * shape.heads + head) * shape.tokens + shape.first_row + row) * shape.width;
        const long long at = line(shape, image, head, row);
        for (int i = me; i < shape.width; i += Policy::kThreads) {
            query[i] = widened(asking[i]) * shape.scale;
        }
        __syncthreads();
        float held_logit[kHeld];  // the lanes of a key take turns in keeping its logit
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            held_logit[i] = -INFINITY;
        }
        float top = -INFINITY;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int token = first + turn * kKeys + me / Policy::kLanes;
            const bool exists = token < shape.tokens;
            float product = 0;
            for (int i = part * kVector; exists && i < shape.width; i += kStep) {
                const Vector held = *reinterpret_cast<const Vector*>(
                    key_rows + static_cast<long long>(token) * shape.width + i);
                alignas(16) float factor[kVector];
                load_floats<kVector>(factor, query + i);
#pragma unroll
                for (int j = 0; j < kVector; ++j) {
                    product += factor[j] * widened(held.item[j]);
                }
            }
            product = group_sum<Policy::kLanes>(product);
            if (part == turn % Policy::kLanes) {
                float logit = -INFINITY;
                if (exists) {
                    logit = product + bias_at(bias, shape, image, head, row, token);
                    logits[at * shape.tokens + token] = logit;
                }
                held_logit[turn / Policy::kLanes] = logit;
                top = fmaxf(top, logit);
            }
        }
        top = group_max<kWarp>(top);
        if (lane() == 0) {
            tops[warp()] = top;
        }
        __syncthreads();
        for (unsigned i = 0; i < Policy::kThreads / kWarp; ++i) {
            top = fmaxf(top, tops[i]);
        }
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            sum += weight(held_logit[i], top);
        }
        sum = group_sum<kWarp>(sum);
        if (lane() == 0) {
            sums[warp()] = sum;
        }
        __syncthreads();
        if (me == 0) {
            for (unsigned i = 1; i < Policy::kThreads / kWarp; ++i) {
                sum += sums[i];
            }
            parts[2 * (at * gridDim.x + blockIdx.x)] = top;
            parts[2 * (at * gridDim.x + blockIdx.x) + 1] = sum;
        }
        __syncthreads();
    }
}

static __global__ void __launch_bounds__(kMeanThreads)
    few_mean(const float* __restrict__ logits, const float* __restrict__ parts, float* __restrict__ mean,
             int stretches, ScoreShape shape) {
    __shared__ float tops[kMostHeads * kFewRows], sums[kMostHeads * kFewRows];  // of whole rows
    const long long image = blockIdx.y, first = line(shape, image, 0, 0);
    const int rows = shape.heads * shape.rows();
    for (int row = static_cast<int>(threadIdx.x); row < rows; row += kMeanThreads) {
        const float* part = parts + 2 * (first + row) * stretches;
        float top = part[0], sum = part[1];
        for (int i = 1; i < stretches; ++i) {
            join(top, sum, part[2 * i], part[2 * i + 1]);
        }
        tops[row] = top;
        sums[row] = sum;
    }
    __syncthreads();
    const int token = static_cast<int>(blockIdx.x * kMeanThreads + threadIdx.x);
    if (token < shape.tokens) {
        float received = 0;
        for (int row = 0; row < rows; ++row) {
            received += weight(logits[(first + row) * shape.tokens + token], tops[row]) / sums[row];
        }
        mean[image * shape.tokens + token] = received / static_cast<float>(rows);
    }
}

inline std::int64_t stretches_of(int tokens) {
    return ceil_div(tokens, tokens > kFewLong ? FewPolicy<true>::kStretch : FewPolicy<false>::kStretch);
}

// Floats of a head for this many tokens or fewer.
inline std::size_t few_floats(const ScoreShape& shape) {
    const std::int64_t stretches = max(stretches_of(min(shape.tokens, kFewLong)), stretches_of(shape.tokens));
    return static_cast<std::size_t>(shape.rows() * (shape.tokens + 2 * stretches));
}

template <typename T, typename Policy, bool kWhole>
cudaError_t run_few_by(const T* queries, const T* keys, const float* bias, float* mean, float* workspace,
                       ScoreShape shape, cudaStream_t stream) {
    const dim3 grid = over(shape.tokens, Policy::kStretch, shape.heads, shape.batch);
    float* parts = workspace + line(shape, shape.batch, 0, 0) * shape.tokens;
    const cudaError_t state = launch(
        shape.width <= kUsualWidth ? few<T, Policy, kUsualWidth, kWhole> : few<T, Policy, kMostWidth, kWhole>,
        grid, Policy::kThreads, stream, queries, keys, bias, workspace, parts, shape);
    if (state != cudaSuccess) {
        return state;
    }
    return launch(few_mean, over(shape.tokens, kMeanThreads, shape.batch, 1), kMeanThreads, stream, workspace,
                  parts, mean, static_cast<int>(grid.x), shape);
}

template <typename T, bool kWhole>
cudaError_t run_few(const T* queries, const T* keys, const float* bias, float* mean, float* workspace,
                    ScoreShape shape, cudaStream_t stream) {
    const auto run = shape.tokens > kFewLong ? run_few_by<T, FewPolicy<true>, kWhole>
                                             : run_few_by<T, FewPolicy<false>, kWhole>;
    return run(queries, keys, bias, mean, workspace, shape, stream);
}

}  // namespace score
}  // namespace tokenrt
