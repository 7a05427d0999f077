// What every kernel file shares: element types, limits, argument checks, 16-byte access, launching, small
// warp helpers.
//
// Contract of every launcher: returns cudaError_t, takes a stream, allocates nothing, never synchronises;
// arguments it cannot serve give an error before anything is launched, so that nothing is written. Workspace
// is the caller's.
#pragma once

#include "../common/limits.h"
#include "runtime.cuh"

namespace tokenrt {

constexpr std::size_t kAlignment = 16;
constexpr unsigned kWarp = 32;
constexpr unsigned kEveryLane = 0xffffffffu;

// Element types by their ONNX numbers.
constexpr int kFloat = 1, kHalf = 10, kBfloat16 = 16;

__device__ __forceinline__ float widened(float value) {
    return value;
}
__device__ __forceinline__ float widened(__half value) {
    return __half2float(value);
}
__device__ __forceinline__ float widened(__nv_bfloat16 value) {
    return __bfloat162float(value);
}

template <typename T>
__device__ __forceinline__ T narrowed(float value);
template <>
__device__ __forceinline__ float narrowed<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ __half narrowed<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrowed<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// Elements side by side, as many as make 16 bytes where nothing else is said: one load or store of a GPU for
// each 16 bytes.
template <typename T, int kItems = 16 / sizeof(T)>
struct alignas(16) Pack {
    static constexpr int kCount = kItems;
    T item[kItems];
};

// Runs `body` with a null pointer of the element type that `type` numbers.
template <typename Body>
cudaError_t with_type(int type, Body body) {
    switch (type) {
        case kFloat:
            return body(static_cast<float*>(nullptr));
        case kHalf:
            return body(static_cast<__half*>(nullptr));
        case kBfloat16:
            return body(static_cast<__nv_bfloat16*>(nullptr));
        default:
            return cudaErrorNotSupported;
    }
}

constexpr std::size_t bytes_of(int type) {
    return type == kFloat ? 4 : 2;
}

inline bool within(long long value, long long least, long long most) {
    return value >= least && value <= most;
}

// Whether so many rows of so many channels can be counted in 31 bits.
inline bool countable(long long rows, long long width) {
    return rows >= 1 && width >= 1 && width <= kMostElements && rows * width <= kMostElements;
}

// Whether the kernels take so many images, tokens and channels, and K of the tokens.
template <typename Shape>
bool within_limits(const Shape& shape) {
    return within(shape.batch, 1, kMostBatch) && within(shape.tokens, 1, kMostTokens) &&
           countable(shape.tokens, shape.width) && within(shape.keep, 1, shape.tokens);
}

// A tensor of the type that `type` numbers, for check_pointers.
struct Rows {
    const void* start;
    std::size_t bytes;
};

inline Rows rows_of(int type, const void* start) {
    return {start, bytes_of(type)};
}

// Whether a tensor begins on an element of its own: nothing promises that it begins on 16 bytes, since it may
// be a part of a larger one. Memory without a type is a workspace, of which this asks 16 bytes.
inline bool starts_on(const void* start, std::size_t bytes) {
    return reinterpret_cast<std::uintptr_t>(start) % bytes == 0;
}
inline bool is_there(const void* start) {
    return start != nullptr;
}
inline bool is_there(Rows rows) {
    return rows.start != nullptr;
}
inline bool is_straight(const void* workspace) {
    return starts_on(workspace, kAlignment);
}
inline bool is_straight(Rows rows) {
    return starts_on(rows.start, rows.bytes);
}
template <typename T>
bool is_straight(const T* elements) {
    return starts_on(elements, alignof(T));
}

// What is wrong with these tensors: each must be there and start on an element.
template <typename... Tensors>
cudaError_t check_pointers(Tensors... tensors) {
    const bool missing = !(... && is_there(tensors)), askew = !(... && is_straight(tensors));
    return missing ? cudaErrorInvalidValue : askew ? cudaErrorMisalignedAddress : cudaSuccess;
}

// Whether the rows of these tensors, of `width` elements of T each, are whole 16-byte vectors.
template <typename T, typename... Starts>
bool in_vectors(int width, const Starts*... starts) {
    return width * sizeof(T) % kAlignment == 0 && (... && starts_on(starts, kAlignment));
}

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, unsigned threads, cudaStream_t stream, A... arguments) {
    const cudaLaunchConfig_t how{grid, dim3(threads), 0, stream, nullptr, 0};
    return cudaLaunchKernelEx(&how, kernel, static_cast<P>(arguments)...);
}

// Runs run(first, part) for `step` images after `step` images, as many as a workspace holds at once: `part`
// is the shape of these, and `first` the first of them.
template <typename Shape, typename Run>
cudaError_t in_turns(Shape shape, int step, Run run) {
    const int batch = shape.batch;
    cudaError_t state = cudaSuccess;
    for (std::int64_t first = 0; first < batch && state == cudaSuccess; first += step) {
        shape.batch = min(step, batch - static_cast<int>(first));
        state = run(first, shape);
    }
    return state;
}

constexpr long long ceil_div(long long count, long long by) {
    return (count + by - 1) / by;
}

__device__ __forceinline__ unsigned lane() {
    return threadIdx.x % kWarp;
}
__device__ __forceinline__ unsigned warp() {
    return threadIdx.x / kWarp;
}
__device__ __forceinline__ unsigned lanes_before() {
    return (1u << lane()) - 1u;
}

// Copies kVector floats, by 16 bytes where they are that many: `from` then starts on 16 bytes.
template <int kVector>
__device__ __forceinline__ void load_floats(float (&to)[kVector], const float* from) {
    if constexpr (kVector % 4 == 0) {
#pragma unroll
        for (int i = 0; i < kVector; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(from + i);
            to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            to[i] = from[i];
        }
    }
}

// 0 for what is NaN, infinite or of a magnitude whose square a sum of many could not hold.
constexpr float kLargest = 1e15f;

__device__ __forceinline__ float finite(float value) {
    return fabsf(value) < kLargest ? value : 0.0f;
}

// a b + c, rounded once, for sums that several kernels must agree on to the bit: where a compiler is free to
// join products and sums, it does so here and not there. A host without such an instruction rounds twice,
// everywhere.
__device__ __forceinline__ float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// The length of a row and the cosine of two: a zero row, and what is no number, count as 0.
constexpr float kLeastSquare = 1e-38f;

__device__ __forceinline__ float length_of(float square) {
    return sqrtf(fmaxf(square, kLeastSquare));
}
__device__ __forceinline__ float cosine_of(float product, float left_length, float right_length) {
    const float cosine = product / left_length / right_length;
    return isnan(cosine) ? 0.0f : cosine;
}

// Sum over the aligned group of `kLanes` lanes, in a fixed order; every lane gets it.
template <int kLanes>
__device__ __forceinline__ float group_sum(float value) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(kEveryLane, value, step);
    }
    return value;
}

// Sum over the threads of a block, in a fixed order; every thread gets it. `sums` must be free: a barrier
// lies between two calls.
template <int kThreads>
__device__ __forceinline__ float block_sum(float value, float (&sums)[kThreads / kWarp]) {
    value = group_sum<kWarp>(value);
    if (lane() == 0) {
        sums[warp()] = value;
    }
    __syncthreads();
    value = 0;
    for (const float sum : sums) {
        value += sum;
    }
    return value;
}

template <int kLanes>
__device__ __forceinline__ float group_max(float value) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(kEveryLane, value, step));
    }
    return value;
}

}  // namespace tokenrt
