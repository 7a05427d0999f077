// The calls of the CUDA runtime that the plugins make, on a CPU: device memory is memory, aligned as a GPU's.
#pragma once

#include <cstdlib>

#include "types.h"

using cudaEvent_t = struct CUevent_st*;  // named by the headers of TensorRT, never used

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };

inline cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
    constexpr std::size_t kAlignment = 256;
    *memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    return *memory != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}

inline cudaError_t cudaFree(void* memory) {
    std::free(memory);
    return cudaSuccess;
}

inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t state) {
    switch (state) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMisalignedAddress:
            return "misaligned address";
        case cudaErrorNotSupported:
            return "operation not supported";
        case cudaErrorNotReady:
            return "device not ready";
        default:
            return "another error";
    }
}
