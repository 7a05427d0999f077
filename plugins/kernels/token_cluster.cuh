// TokenCluster: merge the two most similar clusters of tokens until K of N are left (agglomeration).
//
// Problem   metric [B,N,D] -> center [B,K] int64: the first token of each cluster, ascending; assign [B,N]
//           int64: the cluster of each token. Similarity of tokens is the cosine (0 for a zero row, -2 for
//           NaN), of clusters the largest, smallest or mean over their pairs. The most similar pair merges;
//           ties: the smaller first position, then the smaller second. A cluster stands at its first token.
// Division  1. compare: tiles of cosines (stream.cuh; halves on tensor cores, as in gram.cuh), half of them
//           mirrored, into a symmetric matrix in the workspace, which complete linkage cannot do without. 2.
//           merge: one block an image. Each row belongs to one lane, which remembers the row's best partner
//           behind it; a merge of (i, j) rewrites row and column i, and only rows whose partner was i or j
//           and got worse are searched again, by their whole warp. The best pair is then the best of N
//           remembered ones. Two barriers a merge.
// Bytes     B * N^2 * 4 written by compare and read by the first search; 20 N a merge and 4 N for each row
//           searched again, from cache.
// Bound     latency: N - K merges one after the other, each two reductions over a block and N / threads
//           entries a thread; a row or two is usually searched again.
#pragma once

#include "order.cuh"
#include "stream.cuh"

