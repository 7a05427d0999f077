// Tiles of dot products of fixed rows with a stream of others, tile after tile: on tensor cores, or in
// float32.
//
// Division  as tile.cuh, kTile rows by kTile rows a block with the same threads: a warp holds the products of
//           16 of the fixed rows with 32 of a tile of others, 16 a thread. Slices of 128 bytes of all rows
//           come by copies past the registers, kStages - 1 of them on their way while one is multiplied, also
//           from one tile to the next. They lie in shared memory as they are, swizzled by vectors of 16 bytes
//           so that the eight rows of a fragment meet all banks. Squared lengths are added in float32, of the
//           fragments that a warp holds anyway, each by one warp.
// Bound     tensor cores, or bandwidth of shared memory: 1,536 bytes of fragments for a warp's 8,192
// products.
//
// What the products are worth: see mma.cuh.
#pragma once

#include "mma.cuh"
#include "tile.cuh"

namespace tokenrt {

template <typename T, typename Policy>
struct MmaTiles {
    static constexpr int kTile = Policy::kTile, kThreads = Policy::kThreads;
    static constexpr int kSliceBytes = 128, kVectors = kSliceBytes / 16, kSteps = kSliceBytes / kStepBytes;
    static constexpr int kDepth = kSliceBytes / static_cast<int>(sizeof(T));
    static constexpr int kStages = kTile == 32 ? 3 : 2;
    static constexpr int kWarpColumns = 32, kGroups = kTile / 16, kSides = kTile / kWarpColumns;
    static_assert(kThreads == 32 * kGroups * kSides, "a warp a group of rows and side of columns");

    // Of a thread's products [kRows][kColumns]: kLanes lanes side by side share their rows.
    static constexpr int kRows = 2, kColumns = 8, kLanes = 4;
    static constexpr int kTogether = 2;  // columns side by side
    using Products = float[kRows][kColumns];

    static __device__ __forceinline__ int group() { return static_cast<int>(warp()) % kGroups; }
    static __device__ __forceinline__ int side() { return static_cast<int>(warp()) / kGroups; }
    static __device__ __forceinline__ int row(int i) {
        return 16 * group() + static_cast<int>(lane()) / kLanes + 8 * i;
    }
    static __device__ __forceinline__ int column(int j) {
        return kWarpColumns * side() + j / 2 * 8 + static_cast<int>(lane()) % kLanes * 2 + j % 2;
    }

    struct Shared {
        alignas(128) unsigned char stage[kStages][2][kTile][kSliceBytes];
        float left_square[kTile], right_square[kTile];
    };

    static __device__ __forceinline__ unsigned char* place(unsigned char (*rows)[kSliceBytes], int row,
                                                           int vector) {
        return rows[row] + 16 * (vector ^ row % kVectors);
    }

    // Where a thread's vectors of the fixed rows and of a tile of others begin; null for zeros, of which
    // `somewhere` is asked: no address that is none goes to memory.
    struct Feed {
        static constexpr int kUnits = kTile * kVectors / kThreads;
        const T *left[kUnits], *right[kUnits], *somewhere;
        int tile = 0, slice = 0, slot = 0;

        static __device__ __forceinline__ int row(int i) {
            return (static_cast<int>(threadIdx.x) + i * kThreads) / kVectors;
        }
        static __device__ __forceinline__ int vector() { return static_cast<int>(threadIdx.x) % kVectors; }

        // Asks for the next slice: of this tile, or of the one behind it, of which `before` is told first.
        template <typename Right, typename Before>
        __device__ __forceinline__ void next(Shared& shared, Right right_row, Before before, int tiles,
                                             int slices, int width) {
            if (tile < tiles) {
                if (slice == 0) {
                    before(tile);
#pragma unroll
                    for (int i = 0; i < kUnits; ++i) {
                        right[i] = right_row(tile, row(i));
                    }
                }
                const int first = slice * kDepth + vector() * Pack<T>::kCount;
#pragma unroll
                for (int i = 0; i < kUnits; ++i) {
                    ask(shared.stage[slot][0], i, left[i], first, width);
                    ask(shared.stage[slot][1], i, right[i], first, width);
                }
                slot = slot + 1 == kStages ? 0 : slot + 1;
                slice = slice + 1 == slices ? 0 : slice + 1;
                tile += slice == 0;
            }
            close_copies();
        }
        __device__ __forceinline__ void ask(unsigned char (*rows)[kSliceBytes], int i, const T* start,
                                            int first, int width) {
            const bool zeros = start == nullptr || first >= width;
            copy_later(place(rows, row(i), vector()), zeros ? somewhere : start + first, zeros);
        }
    };

