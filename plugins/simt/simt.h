// CUDA C++ on a CPU: the part of the language that the kernels of this project use, and nothing else.
//
// Include this where a CUDA compiler would bring its own: the same kernel source then compiles with a plain
// C++ compiler. Threads of a block are fibers (fibers.h, the default) or, with SIMT_THREADS defined, threads
// of the machine (threads.h, for ThreadSanitizer). A launch returns when it is done; streams are ignored.
//
// Narrower than CUDA on purpose: warp operations name all 32 lanes, a block is a multiple of 32 threads, and
// a thread that returns before a barrier others wait at stops the program. Each is reported with the line of
// the kernel.
#pragma once

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "device.h"
#include "record.h"
#include "types.h"
#if defined(SIMT_THREADS)
#include "threads.h"
#else
#include "fibers.h"
#endif

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* how, void (*kernel)(P...), A&&... given) {
    const dim3 grid = how->gridDim, block = how->blockDim;
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    const bool empty = threads == 0 || std::uint64_t{grid.x} * grid.y * grid.z == 0;
    const bool large =
        threads > simt::kMostThreads || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535;
    if (empty || large || threads % simt::kWarp != 0 || how->dynamicSmemBytes > simt::kMostShared) {
        return cudaErrorInvalidConfiguration;
    }
    const unsigned cluster = how->numAttrs == 0 ? 1 : how->attrs->val.clusterDim.x;
    if (how->numAttrs != 0 && (cluster == 0 || cluster > simt::device().cluster || grid.x % cluster != 0)) {
        return cudaErrorInvalidClusterSize;
    }
    if (simt::record().on) {
        simt::record().launches.push_back(
            {reinterpret_cast<void (*)()>(kernel), grid, block, cluster, how->dynamicSmemBytes});
        return cudaSuccess;
    }
    const std::tuple<P...> arguments(static_cast<P>(std::forward<A>(given))...);
    simt::run(grid, block, cluster, how->dynamicSmemBytes, [&] { std::apply(kernel, arguments); });
    return cudaSuccess;
}

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another, so one copy is enough

// From here on the members of cudaLaunchConfig_t of the same names are out of reach: fill one in order.
#define threadIdx (::simt::self().index)
#define blockIdx (::simt::grid().index)
#define blockDim (::simt::grid().block)
#define gridDim (::simt::grid().grid)
#define __syncthreads() ::simt::barrier(__LINE__)

namespace simt {

template <typename T>
std::uint64_t packed(T value) {
    static_assert(sizeof(T) <= 8, "warp operations carry up to 8 bytes");
    std::uint64_t word = 0;
    std::memcpy(&word, &value, sizeof value);
    return word;
}

template <typename T>
T unpacked(std::uint64_t word) {
    T value;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

// What a block shows to the others of its cluster, as a T that nobody has constructed.
template <typename T>
T& shown() {
    static_assert(sizeof(T) <= kMostShared && alignof(T) <= alignof(Shown), "more than shared memory holds");
    return *reinterpret_cast<T*>(grid().shown.at(grid().rank).bytes);
}

inline void whole(unsigned mask) {
    if (mask != 0xffffffffu) {
        fail("a warp operation must name all 32 lanes", 0);
    }
}

// Lanes outside a segment of `width` read their own value, as on a GPU.
template <typename T>
T shuffle(unsigned mask, T value, int source, int width) {
    whole(mask);
    const int lane = static_cast<int>(self().lane()), first = lane & ~(width - 1);
    const bool inside = source >= first && source < first + width;
    return unpacked<T>(read(exchange(packed(value)) + (inside ? source : lane)));
}

}  // namespace simt

using std::isnan;
using std::max;
using std::min;

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    const int lane = static_cast<int>(simt::self().lane());
    return simt::shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)), width);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return simt::shuffle(mask, value, static_cast<int>(simt::self().lane()) - static_cast<int>(delta), width);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    return simt::shuffle(mask, value, static_cast<int>(simt::self().lane() + delta), width);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    return simt::shuffle(mask, value, static_cast<int>(simt::self().lane()) ^ bits, width);
}

inline unsigned __ballot_sync(unsigned mask, bool vote) {
    simt::whole(mask);
    const auto* slots = simt::exchange(vote);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
        votes |= static_cast<unsigned>(simt::read(slots + lane)) << lane;
    }
    return votes;
}

inline bool __any_sync(unsigned mask, bool vote) {
    return __ballot_sync(mask, vote) != 0;
}
inline bool __all_sync(unsigned mask, bool vote) {
    return __ballot_sync(mask, vote) == 0xffffffffu;
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    simt::whole(mask);
    simt::warp_barrier();
}

// Blocks run one after another, and memory has no caches of its own.
inline void __threadfence() {}
template <typename T>
T __ldcg(const T* where) {
    return *where;
}

inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}
inline int __ffs(unsigned bits) {
    return __builtin_ffs(static_cast<int>(bits));
}

// Atomics are relaxed, as on a GPU: they order nothing but themselves.
template <typename T, typename Change>
T simt_atomic(T* where, Change change) {
    T old, wanted;
    __atomic_load(where, &old, __ATOMIC_RELAXED);
    do {
        wanted = change(old);
    } while (!__atomic_compare_exchange(where, &old, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

template <typename T>
T atomicAdd(T* where, T value) {
    return simt_atomic(where, [=](T old) { return static_cast<T>(old + value); });
}

template <typename T>
T atomicMax(T* where, T value) {
    return simt_atomic(where, [=](T old) { return std::max(old, value); });
}

template <typename T>
T atomicMin(T* where, T value) {
    return simt_atomic(where, [=](T old) { return std::min(old, value); });
}

template <typename T>
T atomicCAS(T* where, T expected, T value) {
    return simt_atomic(where, [=](T old) { return old == expected ? value : old; });
}
