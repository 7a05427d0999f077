// Launches as they are asked for: what a test of grids and blocks reads, without running a kernel.
#pragma once

#include <vector>

#include "types.h"

namespace simt {

struct Launch {
    void (*kernel)();
    dim3 grid, block;
    unsigned cluster;  // blocks
    std::size_t shared_bytes;
};

// Of one thread of the machine. While `on`, its launches are noted here and not run.
struct Record {
    bool on = false;
    std::vector<Launch> launches;
};

inline Record& record() {
    static thread_local Record one;
    return one;
}

}  // namespace simt
