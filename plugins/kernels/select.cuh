// Selecting the best of one image by one block: a radix search for the last score kept, then prefix sums.
#pragma once

#include "order.cuh"

namespace tokenrt {
namespace select {

constexpr int kBins = 256, kBits = 8;

// The positions of the best of one image, ascending and counted from `origin`, found by one block.
template <int kThreads, typename T, typename Index>
__device__ __forceinline__ void keep_best(const T* __restrict__ row, Index* __restrict__ out, int tokens,
                                          int keep, int protect, int origin = 0) {
    __shared__ unsigned histogram[kBins];
    __shared__ unsigned chosen_bin;
    __shared__ int still_wanted;
    const int me = static_cast<int>(threadIdx.x);

    // `prefix`: the leading bits of the key of the last token kept. `wanted`: how many keys that begin so are
    // kept.
    unsigned prefix = 0;
    int wanted = keep - protect;
    for (int shift = 32 - kBits; shift >= 0; shift -= kBits) {
        for (int bin = me; bin < kBins; bin += kThreads) {
            histogram[bin] = 0;
        }
        __syncthreads();
        for (int i = protect + me; i < tokens; i += kThreads) {
            const unsigned key = ordered(widened(row[i]));
            if (shift == 32 - kBits || key >> (shift + kBits) == prefix) {
                // ATOMS.POPC.INC from Ampere on: the lanes of a warp that share a bin count at once.
                atomicAdd(&histogram[key >> shift & (kBins - 1)], 1u);
            }
        }
        __syncthreads();
        if (warp() == 0) {  // each lane adds up 8 bins, from the highest down
            constexpr int kEach = kBins / static_cast<int>(kWarp);
            const int top = kBins - 1 - me * kEach;
            int own = 0;
            for (int i = 0; i < kEach; ++i) {
                own += static_cast<int>(histogram[top - i]);
            }
            int up_to = own;
            for (unsigned step = 1; step < kWarp; step *= 2) {
                const int other = __shfl_up_sync(kEveryLane, up_to, step);
                up_to += lane() >= step ? other : 0;
            }
            if (up_to >= wanted && up_to - own < wanted) {
                int left = wanted - (up_to - own), bin = top;
                for (; left > static_cast<int>(histogram[bin]); --bin) {
                    left -= static_cast<int>(histogram[bin]);
                }
                chosen_bin = static_cast<unsigned>(bin);
                still_wanted = left;
            }
        }
        __syncthreads();
        prefix = prefix << kBits | chosen_bin;
        wanted = still_wanted;
    }

    for (int i = me; i < protect; i += kThreads) {
        out[i] = static_cast<Index>(origin + i);
    }
    Numbers running{0, 0};  // tokens above the last one's score, and its equals
    for (int base = protect; base < tokens; base += kThreads) {
        const int i = base + me;
        const unsigned key = i < tokens ? ordered(widened(row[i])) : 0;
        const bool above = i < tokens && key > prefix, equal = i < tokens && key == prefix;
        const Numbers before = number<kThreads>(above, equal, running);
        if (above || (equal && before.second < wanted)) {
            out[protect + before.first + min(before.second, wanted)] = static_cast<Index>(origin + i);
        }
    }
}

}  // namespace select

}  // namespace tokenrt
