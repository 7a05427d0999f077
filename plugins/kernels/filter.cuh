// The nearest destination of each source of a tile, found on tensor cores and settled in float32: to the bit
// what nearest_of (match.cuh) finds by float32 alone.
//
// Division  1. Cosines of the tile with a stretch of destinations on tensor cores (stream.cuh). A row keeps
//           the columns that may be its nearest, up to kMostCandidates for each side of the tiles; those that
//           a higher cosine has ruled out since make room. 2. The cosines of these alone, a thread each, in
//           float32 and in the order of nearest_of. A block that holds a row with more candidates, or one
//           that is zero, not finite or out of the range of the bound, says so, and nearest_of does its tile.
//
// Bound of what tensor cores err by, with D columns, u = 2^-24, lengths |a|, |b|, P = sum |a b| <= |a| |b|:
//   their sum of products   A core that adds 4 at a time, each addend cut off 2 u below the largest, and the
//                           sum cut off too, errs by 2 u P in 3 D / 2 places: 3 D u |a| |b|. Cores that were
//                           measured add 4, 8 or 16, and 8.0 and later keep further bits: they err less.
//   their cosine            Squared lengths are added in float32, as below: D u.
//   the cosine in float32   D u |a| |b| for the sum, D u for the squared lengths: 2 D u.
//   both together           6 D u, and 12 u for roots, quotients and what is D + 1 above. Terms of the second
//                           order stay below 100 u up to kMostFiltered columns: 6 (D + 32) u.
//   rounding floats         to 11 bits (float32) turns a row by 2^-11 at the most, and so a cosine by 2^-10.
//   subnormal halves        may count as 0 (PTX leaves it open), an error of 2^-14 in an element, and of
//                           2^-14 sqrt(D) (1 / |a| + 1 / |b|) in a cosine.
// So a column whose cosine is below the highest by more than twice that is not the nearest, nor ties with it.
#pragma once

#include "match.cuh"
#include "stream.cuh"

namespace tokenrt {
namespace match {

constexpr int kMostCandidates = 12;
constexpr int kFewestFiltered = 64, kMostFiltered = 4096;  // columns; of fewer float32 is done as soon
constexpr float kUnit = 1.0f / (1 << 24);

constexpr bool filters(int width) {
    return width >= kFewestFiltered && width <= kMostFiltered;
}

// What an element type adds to the bound, and the range of a squared length, a column, in which no product
// overflows and what underflows is nothing beside it.
template <typename T>
struct Filtering {
    static constexpr float kRounding = sizeof(T) == 4 ? 1.0f / (1 << 10) : 0.0f;
    static constexpr float kSubnormal = std::is_same_v<T, __half> ? 1.01f / (1 << 14) : 0.0f;
    static constexpr float kLeast = 1e-20f, kMost = 1e30f;
};

__device__ __forceinline__ float error_of(int width, float rounding) {
    return 6.0f * static_cast<float>(width + 32) * kUnit + rounding;
}

// The cosine of two rows as a tile of float32 makes it: products in the order of the columns, squares as the
// four threads of a row add them up (tile.cuh). Rows are whole vectors.
template <typename T>
__device__ __forceinline__ float cosine_of_rows(const T* left, const T* right, int width) {
    constexpr int kCount = Pack<T>::kCount, kParts = TilePolicy<32>::kVectors;
    float product = 0, lefts[kParts] = {}, rights[kParts] = {};
    for (int first = 0; first < width; first += kParts * kCount) {
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const int at = first + part * kCount;
            if (at < width) {
                const Pack<T> a = *reinterpret_cast<const Pack<T>*>(left + at);
                const Pack<T> b = *reinterpret_cast<const Pack<T>*>(right + at);
#pragma unroll
                for (int j = 0; j < kCount; ++j) {
                    const float x = widened(a.item[j]), y = widened(b.item[j]);
                    product = fused(x, y, product);
                    lefts[part] = fused(x, x, lefts[part]);
                    rights[part] = fused(y, y, rights[part]);
                }
            }
        }
    }
    return cosine_of(product, length_of((lefts[0] + lefts[2]) + (lefts[1] + lefts[3])),
                     length_of((rights[0] + rights[2]) + (rights[1] + rights[3])));
}

struct Candidate {
    float value;  // at most, while it is filtered; then the cosine
    int column;
};

// The candidates of a row among the columns of one side of the tiles.
struct Candidates {
    Candidate at[kMostCandidates];
    int count;
    float least;  // of a candidate's `value`

