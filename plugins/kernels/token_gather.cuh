// TokenRestore, and gathering: copy whole rows by index.
//
// Problem   rows [B,K,C] of any element type, index [B,M] int64 in 0 .. K-1 -> out [B,M,C]. TokenRestore has
//           M = N0 > K; gathering what TokenSelect kept has M < K. An index out of range gives a row of
//           zeros, never a read beside the tensor.
// Division  one warp a row: lanes take neighbouring 16-byte vectors, four in flight each. Rows whose length
//           is no multiple of 16 bytes go by 8, 4 or 2.
// Bytes     B * M * (2 * C * size + 8): each output row is read once and written once.
// Bound     memory bandwidth.
#pragma once

#include "common.cuh"

namespace tokenrt {

struct GatherPolicy {
    static constexpr int kThreads = 256;
    static constexpr int kInFlight = 4;
};

namespace gather {

template <typename Vector, typename Policy>
static __global__ void __launch_bounds__(Policy::kThreads)
    copy_rows(const Vector* __restrict__ rows, const std::int64_t* __restrict__ index,
              Vector* __restrict__ out, std::int64_t count, int from, int to, int length) {
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (Policy::kThreads / kWarp) + warp();
    if (row >= count) {
        return;
    }
    const std::int64_t place = index[row];
    const bool exists = place >= 0 && place < from;
    const Vector* source = rows + (row / to * from + (exists ? place : 0)) * length;
    Vector* target = out + row * length;
    constexpr int kStep = static_cast<int>(kWarp) * Policy::kInFlight;
    for (int base = static_cast<int>(lane()); base < length; base += kStep) {
        Vector held[Policy::kInFlight];
#pragma unroll
        for (int i = 0; i < Policy::kInFlight; ++i) {
            const int at = base + i * static_cast<int>(kWarp);
            held[i] = exists && at < length ? source[at] : Vector{};
        }
#pragma unroll
        for (int i = 0; i < Policy::kInFlight; ++i) {
            const int at = base + i * static_cast<int>(kWarp);
            if (at < length) {
                target[at] = held[i];
            }
        }
    }
}

template <typename Vector>
cudaError_t run(const void* rows, const std::int64_t* index, void* out, int batch, int from, int to,
                std::size_t bytes, cudaStream_t stream) {
    using Policy = GatherPolicy;
    const std::int64_t count = static_cast<std::int64_t>(batch) * to;
    const dim3 grid(static_cast<unsigned>(ceil_div(count, Policy::kThreads / kWarp)));
    return launch(copy_rows<Vector, Policy>, grid, Policy::kThreads, stream, static_cast<const Vector*>(rows),
                  index, static_cast<Vector*>(out), count, from, to,
                  static_cast<int>(bytes / sizeof(Vector)));
}

}  // namespace gather

// rows [B,K,C], index [B,M] -> out [B,M,C], with K `from`, M `to` and C `width`.
inline cudaError_t token_gather(int type, const void* rows, const std::int64_t* index, void* out, int batch,
                                int from, int to, int width, cudaStream_t stream) {
    // K tokens and N dropped ones may be appended to each other before a restore.
    if (!within(batch, 1, kMostBatch) || !within(from, 1, 2 * kMostTokens) || !within(to, 1, kMostTokens) ||
        !countable(max(from, to), width)) {
        return cudaErrorInvalidValue;
    }
    if (type != kFloat && type != kHalf && type != kBfloat16) {
        return cudaErrorNotSupported;
    }
    const cudaError_t bad = check_pointers(rows_of(type, rows), index, rows_of(type, out));
    if (bad != cudaSuccess) {
        return bad;
    }
    const std::size_t bytes = static_cast<std::size_t>(width) * bytes_of(type);
    const auto in = [=](std::size_t vector) {
        return bytes % vector == 0 && starts_on(rows, vector) && starts_on(out, vector);
    };
    const auto run = in(16)  ? gather::run<uint4>
                     : in(8) ? gather::run<uint2>
                     : in(4) ? gather::run<unsigned>
                             : gather::run<unsigned short>;
    return run(rows, index, out, batch, from, to, bytes, stream);
}

}  // namespace tokenrt
