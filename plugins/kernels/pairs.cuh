// Up to kSortMost sources of one image ranked by one block in shared memory: who leaves, for which slot, and
// who stays where.
#pragma once

#include "match.cuh"
#include "parts.cuh"
#include "sort.cuh"

namespace tokenrt {

namespace match {

// Policy: threads, and the most sources; as SortPolicy.
template <typename Policy>
struct Pairs {
    SortKey keys[Policy::kMost];         // sources by falling value: those that leave, then the others
    unsigned short stay[Policy::kMost];  // sources that stay, in the order of the output

    // nearest(source): the best of a source, asked for once a source. All threads of the block call it, and
    // may read when it returns.
    template <typename Nearest>
    __device__ __forceinline__ void rank(const MatchShape& shape, Nearest nearest) {
        constexpr int kThreads = Policy::kThreads;
        const int me = static_cast<int>(threadIdx.x);
        SortKey held[Policy::kHeld];
        fill<Policy>(keys, held, shape.sources, [=](int i) {
            const Part best = nearest(i);
            return sort_key(best.value, i, best.nearest);
        });
        sort<Policy>(keys, shape.sources);
        if (shape.order == kSourcesByValue) {
            for (int i = shape.remove + me; i < shape.sources; i += kThreads) {
                stay[i - shape.remove] = static_cast<unsigned short>(place_in(keys[i]));
            }
        } else {
            const SortKey last = keys[shape.remove - 1];
            Numbers running{0, 0};
#pragma unroll
            for (int turn = 0; turn < Policy::kHeld; ++turn) {
                if (turn * kThreads >= shape.sources) {
                    break;
                }
                const int i = turn * kThreads + me;
                const bool stays = i < shape.sources && !up_to(held[turn], last);
                const int before = number<kThreads>(stays, false, running).first;
                if (stays) {
                    stay[before] = static_cast<unsigned short>(i);
                }
            }
        }
        __syncthreads();
    }

    // The source of pair r, 0 .. R-1, and the slot it goes to.
    __device__ __forceinline__ int source(int r, const int* __restrict__ sources) const {
        return sources[place_in(keys[r])];
    }
    __device__ __forceinline__ int slot(int r, const MatchShape& shape) const {
        return companion_in(keys[r]) + shape.keep() - shape.destinations;
    }

    // The position that survives in a slot, 0 .. K-1.
    __device__ __forceinline__ int kept(int slot, const int* __restrict__ sources,
                                        const int* __restrict__ destinations, const int* __restrict__ others,
                                        const MatchShape& shape) const {
        const int first = shape.keep() - shape.destinations;
        return slot >= first          ? destinations[slot - first]
               : slot >= shape.others ? sources[stay[slot - shape.others]]
                                      : others[slot];
    }

    // The lists of one image.
    __device__ __forceinline__ void write(const int* __restrict__ sources,
                                          const int* __restrict__ destinations,
                                          const int* __restrict__ others, std::int64_t* __restrict__ keep,
                                          std::int64_t* __restrict__ source_of,
                                          std::int64_t* __restrict__ slot_of, const MatchShape& shape) const {
        const int me = static_cast<int>(threadIdx.x);
        for (int i = me; i < shape.keep(); i += Policy::kThreads) {
            keep[i] = kept(i, sources, destinations, others, shape);
        }
        for (int r = me; r < shape.remove; r += Policy::kThreads) {
            source_of[r] = source(r, sources);
            slot_of[r] = slot(r, shape);
        }
    }
};

}  // namespace match

}  // namespace tokenrt
