// The GPU that the host build says it runs on: none, unless a test names one. Launchers that depend on the
// GPU ask for it as they do of CUDA.
#pragma once

#include "types.h"

namespace simt {

struct Device {
    int capability = 0;  // times ten; 0: there is no GPU
    int multiprocessors = 0;
    unsigned cluster = 0;  // the most blocks of a cluster
};

inline Device& device() {
    static Device one;
    return one;
}

}  // namespace simt

enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
};

enum cudaFuncAttribute { cudaFuncAttributeNonPortableClusterSizeAllowed = 13 };

struct cudaFuncAttributes {
    int ptxVersion;
};

inline cudaError_t cudaGetDevice(int* number) {
    *number = 0;
    return simt::device().capability != 0 ? cudaSuccess : cudaErrorNoDevice;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
    const simt::Device& one = simt::device();
    *value = what == cudaDevAttrMultiProcessorCount      ? one.multiprocessors
             : what == cudaDevAttrComputeCapabilityMajor ? one.capability / 10
                                                         : one.capability % 10;
    return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* told, Kernel*) {
    told->ptxVersion = simt::device().capability;
    return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
    return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
