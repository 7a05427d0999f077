// Kernels that are right, and ones broken on purpose, to show that the host build and the sanitizers tell
// them apart. The argument names the one to run; it prints what it computed.
#include <tensor.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

constexpr int kThreads = 64;

// Reverses 64 numbers through static shared memory, then adds up a warp with shuffles.
template <bool kBarrier, int kBeyond>
__global__ void reverse(const float* in, float* out, int* votes) {
    __shared__ float held[kThreads];
    const int me = static_cast<int>(threadIdx.x);
    held[me + kBeyond] = in[blockIdx.x * kThreads + threadIdx.x];
    if (kBarrier) {
        __syncthreads();
    }
    const float other = held[kThreads - 1 - me];
    float sum = other;
    for (int step = 16; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
    }
    const unsigned even = __ballot_sync(0xffffffffu, me % 2 == 0);
    if (me % 32 == 0) {
        atomicAdd(votes, __popc(even));
    }
    out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Reads shared memory that no thread of the block wrote: what an earlier block left there, or zeros.
float kept[kThreads];
__global__ void unwritten(const float* in, float* out) {
    if (blockIdx.x == 0) {
        kept[threadIdx.x] = in[threadIdx.x];
    }
    __syncthreads();
    out[blockIdx.x * kThreads + threadIdx.x] = kept[threadIdx.x];
}

// Leans on the block before: each adds to what it left in global memory.
__global__ void chained(const float*, float* out) {
    out[threadIdx.x] =
        blockIdx.x == 0 ? 1.0f : out[threadIdx.x] + static_cast<float>(blockIdx.x) * out[threadIdx.x];
}

// The same through dynamic shared memory.
template <int kBeyond>
__global__ void dynamic_reverse(const float* in, float* out) {
    float* held = reinterpret_cast<float*>(simt::grid().shared.get());
    held[threadIdx.x + kBeyond] = in[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = held[kThreads - 1 - threadIdx.x];
}

__global__ void divergent(const float*, float*) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void early(const float*, float*) {
    if (threadIdx.x == 7) {
        return;
    }
    __syncthreads();
}

// A lane reads what its neighbour wrote; shuffles order nothing, so this needs __syncwarp.
template <bool kOrdered>
__global__ void neighbour(const float* in, float* out) {
    __shared__ float held[kThreads];
    held[threadIdx.x] = in[threadIdx.x];
    if (kOrdered) {
        __syncwarp();
    } else {
        __shfl_xor_sync(0xffffffffu, 0, 1);
    }
    out[threadIdx.x] = held[threadIdx.x ^ 1];
}

// Each thread copies 16 bytes past its registers, and eight threads find zeros; kWaited: before they are
// read.
template <bool kWaited>
__global__ void copied(const float* in, float* out) {
    alignas(16) __shared__ float held[4 * kThreads];
    const unsigned me = threadIdx.x;
    simt::copy_later(held + 4 * me, in + 4 * (me % 16), me >= kThreads - 8);
    simt::close_copies();
    simt::close_copies();  // an empty group, which may be on its way
    simt::wait_for_copies<kWaited ? 1 : 2>();
    out[me] = held[4 * me] + held[4 * me + 3];
}

// Each block of a cluster adds 100 times its place to 64 numbers, and gives those of the block behind it.
// kOut, kBack: whether the cluster waits before it reads what others show, and before these return.
template <bool kOut, bool kBack>
__global__ void passed_on(const float* in, float* out) {
    float* own = simt::shown<float[kThreads]>();
    own[threadIdx.x] = in[threadIdx.x] + 100.0f * static_cast<float>(blockIdx.x);
    if (kOut) {
        simt::cluster_barrier(__LINE__);
    } else {
        __syncthreads();
    }
    const unsigned next = blockIdx.x ^ 1;
    const float found = static_cast<const float*>(simt::grid().mapped(own, next % 2))[threadIdx.x ^ 1];
    if (kBack) {
        simt::cluster_barrier(__LINE__);
    }
    out[blockIdx.x * kThreads + threadIdx.x] = found;
}

// Blocks of a cluster at two barriers of it.
__global__ void apart(const float*, float*) {
    if (blockIdx.x == 0) {
        simt::cluster_barrier(__LINE__);
    } else {
        simt::cluster_barrier(__LINE__);
    }
}

// A place that is no part of what blocks show each other.
__global__ void stranger(const float* in, float* out) {
    out[threadIdx.x] = *static_cast<const float*>(simt::grid().mapped(in, 0));
}

// 16 bytes from an address that is a multiple of 4 only.
__global__ void misaligned(const float* in, float* out) {
    const float4 four = *reinterpret_cast<const float4*>(in + 1);
    out[threadIdx.x] = four.x;
}

template <typename... P, typename... A>
int launch(unsigned blocks, std::size_t shared, void (*kernel)(P...), A... given) {
    const cudaLaunchConfig_t how{dim3(blocks), dim3(kThreads), shared, nullptr, nullptr, 0};
    return cudaLaunchKernelEx(&how, kernel, given...);
}

// Two clusters of two blocks.
template <typename... P, typename... A>
int launch_clusters(void (*kernel)(P...), A... given) {
    cudaLaunchAttribute two{cudaLaunchAttributeClusterDimension, {{2, 1, 1}}};
    const cudaLaunchConfig_t how{dim3(2, 2), dim3(kThreads), 0, nullptr, &two, 1};
    return cudaLaunchKernelEx(&how, kernel, given...);
}

}  // namespace

int main(int count, char** given) {
    const std::string what = count > 1 ? given[1] : "right";
    std::vector<float> in(2 * kThreads), out(2 * kThreads, -1);
    for (std::size_t i = 0; i < in.size(); ++i) {
        in[i] = static_cast<float>(i);
    }
    simt::device().cluster = what == "no-clusters" ? 0 : 2;
    simt::backwards() = what.find("-backwards") != std::string::npos;
    int votes = 0, status = 0;
    if (what == "right") {
        status = launch(2, 0, reverse<true, 0>, in.data(), out.data(), &votes);
        status |= launch(1, kThreads * sizeof(float), dynamic_reverse<0>, in.data(), out.data() + kThreads);
    } else if (what == "no-barrier") {
        status = launch(1, 0, reverse<false, 0>, in.data(), out.data(), &votes);
    } else if (what == "off-by-one") {
        status = launch(1, 0, reverse<true, 1>, in.data(), out.data(), &votes);
    } else if (what == "dynamic-off-by-one") {
        status = launch(1, kThreads * sizeof(float), dynamic_reverse<1>, in.data(), out.data());
    } else if (what == "global-off-by-one") {
        status = launch(3, 0, reverse<true, 0>, in.data(), out.data(), &votes);
    } else if (what == "divergent") {
        status = launch(1, 0, divergent, in.data(), out.data());
    } else if (what == "early") {
        status = launch(1, 0, early, in.data(), out.data());
    } else if (what == "neighbour") {
        status = launch(1, 0, neighbour<true>, in.data(), out.data());
    } else if (what == "unordered-neighbour") {
        status = launch(1, 0, neighbour<false>, in.data(), out.data());
    } else if (what == "misaligned") {
        status = launch(1, 0, misaligned, in.data(), out.data());
    } else if (what == "copied") {
        status = launch(1, 0, copied<true>, in.data(), out.data());
        out[kThreads] = out[kThreads - 8];
    } else if (what == "copied-unwaited") {
        status = launch(1, 0, copied<false>, in.data(), out.data());
    } else if (what == "unwritten") {
        simt::shared_variables() = {{reinterpret_cast<unsigned char*>(kept), sizeof kept}};
        status = launch(2, 0, unwritten, in.data(), out.data());
    } else if (what == "chained" || what == "chained-backwards") {
        status = launch(3, 0, chained, in.data(), out.data());
    } else if (what == "clusters" || what == "clusters-backwards") {
        status = launch_clusters(passed_on<true, true>, in.data(), out.data());
    } else if (what == "no-barrier-of-clusters") {
        status = launch_clusters(passed_on<false, true>, in.data(), out.data());
    } else if (what == "return-from-clusters") {
        status = launch_clusters(passed_on<true, false>, in.data(), out.data());
    } else if (what == "apart") {
        status = launch_clusters(apart, in.data(), out.data());
    } else if (what == "stranger") {
        status = launch_clusters(stranger, in.data(), out.data());
    } else if (what == "no-clusters") {
        status = launch_clusters(passed_on<true, true>, in.data(), out.data());
    } else if (what == "too-many-threads") {
        const cudaLaunchConfig_t how{dim3(1), dim3(2048), 0, nullptr, nullptr, 0};
        status = cudaLaunchKernelEx(&how, divergent, in.data(), out.data());
    } else if (what == "halves") {
        for (unsigned bits = 0; bits < 65536; ++bits) {
            const float half = __half2float({static_cast<std::uint16_t>(bits)});
            const float brain = __bfloat162float({static_cast<std::uint16_t>(bits)});
            std::printf("%08x %04x %08x %04x\n", __float_as_uint(half), __float2half_rn(half).bits,
                        __float_as_uint(brain), __float2bfloat16_rn(brain).bits);
        }
        for (unsigned step = 0; step < 65536; ++step) {  // all over the range, next to the ties
            for (unsigned low : {0x0fffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u}) {
                const float value = __uint_as_float((step << 16) | low);
                std::printf("%08x %04x %04x\n", __float_as_uint(value), __float2half_rn(value).bits,
                            __float2bfloat16_rn(value).bits);
            }
        }
        return 0;
    }
    std::printf("%d %d %g %g %g\n", status, votes, static_cast<double>(out[0]), static_cast<double>(out[32]),
                static_cast<double>(out[kThreads]));
    return 0;
}
