// What both modes share: the state of one thread, warp and block, and how a broken kernel is reported.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "types.h"

namespace simt {

constexpr unsigned kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kMostShared = 48 * 1024;  // what a launch may ask for without cudaFuncSetAttribute

struct Thread {
    uint3 index{};
    unsigned flat = 0;
    unsigned lane() const { return flat % kWarp; }
    unsigned warp() const { return flat / kWarp; }
};

// Dynamic shared memory starts as NaN in every block: nothing may lean on what an earlier block left there.
struct Grid {
    dim3 grid, block;
    uint3 index{};
    std::size_t shared_bytes = 0;
    std::unique_ptr<unsigned char[]> shared;

    unsigned threads() const { return block.x * block.y * block.z; }
    void poison() {
        if (shared_bytes != 0) {
            std::memset(shared.get(), 0xff, shared_bytes);
        }
    }
    Thread thread(unsigned flat) const {
        return {{flat % block.x, flat / block.x % block.y, flat / block.x / block.y}, flat};
    }
    template <typename Run>
    void every_block(Run run) {
        for (index.z = 0; index.z < grid.z; ++index.z) {
            for (index.y = 0; index.y < grid.y; ++index.y) {
                for (index.x = 0; index.x < grid.x; ++index.x) {
                    run();
                }
            }
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
