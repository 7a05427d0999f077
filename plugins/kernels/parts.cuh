// Rows compared with many others by several blocks: each block a tile of rows and a stretch of the others,
// the best of which it notes for every row.
#pragma once

#include "common.cuh"

namespace tokenrt {

constexpr int kFill = 512;  // blocks an image, beyond which more fill no GPU

// How the others are divided: tiles of a stretch, and stretches.
struct Stretches {
    int tiles, count;
};

// As many as it takes for kFill blocks an image, a tile each at the least; the batch does not count.
constexpr Stretches stretches_of(int rows, int others, int tile) {
    const long long all = ceil_div(others, tile), most = ceil_div(kFill, ceil_div(rows, tile));
    const long long tiles = ceil_div(all, all < most ? all : most);
    return {static_cast<int>(tiles), static_cast<int>(ceil_div(all, tiles))};
}

// The best of one stretch for a row, the first among equals: [B,stretches,rows].
struct alignas(8) Part {
    float value;
    int nearest;
};

// Parts of an image of this many rows or fewer, and of no more others, whose tiles are 32: with R tiles of
// rows at most R stretches, and at most kFill / R + 1.
constexpr std::size_t most_parts(int rows) {
    const long long tiles = ceil_div(rows, 32), each = rows * tiles, filled = 32ll * kFill + rows;
    return static_cast<std::size_t>(each < filled ? each : filled);
}

// The best over all stretches, of which part(i) is one: the earlier one among equals, which stands in front.
template <typename Stretch>
__device__ __forceinline__ Part best_part(int stretches, Stretch part) {
    Part best = part(0);
    for (int i = 1; i < stretches; ++i) {
        const Part next = part(i);
        best = next.value > best.value ? next : best;
    }
    return best;
}
__device__ __forceinline__ Part best_of(const Part* parts, int row, int stretches, int rows) {
    return best_part(stretches, [=](int i) { return parts[static_cast<std::int64_t>(i) * rows + row]; });
}

}  // namespace tokenrt