    __device__ __forceinline__ void tidy() {
        int kept = 0;
        for (int i = 0; i < count; ++i) {
            if (!(at[i].value < least)) {
                at[kept++] = at[i];
            }
        }
        count = kept;
    }
};

template <typename T, typename Policy>
struct FilterShared {
    using Tiles = MmaTiles<T, Policy>;
    union {
        typename Tiles::Shared tiles;
        TileShared<T, Policy> exact;
    };
    Candidates row[Tiles::kSides][Policy::kTile];
    bool crowded[Policy::kThreads / kWarp];
};

// The candidates of this warp's rows in one tile, beginning with column `base`, added to those it has.
// Returns whether a row of this thread has no room for its own, or is out of range.
template <typename T, typename Policy>
__device__ __forceinline__ bool add_candidates(FilterShared<T, Policy>& shared,
                                               const typename MmaTiles<T, Policy>::Products& products,
                                               int base, int end, int rows, int width) {
    using Tiles = MmaTiles<T, Policy>;
    using Type = Filtering<T>;
    constexpr int kColumns = Tiles::kColumns, kLanes = Tiles::kLanes;
    const float columns = static_cast<float>(width), error = error_of(width, Type::kRounding);
    const float subnormal = Type::kSubnormal * sqrtf(columns);
    const auto in_range = [=](float square) {
        return square >= Type::kLeast * columns && square <= Type::kMost;
    };
    bool crowded = false;
    float inverse[kColumns];  // NaN out of range: such a column is a candidate of every row
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
        const float square = shared.tiles.right_square[Tiles::column(j)];
        inverse[j] = in_range(square) ? 1.0f / sqrtf(square) : NAN;
    }
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
        Candidates& own = shared.row[Tiles::side()][Tiles::row(i)];
        const float square = shared.tiles.left_square[Tiles::row(i)];
        const bool exists = Tiles::row(i) < rows, usable = exists && in_range(square);
        const float scale = 1.0f / sqrtf(usable ? square : 1.0f);
        float highest = -INFINITY, most[kColumns];
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            const float cosine = products[i][j] * scale * inverse[j], slack = subnormal * inverse[j];
            const bool inside = base + Tiles::column(j) < end;
            highest = inside ? fmaxf(highest, cosine - slack) : highest;
            most[j] = inside ? cosine + slack : -INFINITY;
        }
        highest = group_max<kLanes>(highest) - 2.0f * (error + subnormal * scale);
        const float least = fmaxf(own.least, highest);
        unsigned chosen = 0;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            const bool may = usable && most[j] != -INFINITY && !(most[j] < least);
            chosen |= static_cast<unsigned>(may) << j;
        }
        const int mine = __popc(chosen), part = static_cast<int>(lane()) % kLanes;
        int upto = mine;
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) {
            const int other = __shfl_up_sync(kEveryLane, upto, step, kLanes);
            upto += part >= step ? other : 0;
        }
        const int all = __shfl_sync(kEveryLane, upto, kLanes - 1, kLanes);
        int count = own.count;
        __syncwarp();  // every lane has read what one now changes
        if (part == 0) {
            own.least = least;
            if (count + all > kMostCandidates) {
                own.tidy();
            }
        }
        __syncwarp();
        count = own.count;
        const bool fits = count + all <= kMostCandidates;
        crowded = crowded || (exists && !(usable && fits));
        int to = count + upto - mine;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
            if (fits && (chosen >> j & 1u) != 0) {
                own.at[to++] = Candidate{most[j], base + Tiles::column(j)};
            }
        }
        __syncwarp();
        if (part == 0 && fits) {
            own.count = count + all;
        }
        __syncwarp();
    }
    return crowded;
}