namespace tokenrt {

template <bool kLong>
struct ClusterPolicy {
    static constexpr int kThreads = kLong ? 512 : 256;  // 1024 leave too few registers
};
constexpr int kClusterLong = 1024;

struct ClusterShape {
    int batch, tokens, width, keep, linkage;
};

constexpr int kSingle = 0, kComplete = 1, kAverage = 2;

namespace cluster {

constexpr float kUnknown = -2.0f;  // a cosine that is NaN

// One image's part of the workspace. best_value, best_place: the most similar cluster behind each one.
struct Held {
    float* like;
    float* best_value;
    int *best_place, *members, *parent;
};

__host__ __device__ constexpr std::size_t words(std::size_t tokens) {
    return tokens * tokens + 4 * tokens;
}

__device__ __forceinline__ Held held_by(float* workspace, std::int64_t image, std::int64_t tokens) {
    float* like = workspace + image * static_cast<std::int64_t>(words(static_cast<std::size_t>(tokens)));
    float* rest = like + tokens * tokens;
    int* whole = reinterpret_cast<int*>(rest + tokens);
    return {like, rest, whole, whole + tokens, whole + 2 * tokens};
}

template <typename T, typename Policy, bool kWhole>
static __global__ void __launch_bounds__(Policy::kThreads, Policy::kBlocks)
    compare(const T* __restrict__ metric, float* __restrict__ workspace, ClusterShape shape) {
    using Form = TilesFor<T, Policy, kWhole>;
    __shared__ typename Form::Shared shared;
    const std::int64_t image = blockIdx.z;
    const int first = static_cast<int>(blockIdx.y) * Policy::kTile,
              base = static_cast<int>(blockIdx.x) * Policy::kTile;
    if (blockIdx.x < blockIdx.y) {
        return;  // below the diagonal: its mirror image writes it
    }
    const T* rows = metric + image * shape.tokens * shape.width;
    float* like = held_by(workspace, image, shape.tokens).like;
    const auto row_at = [=](int row) {
        return row < shape.tokens ? rows + static_cast<std::int64_t>(row) * shape.width : nullptr;
    };
    const auto store = [&](int, const typename Form::Products& products) {
#pragma unroll
        for (int i = 0; i < Form::kRows; ++i) {
            const int row = first + Form::row(i);
            const float row_length = length_of(shared.left_square[Form::row(i)]);
#pragma unroll
            for (int j = 0; j < Form::kColumns; ++j) {
                const int column = base + Form::column(j);
                const float column_length = length_of(shared.right_square[Form::column(j)]);
                float cosine = products[i][j] / row_length / column_length;
                cosine = isnan(cosine) ? kUnknown : cosine;
                if (row < column && column < shape.tokens) {
                    like[static_cast<std::int64_t>(row) * shape.tokens + column] = cosine;
                    like[static_cast<std::int64_t>(column) * shape.tokens + row] = cosine;
                }
            }
        }
    };
    Form::template stream<true>(
        shared, [=](int i) { return row_at(first + i); }, [=](int, int i) { return row_at(base + i); }, 1,
        shape.width, [](int) {}, store);
}

// The most similar cluster behind `row`, found by a whole warp. alive(c) says whether cluster c is there.
template <typename Alive>
__device__ __forceinline__ Best search(const float* like, int row, int tokens, Alive alive) {
    const float* entries = like + static_cast<std::int64_t>(row) * tokens;
    Best best{-INFINITY, tokens};
    for (int c = row + 1 + static_cast<int>(lane()); c < tokens; c += static_cast<int>(kWarp)) {
        const Best candidate{alive(c) ? entries[c] : -INFINITY, c};
        best = ahead(candidate, best) ? candidate : best;
    }
    return warp_best(best);
}

// Similarity to the union of two clusters, `share` the second one's part of its tokens. The mean is written
// so that equal similarities stay equal to the bit, and ties ties.
__device__ __forceinline__ float linked(int linkage, float one, float other, float share) {
    return linkage == kSingle     ? fmaxf(one, other)
           : linkage == kComplete ? fminf(one, other)
                                  : one + (other - one) * share;
}

template <int kThreads>
static __global__ void __launch_bounds__(kThreads, 1)
    merge(float* __restrict__ workspace, std::int64_t* __restrict__ center, std::int64_t* __restrict__ assign,
          ClusterShape shape) {
    __shared__ Best slots[kThreads / kWarp], row_slots[kThreads / kWarp];
    const std::int64_t image = blockIdx.x, tokens = shape.tokens;
    const int count = shape.tokens, start = static_cast<int>(warp() * kWarp), own = static_cast<int>(lane());
    const Held held = held_by(workspace, image, tokens);

    Best best{-INFINITY, count};
    for (int base = start; base < count; base += kThreads) {
        for (int bit = 0; bit < static_cast<int>(kWarp) && base + bit < count; ++bit) {
            const Best found = search(held.like, base + bit, count, [](int) { return true; });
            if (own == bit) {
                const int row = base + bit;
                held.best_value[row] = found.value;
                held.best_place[row] = found.place;
                held.members[row] = 1;
                held.parent[row] = row;
                best = ahead({found.value, row}, best) ? Best{found.value, row} : best;
            }
        }
    }
    best = block_best<kThreads>(best, slots);

    Best row_best{-INFINITY, count};  // the partner of the cluster merged last, i
    int i = -1;
    for (int left = count; left > shape.keep; --left) {
        // Of all clusters but i the best pair is `best`; that of i is not among them.
        const bool again = i >= 0 && ahead({row_best.value, i}, best);
        const int partner = again ? row_best.place : held.best_place[best.place];
        i = again ? i : best.place;
        const int j = partner, count_i = held.members[i], count_j = held.members[j];
        const float share = static_cast<float>(count_j) / static_cast<float>(count_i + count_j);
        const auto alive = [=](int c) { return c == i || (c != j && held.members[c] > 0); };
        best = row_best = {-INFINITY, count};
        for (int base = start; base < count; base += kThreads) {
            const int row = base + own;
            const bool other = row < count && row != i && alive(row);
            Best mine{-INFINITY, count};
            bool worse = false;
            if (other) {
                float& entry = held.like[i * tokens + row];
                const float now = linked(shape.linkage, entry, held.like[j * tokens + row], share);
                entry = held.like[row * tokens + i] = now;
                row_best = row > i && ahead({now, row}, row_best) ? Best{now, row} : row_best;
                mine = {held.best_value[row], held.best_place[row]};
                const bool lost = mine.place == j || (row < i && mine.place == i);
                const bool better = row < i && (lost ? now >= mine.value : ahead({now, i}, mine));
                mine = better ? Best{now, i} : mine;
                worse = lost && !better;
            }
            __syncwarp();  // a row searched again holds its new entry
            for (unsigned rest = __ballot_sync(kEveryLane, worse); rest != 0; rest &= rest - 1) {
                const int bit = __ffs(static_cast<int>(rest)) - 1;
                const Best found = search(held.like, base + bit, count, alive);
                mine = own == bit ? found : mine;
            }
            if (other) {
                held.best_value[row] = mine.value;
                held.best_place[row] = mine.place;
                best = ahead({mine.value, row}, best) ? Best{mine.value, row} : best;
            }
        }
        row_best = block_best<kThreads>(row_best, row_slots);
        if (j % kThreads == static_cast<int>(threadIdx.x)) {
            held.members[j] = 0;
            held.parent[j] = i;
        }
        if (i % kThreads == static_cast<int>(threadIdx.x)) {
            held.members[i] = count_i + count_j;
            held.best_value[i] = row_best.value;
            held.best_place[i] = row_best.place;
        }
        best = block_best<kThreads>(best, slots);
    }

    int* slot = held.best_place;
    std::int64_t* out = center + image * shape.keep;
    Numbers running{0, 0};
    for (int base = 0; base < count; base += kThreads) {
        const int row = base + static_cast<int>(threadIdx.x);
        const bool first = row < count && held.members[row] > 0;
        const int before = number<kThreads>(first, false, running).first;
        if (first) {
            out[before] = row;
            slot[row] = before;
        }
    }
    __syncthreads();
    // From the parents to the roots, which are up to N - K away: each round doubles how far a row has come.
    int *reached = held.parent, *next = held.members;
    for (int far = 1; far < count - shape.keep; far *= 2) {
        for (int row = static_cast<int>(threadIdx.x); row < count; row += kThreads) {
            next[row] = reached[reached[row]];
        }
        __syncthreads();
        int* const before = reached;
        reached = next;
        next = before;
    }
    for (int row = static_cast<int>(threadIdx.x); row < count; row += kThreads) {
        assign[image * tokens + row] = slot[reached[row]];
    }
}

// Images whose similarities the workspace holds at once: as many as there are, up to 1 GiB. Beyond that the
// rest take their turn, in launches of their own.
constexpr std::size_t kMostWorkspace = std::size_t{1} << 30;

inline int at_once(int batch, int tokens) {
    const std::size_t image = sizeof(float) * words(static_cast<std::size_t>(tokens));
    const std::size_t most = image >= kMostWorkspace ? 1 : kMostWorkspace / image;
    return static_cast<std::size_t>(batch) < most ? batch : static_cast<int>(most);
}

template <typename T, typename Policy, bool kWhole>
cudaError_t run_compare(const T* metric, float* workspace, ClusterShape shape, cudaStream_t stream) {
    const unsigned tiles = static_cast<unsigned>(ceil_div(shape.tokens, Policy::kTile));
    return launch(compare<T, Policy, kWhole>, dim3(tiles, tiles, static_cast<unsigned>(shape.batch)),
                  Policy::kThreads, stream, metric, workspace, shape);
}

// Both launches for images that the workspace holds at once.
template <typename T>
cudaError_t run(const T* metric, float* workspace, std::int64_t* center, std::int64_t* assign,
                ClusterShape shape, cudaStream_t stream) {
    const bool whole = in_vectors<T>(shape.width, metric), large = shape.tokens >= kClusterLong;
    const auto compare =
        whole ? large ? run_compare<T, TilePolicy<64>, true> : run_compare<T, TilePolicy<32>, true>
              : run_compare<T, TilePolicy<32>, false>;
    const cudaError_t state = compare(metric, workspace, shape, stream);
    if (state != cudaSuccess) {
        return state;
    }
    const dim3 images(static_cast<unsigned>(shape.batch));
    return shape.tokens > kClusterLong
               ? launch(merge<ClusterPolicy<true>::kThreads>, images, ClusterPolicy<true>::kThreads, stream,
                        workspace, center, assign, shape)
               : launch(merge<ClusterPolicy<false>::kThreads>, images, ClusterPolicy<false>::kThreads, stream,
                        workspace, center, assign, shape);
}

}  // namespace cluster

inline std::size_t token_cluster_workspace(int batch, int tokens) {
    return sizeof(float) * static_cast<std::size_t>(cluster::at_once(batch, tokens)) *
           cluster::words(static_cast<std::size_t>(tokens));
}

// metric [B,N,D] of element type `type` -> center [B,K], assign [B,N].
inline cudaError_t token_cluster(int type, const void* metric, std::int64_t* center, std::int64_t* assign,
                                 void* workspace, ClusterShape shape, cudaStream_t stream) {
    if (!within_limits(shape) || shape.keep == shape.tokens ||
        static_cast<long long>(shape.tokens - shape.keep) * shape.tokens > kTokenClusterWork ||
        !within(shape.linkage, kSingle, kAverage)) {
        return cudaErrorInvalidValue;
    }
    const cudaError_t bad = check_pointers(rows_of(type, metric), center, assign, workspace);
    if (bad != cudaSuccess) {
        return bad;
    }
    return with_type(type, [=](auto* like) {
        using T = std::remove_pointer_t<decltype(like)>;
        const int most = cluster::at_once(shape.batch, shape.tokens);
        return in_turns(shape, most, [=](std::int64_t first, ClusterShape part) {
            const T* rows = static_cast<const T*>(metric) + first * shape.tokens * shape.width;
            return cluster::run(rows, static_cast<float*>(workspace), center + first * shape.keep,
                                assign + first * shape.tokens, part, stream);
        });
    });
}

}  // namespace tokenrt
