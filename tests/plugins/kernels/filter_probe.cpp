// Tiles on tensor cores for tests: products and squared lengths of some rows with a stream of others; and the
// nearest destinations of one image by the filter and by float32 alone, a tile of sources and a stretch of
// destinations a block.
#include <filter.cuh>
#include <parts.cuh>

namespace tokenrt {
namespace probe {

template <typename T, typename Policy>
__global__ void both(const T* rows, const int* sources, const int* destinations, Part* filtered, Part* exact,
                     int* settled, int stretch, MatchShape shape) {
    __shared__ match::FilterShared<T, Policy> shared;
    const int first = static_cast<int>(blockIdx.x) * Policy::kTile;
    const int begin = static_cast<int>(blockIdx.y) * stretch, end = min(begin + stretch, shape.destinations);
    const auto to = [&](Part* parts) {
        Part* own = parts + blockIdx.y * shape.sources;
        return [=](int row, float best, int where) { own[row] = Part{best, where}; };
    };
    const bool found =
        match::nearest_filtered(shared, rows, first, begin, end, sources, destinations, shape, to(filtered));
    if (threadIdx.x == 0) {
        settled[blockIdx.y * gridDim.x + blockIdx.x] = found;
    }
    __syncthreads();
    match::nearest_of<true>(shared.exact, rows, first, begin, end, sources, destinations, shape, to(exact));
}

template <typename T, typename Policy>
int run(const void* rows, const int* sources, const int* destinations, Part* filtered, Part* exact,
        int* settled, int stretch, MatchShape shape) {
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.sources, Policy::kTile)),
                    static_cast<unsigned>(ceil_div(shape.destinations, stretch)), 1);
    return launch(both<T, Policy>, grid, Policy::kThreads, nullptr, static_cast<const T*>(rows), sources,
                  destinations, filtered, exact, settled, stretch, shape);
}

// products [M,N], squares [M] and [N]: rows 0 .. M - 1, a tile of them, with the N that follow.
template <typename T, typename Policy>
__global__ void products(const T* rows, float* made, float* lefts, float* rights, int first, int others,
                         int width) {
    using Tiles = MmaTiles<T, Policy>;
    __shared__ typename Tiles::Shared shared;
    const auto row = [=](int i, int count) { return i < count ? rows + i * width : nullptr; };
    Tiles::template stream<true>(
        shared, [=](int i) { return row(i, first); },
        [=](int tile, int i) {
            const int column = tile * Policy::kTile + i;
            return column < others ? rows + (first + column) * width : nullptr;
        },
        (others + Policy::kTile - 1) / Policy::kTile, width, [](int) {},
        [=](int tile, const typename Tiles::Products& held) {
            for (int i = 0; i < Tiles::kRows; ++i) {
                for (int j = 0; j < Tiles::kColumns; ++j) {
                    const int r = Tiles::row(i), column = tile * Policy::kTile + Tiles::column(j);
                    if (r < first && column < others) {
                        made[r * others + column] = held[i][j];
                        lefts[r] = shared.left_square[r];
                        rights[column] = shared.right_square[Tiles::column(j)];
                    }
                }
            }
        });
}

template <typename T, typename Policy>
int multiply_rows(const void* rows, float* made, float* lefts, float* rights, int first, int others,
                  int width) {
    return launch(products<T, Policy>, dim3(1), Policy::kThreads, nullptr, static_cast<const T*>(rows), made,
                  lefts, rights, first, others, width);
}

}  // namespace probe
}  // namespace tokenrt

using namespace tokenrt;

extern "C" int host_products(int type, int tile, const void* rows, float* made, float* lefts, float* rights,
                             int first, int others, int width) {
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const auto chosen =
            tile == 32 ? probe::multiply_rows<T, TilePolicy<32>> : probe::multiply_rows<T, TilePolicy<64>>;
        return static_cast<cudaError_t>(chosen(rows, made, lefts, rights, first, others, width));
    });
}

extern "C" int host_filter(int type, int tile, const void* rows, const int* sources, const int* destinations,
                           void* filtered, void* exact, int* settled, int tokens, int width, int n_sources,
                           int n_destinations, int stretch) {
    const MatchShape shape{1, tokens, width, n_sources, n_destinations, 0, 1, kSourcesByPosition};
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const auto chosen = tile == 32 ? probe::run<T, TilePolicy<32>> : probe::run<T, TilePolicy<64>>;
        return static_cast<cudaError_t>(chosen(rows, sources, destinations, static_cast<Part*>(filtered),
                                               static_cast<Part*>(exact), settled, stretch, shape));
    });
}
