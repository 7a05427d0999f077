// TokenMerge of an image by the blocks of one cluster, in one launch.
//
// Division  a tile of 64 sources and 64 destinations a block, compared as by match::similarity, leaves the
//           best of each of its rows in shared memory. Behind a barrier of the cluster every block reads the
//           bests of all, ranks the sources as combine::merge_pairs does, and merges its slots, 8 at a time.
//           Nobody returns before all have read.
// Bound     latency: what a launch costs is saved; fewer blocks take larger tiles, and slots in turns.
#pragma once

#include "cluster.cuh"
#include "filter.cuh"
#include "merge_pairs.cuh"

namespace tokenrt {
namespace combine {

// What a cluster costs and saves, in cycles: a launch less two barriers; a turn of slots beyond the first;
// 128 bytes of the metric's rows, of which a tile of 64 takes longer than one of 32. Of the model of cost:
// perf/cost.
constexpr int kSavedCycles = 3500, kTurnCycles = 1500, kSliceCycles = 240, kSliceBytes = 128;

struct ImagePolicy : MergePolicy<256> {
    using Tiles = TilePolicy<64>;
    static_assert(Tiles::kThreads == kThreads, "who compares then ranks and merges");
    static constexpr int kTile = Tiles::kTile, kWarps = kThreads / static_cast<int>(kWarp);
};

// What a block holds: the bests of its tile, which others read, and what it compares and then ranks in.
template <typename Metric>
struct ImageShared {
    using Found = match::Nearest<Metric, ImagePolicy::Tiles, true, true>;
    Part best[ImagePolicy::kTile];
    union {
        typename Found::Shared compared;
        match::Pairs<ImagePolicy> pairs;
    };
};

// How the slots of an image are divided: those that a block takes at a time, and stretches of channels.
template <typename Own>
__host__ __device__ constexpr int image_parts(int keep, int width) {
    return (keep + ImagePolicy::kWarps - 1) / ImagePolicy::kWarps *
           ((width + Own::kStretch - 1) / Own::kStretch);
}

template <typename T, typename Metric>
static __global__ void __launch_bounds__(ImagePolicy::kThreads, ImagePolicy::kBlocks)
    merge_image(const T* __restrict__ tokens, const float* __restrict__ size,
                const Metric* __restrict__ metric, const int* __restrict__ sources,
                const int* __restrict__ destinations, const int* __restrict__ others, T* __restrict__ merged,
                float* __restrict__ total, float* __restrict__ value, std::int64_t* __restrict__ keep,
                std::int64_t* __restrict__ source, std::int64_t* __restrict__ destination, int width,
                MatchShape shape) {
    if constexpr (kClusters) {
        using Shared = ImageShared<Metric>;
        using Own = Survivor<T, Pack<T>::kCount, ImagePolicy::kVectors>;
        constexpr int kTile = ImagePolicy::kTile;
        Shared& shared = shown<Shared>();
        const std::int64_t image = blockIdx.z;
        const int me = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
        const int down = (shape.sources + kTile - 1) / kTile,
                  across = (shape.destinations + kTile - 1) / kTile;
        if (me < down * across) {
            const int first = me % down * kTile, begin = me / down * kTile;
            Shared::Found::find(
                shared.compared, metric + image * shape.tokens * shape.width, first, begin,
                min(begin + kTile, shape.destinations), sources, destinations, shape,
                [&](int row, float best, int where) { shared.best[row - first] = Part{best, where}; });
        }
        cluster_barrier();
        float* values = value + image * shape.sources;
        shared.pairs.rank(shape, [&](int i) {
            const Part best = best_part(across, [&](int stretch) {
                return shown_by(stretch * down + i / kTile, shared.best)[i % kTile];
            });
            if (me == 0) {
                values[i] = best.value;
            }
            return best;
        });
        if (me == 0) {
            shared.pairs.write(sources, destinations, others, keep + image * shape.keep(),
                               source + image * shape.remove, destination + image * shape.remove, shape);
        }
        const int stretches = (width + Own::kStretch - 1) / Own::kStretch;
        for (int part = me; part < image_parts<Own>(shape.keep(), width); part += blocks) {
            const int slot = part / stretches * ImagePolicy::kWarps + static_cast<int>(warp());
            if (slot < shape.keep()) {
                merge_ranked<Own>(shared.pairs, slot, part % stretches * Own::kStretch,
                                  tokens + image * shape.tokens * width, size + image * shape.tokens, sources,
                                  destinations, others, merged + image * shape.keep() * width,
                                  total + image * shape.keep(), width, shape);
            }
        }
        cluster_leave();
    }
}

// The blocks of a cluster by which a GPU merges an image sooner than by two launches; 0 where it does not.
// Rows are whole vectors.
template <typename T, typename Metric>
int image_blocks(int width, const MatchShape& shape, Gpu gpu) {
    using Own = Survivor<T, Pack<T>::kCount, ImagePolicy::kVectors>;
    const long long blocks = gpu.cluster(), tile = ImagePolicy::kTile,
                    tiles = ceil_div(shape.sources, tile) * ceil_div(shape.destinations, tile);
    if (blocks == 0 || tiles > blocks || shape.sources > ImagePolicy::kMost || !match::filters(shape.width) ||
        blocks * shape.batch > gpu.multiprocessors) {
        return 0;
    }
    const long long turns = ceil_div(image_parts<Own>(shape.keep(), width), blocks),
                    slices = ceil_div(1ll * shape.width * static_cast<int>(sizeof(Metric)), kSliceBytes),
                    spent = kTurnCycles * (turns - 1) + kSliceCycles * slices;
    return spent <= kSavedCycles ? static_cast<int>(blocks) : 0;
}

// The whole of TokenMerge, or an error where this GPU does it in another way, and then nothing was launched.
template <typename T, typename Metric>
cudaError_t run_image(const void* tokens, const float* size, const void* metric, const int* sources,
                      const int* destinations, const int* others, void* merged, float* total, float* value,
                      std::int64_t* keep, std::int64_t* source, std::int64_t* destination, int width,
                      MatchShape shape, cudaStream_t stream) {
    if (!in_vectors<T>(width, tokens, merged) || !in_vectors<Metric>(shape.width, metric)) {
        return cudaErrorNotSupported;
    }
    const int blocks = image_blocks<T, Metric>(width, shape, Gpu::current());
    if (blocks == 0) {
        return cudaErrorNotSupported;
    }
    const dim3 grid(static_cast<unsigned>(blocks), 1, static_cast<unsigned>(shape.batch));
    return launch_clusters(merge_image<T, Metric>, grid, ImagePolicy::kThreads, stream,
                           static_cast<const T*>(tokens), size, static_cast<const Metric*>(metric), sources,
                           destinations, others, static_cast<T*>(merged), total, value, keep, source,
                           destination, width, shape);
}

}  // namespace combine
}  // namespace tokenrt
