// Clusters of blocks: what they share, how they are launched, and where there are any.
//
// Blocks of a cluster run at once, wait for each other, and read each other's shared memory. Source: PTX ISA
// 9.0, barrier.cluster and mapa; CUDA C++ Programming Guide, thread block clusters.
#pragma once

#include "common.cuh"

namespace tokenrt {

// From compute capability 9.0 on, and on a CPU. Elsewhere a kernel that needs clusters has no body.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kClusters = false;
#else
constexpr bool kClusters = true;
#endif

constexpr unsigned kPortableCluster = 8;

// The GPU that a launch goes to. Capability: times ten, 0 where nothing is known.
struct Gpu {
    int capability, multiprocessors;

    static Gpu current() {
        int device = 0, major = 0, minor = 0, count = 0;
        const bool known =
            cudaGetDevice(&device) == cudaSuccess &&
            cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
            cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
            cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
        if (!known) {
            cudaGetLastError();  // that there is none is no error of a later launch
            return {0, 0};
        }
        return {10 * major + minor, count};
    }

    // The most blocks of a cluster. 16 are not portable: Hopper and Blackwell Tuning Guides, for 9.0
    // and 10.0.
    constexpr int cluster() const {
        return capability < 90 ? 0 : capability < 110 ? 16 : static_cast<int>(kPortableCluster);
    }
};

// Launches a cluster for each row of blocks of the grid. Code that was compiled for GPUs before 9.0 is
// refused, whatever it runs on, and so is what does not fit: then nothing was launched, and no error is left.
template <typename... P, typename... A>
cudaError_t launch_clusters(void (*kernel)(P...), dim3 grid, unsigned threads, cudaStream_t stream,
                            A... arguments) {
    cudaFuncAttributes code{};
    cudaError_t state = cudaFuncGetAttributes(&code, kernel);
    if (state == cudaSuccess && code.ptxVersion < 90) {
        state = cudaErrorNotSupported;
    }
    if (state == cudaSuccess && grid.x > kPortableCluster) {
        state = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    }
    if (state == cudaSuccess) {
        cudaLaunchAttribute together{};
        together.id = cudaLaunchAttributeClusterDimension;
        together.val.clusterDim.x = grid.x;
        together.val.clusterDim.y = together.val.clusterDim.z = 1;
        const cudaLaunchConfig_t how{grid, dim3(threads), 0, stream, &together, 1};
        state = cudaLaunchKernelEx(&how, kernel, static_cast<P>(arguments)...);
    }
    if (state != cudaSuccess) {
        cudaGetLastError();
    }
    return state;
}

#if defined(__CUDACC__)

// What this block shows to the others of its cluster, as shared memory that nobody has constructed.
template <typename T>
__device__ __forceinline__ T& shown() {
    __shared__ T own;
    return own;
}

// Where block `rank` of the cluster has what this one has at `own`.
template <typename T>
__device__ __forceinline__ const T* shown_by(int rank, const T* own) {
    const T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return there;
}

// All threads of the cluster wait for each other: what was written before is there for all.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                     : "memory");
}

// The same before a block returns whose shared memory others have read: it orders no memory, so it waits for
// no store.
__device__ __forceinline__ void cluster_leave() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

#else

using simt::shown;

template <typename T>
const T* shown_by(int rank, const T* own) {
    return static_cast<const T*>(simt::grid().mapped(own, static_cast<unsigned>(rank)));
}

inline void cluster_barrier(int line = __builtin_LINE()) {
    simt::cluster_barrier(line);
}
inline void cluster_leave(int line = __builtin_LINE()) {
    simt::cluster_barrier(line);
}

#endif

}  // namespace tokenrt
