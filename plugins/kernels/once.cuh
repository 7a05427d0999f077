// TokenSelect, TokenMatch, TokenCombine and TokenMerge as one launch each: what a plugin can hold that is
// nothing but a kernel.
//
// Problem   as token_select.cuh, token_match.cuh and token_combine.cuh, whose code does the work. What there
//           takes a second launch (ordering what was selected, ranking and arranging what was matched)
//           follows here behind a barrier, so one block takes an image from beginning to end, and what was
//           handed on through workspace lies in shared memory.
// Division  one block an image; TokenCombine as in token_combine.cuh.
// Bound     matching: 2 S T D operations an image on a single multiprocessor, so a batch as large as the GPU
//           has multiprocessors is needed to fill it. Sources are limited to kMostSources.
#pragma once

#include "combine.cuh"
#include "match.cuh"
#include "select.cuh"

namespace tokenrt {
namespace once {

constexpr int kSelectThreads = 256;
constexpr int kMostSelected = 8192;  // by score: their positions lie in shared memory
constexpr int kMostSources = 1024;
using MatchPolicy = TilePolicy<64>;

// score [N] -> index [K], one image. `kept`: K integers of shared memory, used by score alone.
template <int kOrder, typename T>
__device__ __forceinline__ void select(const T* __restrict__ score, std::int64_t* __restrict__ index,
                                       int* kept, int tokens, int keep, int protect) {
    if constexpr (kOrder == kByPosition) {
        select::keep_best<kSelectThreads>(score, index, tokens, keep, protect);
    } else {
        select::keep_best<kSelectThreads>(score, kept, tokens, keep, protect);
        __syncthreads();
        const int me = static_cast<int>(threadIdx.x), free = keep - protect;
        const auto key = [=](int i) { return ordered(widened(score[kept[protect + i]])); };
        for (int base = 0; base < free; base += kSelectThreads) {
            const int before = rank_among<kSelectThreads>(free, base + me, key);
            if (base + me < free) {
                index[protect + before] = kept[protect + base + me];
            }
        }
        for (int i = me; i < protect; i += kSelectThreads) {
            index[i] = i;
        }
    }
}

template <typename T>
struct MatchShared {
    TileShared<T, MatchPolicy> tile;
    float value[kMostSources];
    int nearest[kMostSources], rank[kMostSources];
};

// metric [N,D] -> value [S], keep [K], source [R], destination [R], one image.
template <bool kWhole, typename T>
__device__ __forceinline__ void match(MatchShared<T>& shared, const T* __restrict__ metric,
                                      const int* sources, const int* destinations, const int* others,
                                      float* __restrict__ value, std::int64_t* __restrict__ keep,
                                      std::int64_t* __restrict__ source,
                                      std::int64_t* __restrict__ destination, const MatchShape& shape) {
    constexpr int kThreads = MatchPolicy::kThreads;
    const int me = static_cast<int>(threadIdx.x);
    for (int first = 0; first < shape.sources; first += MatchPolicy::kTile) {
        match::nearest_of<kWhole>(shared.tile, metric, first, 0, shape.destinations, sources, destinations,
                                  shape, [&](int row, float best, int where) {
                                      shared.value[row] = best;
                                      shared.nearest[row] = where;
                                  });
    }
    __syncthreads();
    for (int base = 0; base < shape.sources; base += kThreads) {
        const int mine = base + me;
        const int before =
            rank_among<kThreads>(shape.sources, mine, [&](int i) { return ordered(shared.value[i]); });
        if (mine < shape.sources) {
            value[mine] = shared.value[mine];
            shared.rank[mine] = before;
            match::place_source(mine, before, shared.nearest[mine], sources, keep, source, destination,
                                shape);
        }
    }
    __syncthreads();
    match::arrange_survivors<kThreads>([&](int i) { return shared.rank[i] >= shape.remove; }, sources,
                                       destinations, others, keep, shape);
}

// The slots of one image, by the lists that match() has written: tokens [N,C], size [N] -> merged [K,C],
// total [K].
template <int kVector, typename T>
__device__ __forceinline__ void merge(const T* __restrict__ tokens, const float* __restrict__ size,
                                      const std::int64_t* keep, const std::int64_t* source,
                                      const std::int64_t* destination, T* __restrict__ merged,
                                      float* __restrict__ total, int width, const MatchShape& shape) {
    using Own = combine::Survivor<T, kVector, CombinePolicy::kVectors>;
    constexpr int kWarps = MatchPolicy::kThreads / static_cast<int>(kWarp);
    __syncthreads();
    for (int slot = static_cast<int>(warp()); slot < shape.keep(); slot += kWarps) {
        const bool receives = slot >= shape.keep() - shape.destinations;
        for (int first = 0; first < width; first += Own::kStretch) {
            const float mass = combine::merge_slot<Own>(
                tokens, size, static_cast<int>(keep[slot]), width, first, receives ? shape.remove : 0,
                [=](int r) { return destination[r] == slot; }, [=](int r) { return source[r]; },
                merged + static_cast<std::int64_t>(slot) * width);
            if (first == 0 && lane() == 0) {
                total[slot] = mass;
            }
        }
    }
}

}  // namespace once
}  // namespace tokenrt
