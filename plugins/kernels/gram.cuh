// The cosines of all pairs of an image's free tokens, in memory: what choosing one token after the other
// reads a row a turn of.
//
// Division  a tile of pairs a block (stream.cuh), halves on tensor cores where their rows are whole vectors,
//           the others in float32 (tile.cuh). A row's cosines stand side by side, rows begin on 16 bytes.
// Bytes     B * 4 N^2, of at most kMost tokens, and of as many images at once as kMostBytes hold; the
//           others take their turn in launches of their own.
// Bound     arithmetic: 2 B N^2 D operations on tensor cores or in fp32, by (N / tile)^2 blocks an image.
// Rounding  a cosine errs by what a float32 sum of D products does, on tensor cores by up to three times that
//           (filter.cuh has the bound); equal tokens have equal cosines, as far as a core's sums do not
//           depend on where a row stands. So gains that differ by less may be chosen from either way.
#pragma once

#include "stream.cuh"

namespace tokenrt {
namespace gram {

constexpr int kMost = 4096;                               // free tokens of an image: 64 MiB
constexpr int kLarge = 1024;                              // from so many on, larger tiles save loads
constexpr std::size_t kMostBytes = std::size_t{1} << 28;  // of all images at once
constexpr float kBelow = -2.0f;                           // below every cosine

// Columns of a row in memory, and those of a tile.
__host__ __device__ constexpr int pitch_of(int free) {
    return (free + 3) / 4 * 4;
}
// Columns that share a number of `nearest`.
constexpr int kStretch = 32;
__host__ __device__ constexpr int stretches_of(int free) {
    return (free + kStretch - 1) / kStretch;
}
constexpr int tile_of(int free, bool whole) {
    return whole && free >= kLarge ? 64 : 32;
}
// Floats of an image: its rows, and for each stretch of columns the largest cosine of each row to another.
__host__ __device__ constexpr std::int64_t floats_of(int free) {
    return static_cast<std::int64_t>(pitch_of(free)) * (free + stretches_of(free));
}
inline int at_once(int batch, int free) {
    const std::size_t most = kMostBytes / (sizeof(float) * static_cast<std::size_t>(floats_of(free)));
    return static_cast<std::size_t>(batch) < most ? batch : static_cast<int>(most);
}
// Enough for `tokens` and for any fewer of them, in any smaller batch.
inline std::size_t bytes_for(int batch, int tokens) {
    const std::size_t all =
        sizeof(float) * static_cast<std::size_t>(batch) * floats_of(tokens < kMost ? tokens : kMost);
    return all < kMostBytes ? all : kMostBytes;
}
static_assert(sizeof(float) * static_cast<std::size_t>(floats_of(kMost)) <= kMostBytes, "one image fits");

// Where the parts of an image lie.
struct Held {
    float *rows, *nearest;
};
__host__ __device__ inline Held held_by(float* workspace, std::int64_t image, int free) {
    float* start = workspace + image * floats_of(free);
    return {start, start + static_cast<std::int64_t>(free) * pitch_of(free)};
}

// rows [n,n]: cosine (i, j) of free tokens i and j, divided by the larger length first, so that (j, i) is the
// same to the bit: two tokens that are each other's nearest tie. nearest [stretches,n], where asked for: the
// largest cosine of each row to another token in one stretch of columns. Grid: tiles of columns, of rows,
// images.
template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    cosines(const T* __restrict__ metric, float* __restrict__ workspace, int tokens, int width, int protect,
            bool nearest) {
    using Form = TilesFor<T, Policy, kWhole>;
    constexpr int kTogether = Form::kTogether, kLanes = kStretch / Form::kColumns;
    struct alignas(sizeof(float) * kTogether) Together {
        float item[kTogether];
    };
    __shared__ typename Form::Shared shared;
    const std::int64_t image = blockIdx.z;
    const int column = static_cast<int>(blockIdx.x) * Policy::kTile, free = tokens - protect;
    const int row = static_cast<int>(blockIdx.y) * Policy::kTile;
    const T* rows = metric + (image * tokens + protect) * width;
    const Held held = held_by(workspace, image, free);
    const auto row_at = [=](int i) {
        return i < free ? rows + static_cast<std::int64_t>(i) * width : nullptr;
    };
    const auto store = [&](int, const typename Form::Products& products) {
        float lengths[Form::kColumns];
#pragma unroll
        for (int j = 0; j < Form::kColumns; ++j) {
            lengths[j] = length_of(shared.right_square[Form::column(j)]);
        }
#pragma unroll
        for (int i = 0; i < Form::kRows; ++i) {
            const int own = row + Form::row(i);
            const float length = length_of(shared.left_square[Form::row(i)]);
            float highest = kBelow;
#pragma unroll
            for (int j = 0; j < Form::kColumns; j += kTogether) {
                const int first = column + Form::column(j);
                Together cosines;
#pragma unroll
                for (int k = 0; k < kTogether; ++k) {
                    const float other = lengths[j + k];
                    cosines.item[k] =
                        cosine_of(products[i][j + k], fmaxf(other, length), fminf(other, length));
                    const bool counts = first + k < free && first + k != own;
                    highest = counts ? fmaxf(highest, cosines.item[k]) : highest;
                }
                if (own < free && first < free) {
                    *reinterpret_cast<Together*>(held.rows + static_cast<std::int64_t>(own) * pitch_of(free) +
                                                 first) = cosines;
                }
            }
            if (nearest) {
                highest = group_max<kLanes>(highest);
                const int first = column + Form::column(0), stretch = first / kStretch;
                if (first % kStretch == 0 && own < free && first < free) {
                    held.nearest[static_cast<std::int64_t>(stretch) * pitch_of(free) + own] = highest;
                }
            }
        }
    };
    Form::template stream<true>(
        shared, [=](int i) { return row_at(row + i); }, [=](int, int i) { return row_at(column + i); }, 1,
        width, [](int) {}, store);
}

template <typename T, bool kWhole>
cudaError_t run(const T* metric, float* workspace, int batch, int tokens, int width, int protect,
                bool nearest, cudaStream_t stream) {
    const int tile = tile_of(tokens - protect, kWhole);
    const unsigned tiles = static_cast<unsigned>(ceil_div(tokens - protect, tile));
    const dim3 grid(tiles, tiles, static_cast<unsigned>(batch));
    if constexpr (kWhole) {
        if (tile == 64) {
            using Policy = TilePolicy<64>;
            return launch(cosines<T, Policy, kWhole>, grid, Policy::kThreads, stream, metric, workspace,
                          tokens, width, protect, nearest);
        }
    }
    using Policy = TilePolicy<32>;
    return launch(cosines<T, Policy, kWhole>, grid, Policy::kThreads, stream, metric, workspace, tokens,
                  width, protect, nearest);
}

// Threads of the block that chooses, and the tokens each holds in registers.
template <bool kLong>
struct Policy {
    static constexpr int kThreads = 512;
    static constexpr int kBlocks = kLong ? 1 : 2;  // a multiprocessor must hold
    static constexpr int kHeld = kLong ? 8 : 2;
    static constexpr int kMostTokens = kThreads * kHeld;
};
static_assert(Policy<true>::kMostTokens == kMost, "every token is held");

// The cosines of this thread's tokens to `token`.
template <typename Policy>
__device__ __forceinline__ void read_row(float (&cosine)[Policy::kHeld], const Held& held, int token,
                                         int free) {
    const float* row = held.rows + static_cast<std::int64_t>(token) * pitch_of(free);
#pragma unroll
    for (int i = 0; i < Policy::kHeld; ++i) {
        const int column = i * Policy::kThreads + static_cast<int>(threadIdx.x);
        cosine[i] = column < free ? row[column] : 0.0f;
    }
}

}  // namespace gram
}  // namespace tokenrt