// As nearest_of, of whole vectors; returns false, with nothing told, where the filter does not settle a row.
template <typename T, typename Policy, typename Told>
__device__ __forceinline__ bool nearest_filtered(FilterShared<T, Policy>& shared, const T* rows, int first,
                                                 int begin, int end, const int* __restrict__ sources,
                                                 const int* __restrict__ destinations,
                                                 const MatchShape& shape, Told told) {
    using Tiles = MmaTiles<T, Policy>;
    constexpr int kTile = Policy::kTile, kThreads = Policy::kThreads, kLists = Tiles::kSides * kTile;
    const int me = static_cast<int>(threadIdx.x), many = min(shape.sources - first, kTile);
    const auto at = [=](int place) { return rows + static_cast<std::int64_t>(place) * shape.width; };
    const auto left = [=](int i) { return i < many ? at(sources[first + i]) : nullptr; };
    const auto right = [=](int tile, int i) {
        const int column = begin + tile * kTile + i;
        return column < end ? at(destinations[column]) : nullptr;
    };
    Candidates* const lists = &shared.row[0][0];
    for (int i = me; i < kLists; i += kThreads) {
        lists[i].count = 0;
        lists[i].least = -INFINITY;
    }
    bool crowded = false;
    Tiles::template stream<true>(
        shared.tiles, left, right, (end - begin + kTile - 1) / kTile, shape.width, [](int) {},
        [&](int tile, const typename Tiles::Products& products) {
            crowded |= add_candidates(shared, products, begin + tile * kTile, end, many, shape.width);
        });
    crowded = __any_sync(kEveryLane, crowded);
    if (lane() == 0) {
        shared.crowded[warp()] = crowded;
    }
    __syncthreads();
    for (const bool one : shared.crowded) {
        crowded |= one;
    }
    if (crowded) {
        return false;
    }
    // What the other side of a row's tiles has ruled out goes, too. Both sides are settled by one thread.
    for (int i = me; i < kTile; i += kThreads) {
        float least = -INFINITY;
        for (int side = 0; side < Tiles::kSides; ++side) {
            least = fmaxf(least, shared.row[side][i].least);
        }
        for (int side = 0; side < Tiles::kSides; ++side) {
            shared.row[side][i].least = least;
            shared.row[side][i].tidy();
        }
    }
    __syncthreads();
    for (int i = me; i < kLists * kMostCandidates; i += kThreads) {
        Candidates& own = lists[i % kLists];
        if (i / kLists < own.count) {
            Candidate& one = own.at[i / kLists];
            one.value = cosine_of_rows(at(sources[first + i % kLists % kTile]), at(destinations[one.column]),
                                       shape.width);
        }
    }
    __syncthreads();
    for (int i = me; i < many; i += kThreads) {
        Candidate best{-INFINITY, shape.destinations};
        for (int side = 0; side < Tiles::kSides; ++side) {
            const Candidates& own = shared.row[side][i];
            for (int j = 0; j < own.count; ++j) {
                const Candidate next = own.at[j];
                const bool earlier = next.value == best.value && next.column < best.column;
                best = next.value > best.value || earlier ? next : best;
            }
        }
        told(first + i, best.value, best.column);
    }
    return true;
}

// nearest_of of whole vectors or others, or the filter and nearest_of where that does not settle a row.
template <typename T, typename Policy, bool kFilter, bool kWhole>
struct Nearest {
    static constexpr bool kTensor = kTensorCores && kFilter && kWhole;
    using Shared = std::conditional_t<kTensor, FilterShared<T, Policy>, TileShared<T, Policy>>;

    template <typename... Given>
    static __device__ __forceinline__ void find(Shared& shared, const Given&... given) {
        if constexpr (kTensor) {
            if (!nearest_filtered(shared, given...)) {
                nearest_of<kWhole>(shared.exact, given...);
            }
        } else {
            nearest_of<kWhole>(shared, given...);
        }
    }
};

}  // namespace match
}  // namespace tokenrt
