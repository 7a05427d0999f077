// Types of CUDA C++ for a plain C++ compiler: vectors, half, bfloat16, error codes, launch configuration.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint3 {
    unsigned x, y, z;
};

// The alignment is the one a GPU demands, so that UndefinedBehaviorSanitizer reports what a GPU would fault
// on.
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(16) float4 {
    float x, y, z, w;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct alignas(8) float2 {
    float x, y;
};

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorNotReady = 600,
    cudaErrorMisalignedAddress = 716,
    cudaErrorNotSupported = 801,
    cudaErrorInvalidClusterSize = 912,
};

using cudaStream_t = struct CUstream_st*;

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };

union cudaLaunchAttributeValue {
    struct {
        unsigned x, y, z;
    } clusterDim;
};

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

struct __half {
    std::uint16_t bits;
};

struct __nv_bfloat16 {
    std::uint16_t bits;
};

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float __half2float(__half value) {
    const unsigned sign = (value.bits & 0x8000u) << 16, rest = value.bits & 0x7fffu;
    if (rest < 0x0400u) {  // zero and subnormal: a multiple of 2^-24, exact in float
        return __uint_as_float(sign | __float_as_uint(static_cast<float>(rest) * 5.9604644775390625e-8f));
    }
    const unsigned bias =
        rest >= 0x7c00u ? 0x70000000u : 0x38000000u;  // infinity and NaN keep a full exponent
    return __uint_as_float(sign | ((rest << 13) + bias));
}

inline __half __float2half_rn(float value) {
    unsigned bits = __float_as_uint(value);
    const unsigned sign = (bits >> 16) & 0x8000u;
    bits &= 0x7fffffffu;
    unsigned rest;
    if (bits > 0x7f800000u) {
        return {0x7fffu};  // the NaN that a GPU gives, whatever the sign
    }
    if (bits >= 0x477ff000u) {
        rest = 0x7c00u;  // 65520, half way beyond the largest half, rounds to infinity
    } else if (bits < 0x38800000u) {
        // One unit of 0.5 in float is 2^-24, the step of subnormal halves: the addition rounds.
        rest = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000u;
    } else {
        rest = (bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
    }
    return {static_cast<std::uint16_t>(sign | rest)};
}

inline float __bfloat162float(__nv_bfloat16 value) {
    return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return {0x7fffu};
    }
    return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
