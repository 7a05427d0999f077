// A warp's steps on tensor cores, each in one function: fragments from shared memory, products of 16 rows and
// 8, copies from memory that go past the registers.
//
// A step takes 32 bytes of a row whatever its type: 16 halves or 8 floats. Lane 4 g + t of a warp holds
//   left rows    a[0], a[2]: row g, bytes 4 t and 16 + 4 t; a[1], a[3]: row g + 8, the same bytes
//   right rows   b[0], b[1]: row g, bytes 4 t and 16 + 4 t
//   products     c[0], c[1]: left row g with right rows 2 t and 2 t + 1; c[2], c[3]: left row g + 8 with them
// so 16 rows that were fetched as left ones are right ones, too: {a[0], a[2]} its first eight, {a[1], a[3]}
// the others.
//
// Products of two elements are exact in float32. How their sums are rounded, and in which order they are
// made, PTX leaves open ("at least single precision"): what is promised to the bit must not depend on it.
// Source: PTX ISA 9.0, mma.m16n8k16, mma.m16n8k8, ldmatrix, cp.async.
#pragma once

#include "common.cuh"

#if !defined(__CUDACC__)
#include <tensor.h>
#endif

namespace tokenrt {

// From compute capability 8.0 on, and on a CPU, which computes the same fragments. TOKENRT_SCALAR: nowhere.
#if defined(TOKENRT_SCALAR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800)
constexpr bool kTensorCores = false;
#else
constexpr bool kTensorCores = true;
#endif

constexpr int kStepBytes = 32;

#if defined(__CUDACC__)

__device__ __forceinline__ unsigned shared_address(const void* place) {
    return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

// Four 8 x 16-byte blocks of shared memory: lane 8 i + r gives where row r of block i starts.
__device__ __forceinline__ void load_fragments(unsigned (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Asks for 16 bytes of global memory, or for 16 bytes of zeros.
__device__ __forceinline__ void copy_later(void* to, const void* from, bool zeros) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(zeros ? 0 : 16)
                 : "memory");
}
__device__ __forceinline__ void close_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all of this thread's groups of copies but the last kPending are there.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#define TOKENRT_MULTIPLY(element, shape, kind)                                                               \
    __device__ __forceinline__ void multiply(element, float (&c)[4], const unsigned (&a)[4], unsigned first, \
                                             unsigned second) {                                              \
        asm volatile("mma.sync.aligned." shape ".row.col.f32." kind "." kind                                 \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                  \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(first), "r"(second));                 \
    }
TOKENRT_MULTIPLY(__half, "m16n8k16", "f16")
TOKENRT_MULTIPLY(__nv_bfloat16, "m16n8k16", "bf16")
TOKENRT_MULTIPLY(float, "m16n8k8", "tf32")
#undef TOKENRT_MULTIPLY

// The nearest float of 11 significant bits, which is what tensor cores take of a float.
__device__ __forceinline__ unsigned shortened(unsigned word) {
    unsigned made;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(made) : "f"(__uint_as_float(word)));
    return made;
}

#else

using simt::close_copies;
using simt::copy_later;
using simt::load_fragments;
using simt::multiply;
using simt::shortened;
using simt::wait_for_copies;

#endif

// Fragments as tensor cores take them: floats rounded, halves as they are.
template <typename T>
__device__ __forceinline__ void shorten(unsigned (&words)[4]) {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
        for (unsigned& word : words) {
            word = shortened(word);
        }
    }
}

}  // namespace tokenrt
