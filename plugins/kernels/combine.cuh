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

// A survivor while a warp merges tokens into it: its stretch of channels from lane() * kVector on, of which
// `channels` exist. kVector: elements a lane loads at a time, 16 bytes' worth or 1. Sums stay in registers.
template <typename T, int kVector, int kVectors>
class Survivor {
  public:
    static constexpr int kStretch = static_cast<int>(kWarp) * kVectors * kVector;

    // `row`: the survivor's, or null where there is none; from here on pointers begin at the stretch.
    __device__ __forceinline__ Survivor(const T* row, float size, int channels)
        : channels_(channels), own_(size), mass_(size) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            near_[i] = row != nullptr && channel(i) < channels_ ? at(row, i) : Vector{};
#pragma unroll
            for (int j = 0; j < kVector; ++j) {
                sum_[i][j] = own_ > 0 ? own_ * widened(near_[i].item[j]) : 0.0f;
            }
        }
    }

    // A token of no size counts for nothing. Tokens come by ascending r, so that sums never depend on the
    // run.
    __device__ __forceinline__ void add(const T* row, float size) {
        if (!(size > 0)) {
            return;
        }
        mass_ += size;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            if (channel(i) < channels_) {
                const Vector far = at(row, i);
#pragma unroll
                for (int j = 0; j < kVector; ++j) {
                    const float value = widened(far.item[j]);
                    sum_[i][j] += size * value;
                    differs_ |= value == widened(near_[i].item[j]) ? 0u : 1u << (i * kVector + j);
                }
            }
        }
    }

    // The mean; the survivor itself, bit for bit, where nothing came or all that came was equal to it.
    __device__ __forceinline__ void write(T* row) const {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            if (channel(i) < channels_) {
                Vector out = near_[i];
#pragma unroll
                for (int j = 0; j < kVector; ++j) {
                    if (mass_ != own_ && (differs_ >> (i * kVector + j) & 1u) != 0) {
                        out.item[j] = narrowed<T>(sum_[i][j] / mass_);
                    }
                }
                *reinterpret_cast<Vector*>(row + channel(i)) = out;
            }
        }
    }

    __device__ __forceinline__ float mass() const { return mass_; }

  private:
    struct alignas(sizeof(T) * kVector) Vector {
        T item[kVector];
    };
    __device__ static __forceinline__ int channel(int i) {
        return (i * static_cast<int>(kWarp) + static_cast<int>(lane())) * kVector;
    }
    __device__ static __forceinline__ Vector at(const T* row, int i) {
        return *reinterpret_cast<const Vector*>(row + channel(i));
    }

    Vector near_[kVectors];
    float sum_[kVectors][kVector];
    unsigned differs_ = 0;  // one bit an element: something merged into it is not equal to the survivor
    int channels_;
    float own_, mass_;
};

// One slot merged by one warp: the survivor at `place` and every r of `count` that goes there, which is
// from(r). Returns its size.
template <typename Survivor, typename T, typename Goes, typename From>
__device__ __forceinline__ float merge_slot(const T* rows, const float* __restrict__ sizes, int place,
                                            int width, int first, int count, Goes goes, From from, T* out) {
    rows += first;
    Survivor own(rows + static_cast<std::int64_t>(place) * width, sizes[place], width - first);
    for (int part = 0; part < count; part += static_cast<int>(kWarp)) {
        const int r = part + static_cast<int>(lane());
        const bool comes = r < count && goes(r);
        for (unsigned left = __ballot_sync(kEveryLane, comes); left != 0; left &= left - 1) {
            const std::int64_t other = from(part + __ffs(left) - 1);
            own.add(rows + other * width, sizes[other]);
        }
    }
    own.write(out + first);
    return own.mass();
}

// What one block merges.
template <int kVector, typename Policy, typename T>
__device__ __forceinline__ void merge_block(const T* __restrict__ tokens, const float* __restrict__ size,
                                            const std::int64_t* __restrict__ keep,
                                            const std::int64_t* __restrict__ source,
                                            const std::int64_t* __restrict__ destination,
                                            T* __restrict__ merged, float* __restrict__ total,
                                            const CombineShape& shape) {
    using Own = Survivor<T, kVector, Policy::kVectors>;
    __shared__ int staged[Policy::kTile];
    constexpr int kWarps = Policy::kThreads / static_cast<int>(kWarp);
    const std::int64_t image = blockIdx.z;
    const int first = static_cast<int>(blockIdx.y) * Own::kStretch;
    const T* rows = tokens + image * shape.tokens * shape.width + first;
    const float* sizes = size + image * shape.tokens;
    const std::int64_t* sources = source + image * shape.remove;
    const std::int64_t* destinations = destination + image * shape.remove;
    const int slot = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(warp());
    const bool mine = slot < shape.keep;
    const std::int64_t place = mine ? keep[image * shape.keep + slot] : -1;
    const bool exists = place >= 0 && place < shape.tokens;
    Own survivor(exists ? rows + place * shape.width : nullptr, exists ? sizes[place] : 0.0f,
                 shape.width - first);
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
                if (from >= 0 && from < shape.tokens) {
                    survivor.add(rows + from * shape.width, sizes[from]);
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
        total[row] = survivor.mass();
    }
    survivor.write(merged + row * shape.width + first);
}

}  // namespace combine

}  // namespace tokenrt
