// Mode B: every CUDA thread is a thread of the machine, so that ThreadSanitizer sees each missing barrier.
//
// The orders a kernel may lean on are the ones ThreadSanitizer is shown: __syncthreads and __syncwarp order
// memory; shuffles, votes and atomics order nothing, and are built from relaxed operations and fences it does
// not see. Blocks run one after another, so a race between blocks stays invisible: no kernel here writes what
// another reads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "block.h"

namespace simt {

class Barrier {
  public:
    void reset(unsigned size) { size_ = size, arrived_ = 0, returned_ = 0; }
    void arrive(int line) {
        std::unique_lock<std::mutex> held(mutex_);
        if (returned_ != 0) {
            fail(kReturned, line);
        }
        if (arrived_ != 0 && line != line_) {
            fail(kDivergent, line);
        }
        line_ = line;
        const unsigned mine = generation_;
        if (++arrived_ == size_) {
            arrived_ = 0;
            ++generation_;
            everyone_.notify_all();
        } else {
            everyone_.wait(held, [&] { return generation_ != mine; });
        }
    }
    void leave() {
        const std::lock_guard<std::mutex> held(mutex_);
        if (arrived_ != 0) {
            fail(kReturned, line_);
        }
        ++returned_;
    }

  private:
    std::mutex mutex_;
    std::condition_variable everyone_;
    unsigned size_ = 0, arrived_ = 0, returned_ = 0, generation_ = 0;
    int line_ = 0;
};

struct WarpState {
    std::atomic<std::uint64_t> slot[2][kWarp];
    std::atomic<unsigned> arrived{0}, generation{0};
    std::atomic<unsigned> ordered{0};
};

struct Engine {
    std::mutex one_launch;
    Grid grid;
    Barrier inner, outer;  // outer: between blocks
    WarpState warps[kMostThreads / kWarp];
};

inline Engine& engine() {
    static Engine* const one = new Engine;
    return *one;
}

inline thread_local Thread current;

inline Thread& self() {
    return current;
}
inline Grid& grid() {
    return engine().grid;
}
inline void barrier(int line) {
    engine().inner.arrive(line);
}

// A fence of the processor that ThreadSanitizer does not know: nothing counts as ordered by it.
inline void hidden_fence() {
#if defined(__x86_64__)
    __asm__ volatile("mfence" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("dmb ish" ::: "memory");
#else
#error "mode B knows the fences of x86-64 and aarch64 only"
#endif
}

inline std::atomic<std::uint64_t>* exchange(std::uint64_t value) {
    WarpState& warp = engine().warps[current.warp()];
    const unsigned mine = warp.generation.load(std::memory_order_relaxed);
    std::atomic<std::uint64_t>* slots = warp.slot[mine % 2];
    slots[current.lane()].store(value, std::memory_order_relaxed);
    hidden_fence();
    if (warp.arrived.fetch_add(1, std::memory_order_relaxed) + 1 == kWarp) {
        warp.arrived.store(0, std::memory_order_relaxed);
        hidden_fence();
        warp.generation.store(mine + 1, std::memory_order_relaxed);
    } else {
        while (warp.generation.load(std::memory_order_relaxed) == mine) {
            std::this_thread::yield();
        }
    }
    hidden_fence();
    return slots;
}

inline std::uint64_t read(const std::atomic<std::uint64_t>* slot) {
    return slot->load(std::memory_order_relaxed);
}

// Everybody adds before the exchange and reads after it, which is an order ThreadSanitizer is shown.
inline void warp_barrier() {
    WarpState& warp = engine().warps[current.warp()];
    warp.ordered.fetch_add(1, std::memory_order_acq_rel);
    exchange(0);
    warp.ordered.fetch_add(1, std::memory_order_acq_rel);
}

inline void run(dim3 blocks, dim3 block, std::size_t shared, std::function<void()> body) {
    Engine& one = engine();
    const std::lock_guard<std::mutex> held(one.one_launch);
    one.grid = {blocks, block, {}, shared, std::unique_ptr<unsigned char[]>(new unsigned char[shared])};
    const unsigned count = one.grid.threads();
    one.outer.reset(count + 1);
    bool more = true;
    std::vector<std::thread> threads;
    for (unsigned flat = 0; flat < count; ++flat) {
        threads.emplace_back([&, flat] {
            current = one.grid.thread(flat);
            for (one.outer.arrive(0); more; one.outer.arrive(0)) {
                body();
                one.inner.leave();
                one.outer.arrive(0);
            }
        });
    }
    one.grid.every_block([&] {
        one.grid.poison();
        one.inner.reset(count);
        one.outer.arrive(0);
        one.outer.arrive(0);
    });
    more = false;
    one.outer.arrive(0);
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace simt
