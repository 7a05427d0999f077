// What both modes share: the state of one thread, warp and block, and how a broken kernel is reported.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "types.h"

namespace simt {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kMostShared = 48 * 1024;  // what a launch may ask for without cudaFuncSetAttribute
constexpr unsigned kMostCluster = 16;           // blocks of a cluster, where that was asked for

// Copies of 16 bytes that a thread asked for, and where its groups of them end (tensor.h); from null: zeros.
struct Copies {
    struct Copy {
        void* to;
        const void* from;
    };
    std::vector<Copy> asked;
    std::vector<std::size_t> ends;
};

struct Thread {
    uint3 index{};
    unsigned flat = 0;
    Copies copies{};
    unsigned lane() const { return flat % kWarp; }
    unsigned warp() const { return flat / kWarp; }
};

// The static variables that stand for shared memory, as whoever loaded the library found them (host_shared).
struct Variable {
    unsigned char* start;
    std::size_t bytes;
};
inline std::vector<Variable>& shared_variables() {
    static std::vector<Variable> all;
    return all;
}

// Whether blocks run from the last to the first. On a GPU they run in any order, and no launch may lean on
// one.
inline bool& backwards() {
    static bool chosen = false;
    return chosen;
}

// What a block shows to the others of its cluster.
struct alignas(128) Shown {
    unsigned char bytes[kMostShared];
};

[[noreturn]] inline void fail(const char* what, int line) {
    std::fprintf(stderr, "simt: %s (line %d of the kernel)\n", what, line);
    std::abort();
}

constexpr char kDivergent[] = "threads of one block wait at different barriers";
constexpr char kReturned[] = "a thread returned while others of its block wait at a barrier";
constexpr char kStuck[] = "no thread can go on: a barrier or a warp operation that some threads never reach";
constexpr char kApart[] = "blocks of a cluster wait at different barriers of it, or one has returned";
constexpr char kStranger[] = "no place of the memory that the blocks of a cluster show each other";

// Shared memory starts as NaN in every block: nothing may lean on what an earlier block left there. The
// blocks of a cluster take turns, each up to the next barrier of the cluster, and find shared memory as NaN
// in every turn: what others read, and what a block still needs behind such a barrier, lies in `shown`, of
// which each block has its own, NaN before it begins and again when it has returned.
struct Grid {
    dim3 grid, block;
    uint3 index{};
    std::size_t shared_bytes = 0;
    std::unique_ptr<unsigned char[]> shared;
    unsigned cluster = 1, rank = 0, round = 0;  // blocks of a cluster, the one whose turn it is, its turn
    std::vector<Shown> shown{};

    unsigned threads() const { return block.x * block.y * block.z; }
    void poison() {
        for (const Variable& one : shared_variables()) {
            std::memset(one.start, 0xff, one.bytes);
        }
        if (shared_bytes != 0) {
            std::memset(shared.get(), 0xff, shared_bytes);
        }
    }
    Thread thread(unsigned flat) const {
        return {{flat % block.x, flat / block.x % block.y, flat / block.x / block.y}, flat, {}};
    }
    // turn(first) runs one block, from its beginning or from where it waits, and returns the line of the
    // barrier of the cluster that it waits at then, 0 where it has returned.
    template <typename Turn>
    void every_block(Turn turn) {
        const std::uint64_t across = grid.x / cluster, count = across * grid.y * grid.z;
        shown.resize(cluster > 1 ? cluster : 0);
        for (std::uint64_t done = 0; done < count; ++done) {
            const std::uint64_t flat = backwards() ? count - 1 - done : done, row = flat / across;
            const uint3 first{static_cast<unsigned>(flat % across) * cluster,
                              static_cast<unsigned>(row % grid.y), static_cast<unsigned>(row / grid.y)};
            hide(shown.data(), shown.size());
            bool begins = true;
            for (int line = 1; line != 0; begins = false, ++round) {
                for (unsigned each = 0; each < cluster; ++each) {
                    rank = backwards() ? cluster - 1 - each : each;
                    index = {first.x + rank, first.y, first.z};
                    poison();
                    const int waits = turn(begins);
                    if (each != 0 && waits != line) {
                        fail(kApart, waits != 0 ? waits : line);
                    }
                    line = waits;
                    if (line == 0 && cluster > 1) {
                        hide(&shown[rank], 1);
                    }
                }
            }
        }
    }
    static void hide(Shown* blocks, std::size_t count) {
        if (count != 0) {
            std::memset(blocks, 0xff, count * sizeof(Shown));
        }
    }

    // Where another block of the cluster has what this one has at `own`.
    void* mapped(const void* own, unsigned other) {
        const auto place = reinterpret_cast<std::uintptr_t>(own);
        const auto start = rank < shown.size() ? reinterpret_cast<std::uintptr_t>(&shown[rank]) : 0;
        if (start == 0 || place < start || place - start >= kMostShared || other >= cluster) {
            fail(kStranger, 0);
        }
        return shown[other].bytes + (place - start);
    }
};

}  // namespace simt
