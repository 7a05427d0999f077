// Tensor cores and copies that are waited for, on a CPU: what kernels/mma.cuh asks of a GPU, with the same
// fragments in the same lanes.
//
// GPUs differ in how they add up, so this one does it as badly as any that was measured: four products at a
// time, what is added cut off 23 bits below the largest, the sum cut off too (Fasi, Higham, Mikaitis and
// Pranesh, Numerical behavior of NVIDIA tensor cores, PeerJ Computer Science 7, 2021). With
// SIMT_OTHER_TENSOR_CORE sums are made in float from the last product to the first, and subnormal elements
// count as 0, which PTX allows. Copies happen when they are waited for, as late as they may.
#pragma once

#include <array>
#include <cmath>

#include "simt.h"

namespace simt {

// The values of all lanes.
inline std::array<std::uint64_t, kWarp> of_all_lanes(std::uint64_t value) {
    const auto* slots = exchange(value);
    std::array<std::uint64_t, kWarp> all;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        all[lane] = read(slots + lane);
    }
    return all;
}

inline void load_fragments(unsigned (&to)[4], const void* row) {
    const auto rows = of_all_lanes(reinterpret_cast<std::uint64_t>(row));
    const unsigned lane = self().lane();
    for (unsigned i = 0; i < 4; ++i) {
        const char* start = reinterpret_cast<const char*>(rows[8 * i + lane / 4]);
        std::memcpy(&to[i], start + 4 * (lane % 4), sizeof to[i]);
    }
}

// The elements of a word, as exact numbers.
template <typename T>
double element(unsigned word, unsigned place) {
    double value;
    if constexpr (sizeof(T) == 4) {
        value = static_cast<double>(__uint_as_float(word));
    } else {
        const auto bits = static_cast<std::uint16_t>(word >> 16 * place);
        if constexpr (std::is_same_v<T, __half>) {
            value = static_cast<double>(__half2float({bits}));
        } else {
            value = static_cast<double>(__bfloat162float({bits}));
        }
    }
#if defined(SIMT_OTHER_TENSOR_CORE)
    const double least = std::is_same_v<T, __half> ? 0x1p-14 : 0x1p-126;
    return std::fabs(value) < least ? 0.0 : value;
#else
    return value;
#endif
}

inline float cut_off(double value) {
    const float near = static_cast<float>(value);
    return std::fabs(static_cast<double>(near)) > std::fabs(value) ? std::nextafterf(near, 0.0f) : near;
}

// A sum and further products, as a tensor core adds them.
inline float accumulated(float sum, const double* products, int count) {
#if defined(SIMT_OTHER_TENSOR_CORE)
    for (int i = count; i-- > 0;) {
        sum += static_cast<float>(products[i]);
    }
    return sum;
#else
    constexpr int kAtOnce = 4;
    constexpr std::uint64_t kExponent = 0x7ff0000000000000;  // of a double
    for (int first = 0; first < count; first += kAtOnce) {
        double largest = std::fabs(static_cast<double>(sum)), total = static_cast<double>(sum);
        for (int i = first; i < first + kAtOnce; ++i) {
            largest = std::max(largest, std::fabs(products[i]));
            total += products[i];
        }
        if (!std::isfinite(total)) {
            sum = static_cast<float>(total);
        } else if (largest > 0) {
            const double unit = unpacked<double>(packed(largest) & kExponent) * 0x1p-23, inverse = 1 / unit;
            auto units = static_cast<std::int64_t>(static_cast<double>(sum) * inverse);
            for (int i = first; i < first + kAtOnce; ++i) {
                units += static_cast<std::int64_t>(products[i] * inverse);
            }
            sum = cut_off(static_cast<double>(units) * unit);
        }
    }
    return sum;
#endif
}

template <typename T>
void multiply(T, float (&c)[4], const unsigned (&a)[4], unsigned first, unsigned second) {
    constexpr unsigned kEach = 4 / sizeof(T);
    const auto word = [](std::uint64_t both, bool upper) {
        return static_cast<unsigned>(upper ? both >> 32 : both);
    };
    const auto paired = [](unsigned low, unsigned high) { return low | std::uint64_t{high} << 32; };
    const auto near = of_all_lanes(paired(a[0], a[1])), far = of_all_lanes(paired(a[2], a[3]));
    const auto right = of_all_lanes(paired(first, second));
    const unsigned lane = self().lane();
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned column = 2 * (lane % 4) + i % 2;
        double products[8 * kEach];
        for (unsigned k = 0; k < 8; ++k) {
            const unsigned left_word = word((k < 4 ? near : far)[lane / 4 * 4 + k % 4], i >= 2);
            const unsigned right_word = word(right[4 * column + k % 4], k >= 4);
            for (unsigned j = 0; j < kEach; ++j) {
                products[k * kEach + j] = element<T>(left_word, j) * element<T>(right_word, j);
            }
        }
        c[i] = accumulated(c[i], products, 8 * kEach);
    }
}

inline unsigned shortened(unsigned word) {
    const unsigned rest = word & 0x7fffffffu;
    return rest > 0x7f800000u ? 0x7fffffffu : rest == 0x7f800000u ? word : (word + 0x1000u) & ~0x1fffu;
}

inline void copy_later(void* to, const void* from, bool zeros) {
    self().copies.asked.push_back({to, zeros ? nullptr : from});
}

inline void close_copies() {
    self().copies.ends.push_back(self().copies.asked.size());
}

template <int kPending>
void wait_for_copies() {
    Copies& copies = self().copies;
    if (copies.ends.size() <= kPending) {
        return;
    }
    const std::size_t groups = copies.ends.size() - kPending, done = copies.ends[groups - 1];
    for (std::size_t i = 0; i < done; ++i) {
        const Copies::Copy& copy = copies.asked[i];
        copy.from == nullptr ? std::memset(copy.to, 0, 16) : std::memcpy(copy.to, copy.from, 16);
    }
    copies.asked.erase(copies.asked.begin(), copies.asked.begin() + static_cast<std::ptrdiff_t>(done));
    copies.ends.erase(copies.ends.begin(), copies.ends.begin() + static_cast<std::ptrdiff_t>(groups));
    for (std::size_t& end : copies.ends) {
        end -= done;
    }
}

}  // namespace simt
