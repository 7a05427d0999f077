// Merging into some survivors and a stretch of channels, by one block.
#pragma once

#include "common.cuh"

namespace tokenrt {

struct CombinePolicy {
    static constexpr int kThreads = 256;
    static constexpr int kBlocks = 2;   // a multiprocessor must hold: 128 registers a thread
    static constexpr int kTile = 1024;  // destinations staged at a time, 4 bytes each
    static constexpr int kVectors = 2;  // 16-byte vectors a lane holds; accumulators stay in registers
};

struct CombineShape {
    int batch, tokens, width, keep, remove;
};

namespace combine {

// What one block merges. kVector: elements a lane loads at a time, 16 bytes' worth or 1.
template <int kVector, typename Policy, typename T>
__device__ __forceinline__ void merge_block(const T* __restrict__ tokens, const float* __restrict__ size,
                                            const std::int64_t* __restrict__ keep,
                                            const std::int64_t* __restrict__ source,
                                            const std::int64_t* __restrict__ destination,
                                            T* __restrict__ merged, float* __restrict__ total,
                                            const CombineShape& shape) {
    struct alignas(sizeof(T) * kVector) Vector {
        T item[kVector];
    };
    __shared__ int staged[Policy::kTile];
    constexpr int kWarps = Policy::kThreads / static_cast<int>(kWarp);
    constexpr int kStretch = static_cast<int>(kWarp) * Policy::kVectors * kVector;
    const std::int64_t image = blockIdx.z;
    const T* rows = tokens + image * shape.tokens * shape.width;
    const float* sizes = size + image * shape.tokens;
    const std::int64_t* sources = source + image * shape.remove;
    const std::int64_t* destinations = destination + image * shape.remove;
    const int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(warp());
    const int first = static_cast<int>(blockIdx.y) * kStretch + static_cast<int>(lane()) * kVector;
    const bool mine = slot < shape.keep;
    const std::int64_t place = mine ? keep[image * shape.keep + slot] : -1;
    const bool exists = place >= 0 && place < shape.tokens;

    const float own = exists ? sizes[place] : 0.0f;
    float mass = own;
    Vector near[Policy::kVectors];
    float sum[Policy::kVectors][kVector];
    unsigned differs = 0;  // one bit an element: something merged into it is not equal to the survivor
#pragma unroll
    for (int i = 0; i < Policy::kVectors; ++i) {
        const int channel = first + i * static_cast<int>(kWarp) * kVector;
        near[i] = exists && channel < shape.width
                      ? *reinterpret_cast<const Vector*>(rows + place * shape.width + channel)
                      : Vector{};
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
            sum[i][j] = own > 0 ? own * widened(near[i].item[j]) : 0.0f;
        }
    }
    for (int base = 0; base < shape.remove; base += Policy::kTile) {
        const int length = min(Policy::kTile, shape.remove - base);
        for (int i = static_cast<int>(threadIdx.x); i < Policy::kTile; i += Policy::kThreads) {
            const std::int64_t to = i < length ? destinations[base + i] : -1;
            staged[i] = to >= 0 && to < shape.keep ? static_cast<int>(to) : -1;
        }
        __syncthreads();
        for (int part = 0; part < length; part += static_cast<int>(kWarp)) {
            const bool comes = mine && staged[part + static_cast<int>(lane())] == slot;
            for (unsigned left = __ballot_sync(kEveryLane, comes); left != 0; left &= left - 1) {
                const std::int64_t from = sources[base + part + __ffs(left) - 1];
                const float weight = from >= 0 && from < shape.tokens ? sizes[from] : 0.0f;
                if (!(weight > 0)) {
                    continue;
                }
                mass += weight;
#pragma unroll
                for (int i = 0; i < Policy::kVectors; ++i) {
                    const int channel = first + i * static_cast<int>(kWarp) * kVector;
                    if (channel < shape.width) {
                        const Vector far =
                            *reinterpret_cast<const Vector*>(rows + from * shape.width + channel);
#pragma unroll
                        for (int j = 0; j < kVector; ++j) {
                            const float value = widened(far.item[j]);
                            sum[i][j] += weight * value;
                            differs |= value == widened(near[i].item[j]) ? 0u : 1u << (i * kVector + j);
                        }
                    }
                }
            }
        }
        __syncthreads();
    }
    if (!mine) {
        return;
    }
    const std::int64_t row = image * shape.keep + slot;
    if (blockIdx.y == 0 && lane() == 0) {
        total[row] = mass;
    }
#pragma unroll
    for (int i = 0; i < Policy::kVectors; ++i) {
        const int channel = first + i * static_cast<int>(kWarp) * kVector;
        if (channel < shape.width) {
            Vector out = near[i];
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                if (mass != own && (differs >> (i * kVector + j) & 1u) != 0) {
                    out.item[j] = narrowed<T>(sum[i][j] / mass);
                }
            }
            *reinterpret_cast<Vector*>(merged + row * shape.width + channel) = out;
        }
    }
}

}  // namespace combine

}  // namespace tokenrt
