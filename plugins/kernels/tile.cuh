// A square tile of dot products or distances between two lists of rows, kept in registers: the core of
// whatever compares all pairs.
//
// Division  kTile rows by kTile rows a block; each thread holds 4 x 4 products. Rows come in slices of 64
//           bytes, 16 bytes a thread, the next one on its way from memory while one is multiplied; where rows
//           begin is looked up once. They are widened to float once and lie in shared memory transposed, so
//           that the inner loop reads four values at a time, and swizzled, so that no two lanes wait for a
//           bank. Products are added in the order of the columns: any tile size gives the same bits. The two
//           lists may differ in type.
// Bound     fp32 arithmetic: 2 * kTile^2 operations for each 2 * kTile values loaded.
#pragma once

#include "common.cuh"

namespace tokenrt {

template <int kTileRows>
struct TilePolicy {
    static constexpr int kTile = kTileRows;
    static constexpr int kEach = 4;              // products a thread holds, along both sides
    static constexpr int kSide = kTile / kEach;  // threads along a side
    static constexpr int kThreads = kSide * kSide;
    static constexpr int kBlocks =
        kTileRows == 32 ? 6 : 2;            // a multiprocessor must hold: 160, 128 registers a thread
    static constexpr int kVectors = 4;      // 16-byte vectors of a row in a slice
    static constexpr bool kFinite = false;  // whether what is not finite counts as 0
};

// Where a row stands in line `k` of a slice. Rows change places by the vector that the line comes from: the
// transposed stores of a warp, 8 rows in 4 vectors, then meet all 32 banks, and fours of rows stay together.
template <typename T>
__host__ __device__ constexpr int swizzled(int k, int row) {
    return row ^ 8 * (k / Pack<T>::kCount);
}

template <typename T, typename Policy>
struct TileShared {
    static constexpr int kDepth = Policy::kVectors * Pack<T>::kCount;
    static_assert(Policy::kTile % 32 == 0 && Policy::kVectors == 4, "swizzled() stays within 32 rows");
    alignas(16) float left[kDepth][Policy::kTile];
    alignas(16) float right[kDepth][Policy::kTile];
    float left_square[Policy::kTile], right_square[Policy::kTile];
};

// What a thread reads of a list of rows, slice after slice: where its rows begin, found once, and the vectors
// it holds of one slice until they are stored. Element: of the rows.
template <typename T, typename Element, typename Policy>
struct TileReader {
    static constexpr int kUnits = Policy::kTile * Policy::kVectors / Policy::kThreads;
    static constexpr int kCount = Pack<T>::kCount;
    using Held = Pack<Element, kCount>;
    const Element* start[kUnits];  // null for zeros
    Held held[kUnits];
    float squares[kUnits];

    static __device__ __forceinline__ int unit(int i) {
        return static_cast<int>(threadIdx.x) + i * Policy::kThreads;
    }
    static __device__ __forceinline__ int column(int i) { return unit(i) % Policy::kVectors * kCount; }

    template <typename Row>
    __device__ __forceinline__ void point(Row rows) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            const Element* row = rows(unit(i) / Policy::kVectors);
            start[i] = row == nullptr ? nullptr : row + column(i);
            squares[i] = 0;
        }
    }

    // Reads as many columns from `first` on as 64 bytes of T have. kWhole: rows are whole 16-byte vectors.
    template <bool kWhole>
    __device__ __forceinline__ void fetch(int first, int width) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            const int left = start[i] == nullptr ? 0 : width - first - column(i);
            held[i] = Held{};
            if (kWhole) {
                if (left > 0) {
                    held[i] = *reinterpret_cast<const Held*>(start[i] + first);
                }
            } else {
                for (int j = 0; j < kCount && j < left; ++j) {
                    held[i].item[j] = start[i][first + j];
                }
            }
        }
    }

    // Widens what it holds into shared memory, and adds its squares.
    __device__ __forceinline__ void store(float (*to)[Policy::kTile]) {
#pragma unroll
        for (int i = 0; i < kUnits; ++i) {
            const int row = unit(i) / Policy::kVectors;
#pragma unroll
            for (int j = 0; j < kCount; ++j) {
                const float given = widened(held[i].item[j]);
                const float value = Policy::kFinite ? finite(given) : given;
                to[column(i) + j][swizzled<T>(column(i), row)] = value;
                squares[i] = fused(value, value, squares[i]);
            }
        }
    }
};

template <typename Row>
using ElementOf = std::remove_cv_t<std::remove_reference_t<decltype(*std::declval<Row>()(0))>>;

template <typename Policy>
__device__ __forceinline__ void store_squares(float* to, const float* squares) {
#pragma unroll
    for (int i = 0; i < Policy::kTile * Policy::kVectors / Policy::kThreads; ++i) {
        const float sum = group_sum<Policy::kVectors>(squares[i]);
        const int unit = static_cast<int>(threadIdx.x) + i * Policy::kThreads;
        if (unit % Policy::kVectors == 0) {
            to[unit / Policy::kVectors] = sum;
        }
    }
}

// What a tile is made of: dot products; dot products with the squared lengths of all rows left in `shared`;
// squared distances, which are 0 for equal rows and lose no digits to what the rows have in common.
enum class Tile { kDots, kDotsAndSquares, kDistances };

// product[i][j] = left row (4 y + i) with right row (4 x + j), thread (x, y) of the block's square. left(i)
// and right(i) point at a row, or are null for zeros. The block may use `shared` again after its next
// barrier.
template <typename T, typename Policy, bool kWhole, Tile kTile, typename Left, typename Right>
__device__ __forceinline__ void tile_product(TileShared<T, Policy>& shared, Left left, Right right, int width,
                                             float (&product)[Policy::kEach][Policy::kEach]) {
    constexpr int kEach = Policy::kEach, kDepth = TileShared<T, Policy>::kDepth;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    TileReader<T, ElementOf<Left>, Policy> lefts;
    TileReader<T, ElementOf<Right>, Policy> rights;
    lefts.point(left);
    rights.point(right);
    lefts.template fetch<kWhole>(0, width);
    rights.template fetch<kWhole>(0, width);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
            product[i][j] = 0;
        }
    }
    for (int first = 0; first < width; first += kDepth) {
        __syncthreads();
        lefts.store(shared.left);
        rights.store(shared.right);
        __syncthreads();
        if (first + kDepth < width) {  // on its way while this slice is multiplied
            lefts.template fetch<kWhole>(first + kDepth, width);
            rights.template fetch<kWhole>(first + kDepth, width);
        }
#pragma unroll 8
        for (int k = 0; k < kDepth; ++k) {
            const float4 a = *reinterpret_cast<const float4*>(&shared.left[k][swizzled<T>(k, kEach * y)]);
            const float4 b = *reinterpret_cast<const float4*>(&shared.right[k][swizzled<T>(k, kEach * x)]);
            const float as[kEach] = {a.x, a.y, a.z, a.w}, bs[kEach] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < kEach; ++i) {
#pragma unroll
                for (int j = 0; j < kEach; ++j) {
                    const float difference = as[i] - bs[j];
                    product[i][j] = kTile == Tile::kDistances ? fused(difference, difference, product[i][j])
                                                              : fused(as[i], bs[j], product[i][j]);
                }
            }
        }
    }
    if (kTile == Tile::kDotsAndSquares) {
        store_squares<Policy>(shared.left_square, lefts.squares);
        store_squares<Policy>(shared.right_square, rights.squares);
        __syncthreads();
    }
}

}  // namespace tokenrt
