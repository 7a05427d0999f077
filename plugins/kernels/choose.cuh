// What kernels share that choose K of N tokens one after the other: the options, the gain of a token,
// products with the row chosen last, and writing what was chosen.
//
// Division  one block an image runs the whole loop. Eight lanes share a row and take four rows at a time, so
//           that a thread has four 16-byte loads in flight and reads the other row, in shared memory, once
//           for the four. What belongs to a row is read and written by one lane only.
#pragma once

#include "order.cuh"

namespace tokenrt {

struct ChoosePolicy {
    static constexpr int kThreads = 512;
    static constexpr int kBlocks = 2;  // a multiprocessor must hold: 64 registers a thread
    static constexpr int kLanes = 8;   // lanes that share a row: 128 bytes a load
    static constexpr int kRows = 4;    // rows they take at a time
};

struct ChooseShape {
    int batch, tokens, width, keep, protect, order;
    float power, mix;
    __host__ __device__ int free() const { return tokens - protect; }
    __host__ __device__ int wanted() const { return keep - protect; }
};

constexpr int kByChoice = 1;
constexpr long long kNoLimit = 1LL << 62;  // of work: what is chosen from a row of cosines a turn is short
constexpr float kMostImportance = 1e9f, kMostPower = 4.0f;

namespace choose {

__device__ __forceinline__ float rated(float importance) {
    return fminf(fmaxf(importance, 0.0f), kMostImportance);
}

// a^power, exactly for the powers that are usual.
__device__ __forceinline__ float weight_of(float a, float power) {
    return power == 0 ? 1.0f : power == 1 ? a : powf(a, power);
}

// The gain a^power * novelty + mix * a of a token of importance `a`, never NaN.
__device__ __forceinline__ float gain(float a, float weight, float novelty, float mix) {
    return fmaxf(weight * novelty + mix * a, -FLT_MAX);
}

// product[r] = row (first + r) . `other`, or . itself where `other` is null; every lane of the group gets it.
template <typename T, typename Policy, bool kWhole>
__device__ __forceinline__ void products(const T* rows, int first, int count, int width, const float* other,
                                         float (&product)[Policy::kRows]) {
    constexpr int kVector = kWhole ? Pack<T>::kCount : 1, kRows = Policy::kRows;
    struct alignas(sizeof(T) * kVector) Vector {
        T item[kVector];
    };
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        product[r] = 0;
    }
    const T* start = rows + static_cast<std::int64_t>(first) * width;
    for (int i = static_cast<int>(threadIdx.x) % Policy::kLanes * kVector; i < width;
         i += Policy::kLanes * kVector) {
        Vector held[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            held[r] = first + r < count
                          ? *reinterpret_cast<const Vector*>(start + static_cast<std::int64_t>(r) * width + i)
                          : Vector{};
        }
        alignas(16) float factor[kVector] = {};
        if (other != nullptr) {
            load_floats<kVector>(factor, other + i);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                const float value = widened(held[r].item[j]);
                product[r] += value * (other == nullptr ? value : factor[j]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        product[r] = group_sum<Policy::kLanes>(product[r]);
    }
}

// The product of the row that is this lane's own: lane r of a group owns its row r.
template <typename Policy>
__device__ __forceinline__ float own_of(const float (&product)[Policy::kRows], int part) {
    float own = product[0];
#pragma unroll
    for (int r = 1; r < Policy::kRows; ++r) {
        own = part == r ? product[r] : own;
    }
    return own;
}

// Widens the row chosen last into shared memory; a barrier must follow.
template <typename T, typename Policy>
__device__ __forceinline__ void widen_row(float* to, const T* row, int width) {
    for (int i = static_cast<int>(threadIdx.x); i < width; i += Policy::kThreads) {
        to[i] = widened(row[i]);
    }
}

// The protected tokens, which stand first.
template <typename Policy>
__device__ __forceinline__ void write_protected(std::int64_t* out, const ChooseShape& shape) {
    for (int i = static_cast<int>(threadIdx.x); i < shape.protect; i += Policy::kThreads) {
        out[i] = i;
    }
}

// The free tokens i with kept(i), by position.
template <typename Policy, typename Kept>
__device__ __forceinline__ void write_by_position(std::int64_t* out, const ChooseShape& shape, Kept kept) {
    Numbers running{0, 0};
    for (int base = 0; base < shape.free(); base += Policy::kThreads) {
        const int i = base + static_cast<int>(threadIdx.x);
        const bool stays = i < shape.free() && kept(i);
        const int before = number<Policy::kThreads>(stays, false, running).first;
        if (stays) {
            out[shape.protect + before] = shape.protect + i;
        }
    }
}

// The same where a thread holds what belongs to its tokens in registers: kept(i, row) for entry i, token
// `row`.
template <typename Policy, typename Kept>
__device__ __forceinline__ void write_held_by_position(std::int64_t* out, const ChooseShape& shape,
                                                       Kept kept) {
    Numbers running{0, 0};
#pragma unroll
    for (int i = 0; i < Policy::kHeld; ++i) {
        const int row = i * Policy::kThreads + static_cast<int>(threadIdx.x);
        const bool stays = row < shape.free() && kept(i, row);
        const int before = number<Policy::kThreads>(stays, false, running).first;
        if (stays) {
            out[shape.protect + before] = shape.protect + row;
        }
    }
}

// What is wrong with the arguments of a launcher.
inline cudaError_t check(int type, const ChooseShape& shape, long long most_work, const void* metric,
                         const float* importance, const std::int64_t* index, const void* workspace) {
    if (!within_limits(shape) || shape.width > kMostWidth ||
        static_cast<long long>(shape.tokens) * shape.width > most_work / shape.keep ||
        !within(shape.protect, 0, shape.keep - 1) || !within(shape.order, kByPosition, kByChoice) ||
        !(shape.power >= 0 && shape.power <= kMostPower) ||
        !(shape.mix >= 0 && shape.mix <= kMostImportance)) {
        return cudaErrorInvalidValue;
    }
    return check_pointers(rows_of(type, metric), importance, index, workspace);
}

}  // namespace choose

}  // namespace tokenrt
