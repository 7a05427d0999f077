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

// Shared memory starts as NaN in every block: nothing may lean on what an earlier block left there.
struct Grid {
    dim3 grid, block;
    uint3 index{};
    std::size_t shared_bytes = 0;
    std::unique_ptr<unsigned char[]> shared;

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
    template <typename Run>
    void every_block(Run run) {
        const std::uint64_t count = std::uint64_t{grid.x} * grid.y * grid.z;
        for (std::uint64_t done = 0; done < count; ++done) {
            const std::uint64_t flat = backwards() ? count - 1 - done : done, row = flat / grid.x;
            index = {static_cast<unsigned>(flat % grid.x), static_cast<unsigned>(row % grid.y),
                     static_cast<unsigned>(row / grid.y)};
            run();
        }
    }
};

[[noreturn]] inline void fail(const char* what, int line) {
    std::fprintf(stderr, "simt: %s (line %d of the kernel)\n", what, line);
    std::abort();
}

constexpr char kDivergent[] = "threads of one block wait at different barriers";
constexpr char kReturned[] = "a thread returned while others of its block wait at a barrier";
constexpr char kStuck[] = "no thread can go on: a barrier or a warp operation that some threads never reach";

}  // namespace simt