    // The squares of the elements of rows r and r + 8, of a left fragment, added to two sums.
    static __device__ __forceinline__ void add_squares(float (&sums)[2], const unsigned (&words)[4]) {
        struct Word {
            T item[4 / sizeof(T)];
        };
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Word word = reinterpret_cast<const Word&>(words[i]);
#pragma unroll
            for (const T item : word.item) {
                sums[i % 2] += widened(item) * widened(item);
            }
        }
    }
    static __device__ __forceinline__ void store_squares(float* to, const float (&sums)[2]) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float sum = group_sum<kLanes>(sums[i]);
            if (static_cast<int>(lane()) % kLanes == 0) {
                to[static_cast<int>(lane()) / kLanes + 8 * i] = sum;
            }
        }
    }

    // What a warp holds of a tile: products of 16 rows with four times eight, and squares of the rows that it
    // adds up, the left ones of its group and 16 of the others of its side.
    struct Held {
        float products[4][4] = {}, lefts[2] = {}, rights[2] = {};
    };

    template <bool kSquares>
    static __device__ __forceinline__ void multiply_slice(Held& held, unsigned char (*lefts)[kSliceBytes],
                                                          unsigned char (*rights)[kSliceBytes]) {
        const int own = static_cast<int>(lane()) % 16, half = static_cast<int>(lane()) / 16;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            unsigned a[4];
            load_fragments(a, place(lefts, 16 * group() + own, 2 * step + half));
            shorten<T>(a);
            if (kSquares && side() == 0) {
                add_squares(held.lefts, a);
            }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                unsigned b[4];
                load_fragments(b, place(rights, kWarpColumns * side() + 16 * i + own, 2 * step + half));
                shorten<T>(b);
                if (kSquares && group() == i) {
                    add_squares(held.rights, b);
                }
                multiply(T{}, held.products[2 * i], a, b[0], b[2]);
                multiply(T{}, held.products[2 * i + 1], a, b[1], b[3]);
            }
        }
    }

    // told(tile, products) for each of `tiles` tiles: products[i][j] of left row row(i) with row column(j) of
    // the tile. left(row) and right(tile, row) point at a row that starts on 16 bytes, or are null for zeros,
    // left(0) is none; `width` is whole vectors. before(tile): as soon as a tile is asked for, up to kStages
    // - 1 tiles ahead, a barrier or more before it is told. kSquares: the squared lengths of both lists are
    // in `shared` then. The block may use `shared` again after its next barrier.
    template <bool kSquares, typename Left, typename Right, typename Before, typename Told>
    static __device__ __forceinline__ void stream(Shared& shared, Left left, Right right, int tiles,
                                                  int width, Before before, Told told) {
        const int slices = (width + kDepth - 1) / kDepth;
        Feed feed;
#pragma unroll
        for (int i = 0; i < Feed::kUnits; ++i) {
            feed.left[i] = left(Feed::row(i));
        }
        feed.somewhere = left(0);
#pragma unroll
        for (int stage = 0; stage + 1 < kStages; ++stage) {
            feed.next(shared, right, before, tiles, slices, width);
        }
        int slot = 0;
        for (int tile = 0; tile < tiles; ++tile) {
            Held held;
            for (int slice = 0; slice < slices; ++slice) {
                wait_for_copies<kStages - 2>();
                __syncthreads();
                feed.next(shared, right, before, tiles, slices, width);
                multiply_slice<kSquares>(held, shared.stage[slot][0], shared.stage[slot][1]);
                slot = slot + 1 == kStages ? 0 : slot + 1;
            }
            if (kSquares) {
                if (side() == 0) {
                    store_squares(shared.left_square + 16 * group(), held.lefts);
                }
                if (group() < 2) {
                    store_squares(shared.right_square + kWarpColumns * side() + 16 * group(), held.rights);
                }
                __syncthreads();
            }
            Products products;
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
#pragma unroll
                for (int j = 0; j < kColumns; ++j) {
                    products[i][j] = held.products[j / 2][2 * i + j % 2];
                }
            }
            told(tile, products);
        }
    }
};

// The same in float32 and for rows of any width, with the threads and products of tile.cuh.
template <typename T, typename Policy, bool kWhole>
struct PlainTiles {
    static constexpr int kTile = Policy::kTile, kStages = 2, kSides = 1;
    static constexpr int kRows = Policy::kEach, kColumns = Policy::kEach, kLanes = Policy::kSide;
    static constexpr int kTogether = kColumns;
    using Products = float[kRows][kColumns];
    using Shared = TileShared<T, Policy>;

    static __device__ __forceinline__ int side() { return 0; }
    static __device__ __forceinline__ int row(int i) {
        return kRows * (static_cast<int>(threadIdx.x) / kLanes) + i;
    }
    static __device__ __forceinline__ int column(int j) {
        return kColumns * (static_cast<int>(threadIdx.x) % kLanes) + j;
    }

    template <bool kSquares, typename Left, typename Right, typename Before, typename Told>
    static __device__ __forceinline__ void stream(Shared& shared, Left left, Right right, int tiles,
                                                  int width, Before before, Told told) {
        for (int tile = 0; tile < tiles; ++tile) {
            before(tile);
            Products products;
            tile_product<T, Policy, kWhole, kSquares ? Tile::kDotsAndSquares : Tile::kDots>(
                shared, left, [=](int i) { return right(tile, i); }, width, products);
            told(tile, products);
        }
    }
};

// Where a rounding of the sums is allowed: halves on tensor cores, if their rows are whole vectors.
template <typename T, typename Policy, bool kWhole>
using TilesFor = std::conditional_t<kTensorCores && kWhole && sizeof(T) == 2, MmaTiles<T, Policy>,
                                    PlainTiles<T, Policy, kWhole>>;

}  // namespace tokenrt
