// The squared distances of all pairs of an image's tokens, in memory: what a clustering reads rows of. Laid
// out as the cosines of gram.cuh, by as many images at once as it says.
//
// Division  a tile of pairs a block (tile.cuh).
// Bound     arithmetic: 3 B N^2 D operations in fp32 (differences, not products: equal tokens are at 0), by
//           (N / tile)^2 blocks an image.
#pragma once

#include "gram.cuh"
#include "nearest.cuh"

namespace tokenrt {
namespace distances {

// rows [n,n]: what is infinite or NaN counts as kFarthest. Grid: tiles of columns, of rows, images.
template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    between(const T* __restrict__ metric, float* __restrict__ workspace, int tokens, int width) {
    __shared__ TileShared<T, Policy> shared;
    constexpr int kEach = Policy::kEach;
    const int x = static_cast<int>(threadIdx.x) % Policy::kSide,
              y = static_cast<int>(threadIdx.x) / Policy::kSide;
    const std::int64_t image = blockIdx.z;
    const int column = static_cast<int>(blockIdx.x) * Policy::kTile;
    const int row = static_cast<int>(blockIdx.y) * Policy::kTile;
    const T* rows = metric + image * tokens * width;
    float* out = gram::held_by(workspace, image, tokens).rows;
    float square[kEach][kEach];
    tile_product<T, Policy, kWhole, Tile::kDistances>(
        shared, [=](int i) { return row_of(rows, row + i, tokens, width); },
        [=](int i) { return row_of(rows, column + i, tokens, width); }, width, square);
    const int first = column + kEach * x;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
        const int own = row + kEach * y + i;
        if (own < tokens && first < tokens) {
            *reinterpret_cast<float4*>(out + static_cast<std::int64_t>(own) * gram::pitch_of(tokens) +
                                       first) = float4{measured(square[i][0]), measured(square[i][1]),
                                                       measured(square[i][2]), measured(square[i][3])};
        }
    }
}

template <typename T, bool kWhole>
cudaError_t run(const T* metric, float* workspace, int batch, int tokens, int width, cudaStream_t stream) {
    const int tile = gram::tile_of(tokens, kWhole);
    const unsigned tiles = static_cast<unsigned>(ceil_div(tokens, tile));
    const dim3 grid(tiles, tiles, static_cast<unsigned>(batch));
    if constexpr (kWhole) {
        if (tile == 64) {
            using Policy = TilePolicy<64>;
            return launch(between<T, Policy, kWhole>, grid, Policy::kThreads, stream, metric, workspace,
                          tokens, width);
        }
    }
    using Policy = TilePolicy<32>;
    return launch(between<T, Policy, kWhole>, grid, Policy::kThreads, stream, metric, workspace, tokens,
                  width);
}

// The distances of token `row`, from the warp that looks at it.
__device__ __forceinline__ const float* row_at(float* workspace, std::int64_t image, int row, int tokens) {
    return gram::held_by(workspace, image, tokens).rows +
           static_cast<std::int64_t>(row) * gram::pitch_of(tokens);
}

}  // namespace distances
}  // namespace tokenrt
