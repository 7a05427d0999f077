// Mode B: every CUDA thread is a thread of the machine, so that ThreadSanitizer sees each missing barrier.
//
// The orders a kernel may lean on are the ones ThreadSanitizer is shown: __syncthreads and __syncwarp order
// memory; shuffles, votes and atomics order nothing, and are built from relaxed operations and fences it does
// not see. Blocks run one after another, those of a cluster from one barrier of it to the next, so a race
// between blocks stays invisible. Only those of a cluster read what another writes: a barrier of the cluster
// that is missing shows in what they find (block.h).
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "block.h"

namespace simt {

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

// All threads wait for the last one. What ThreadSanitizer may see is exactly the order a barrier gives: each
// arrival before each departure. A mutex would also order a thread that is early at the next barrier before
// one that is late in leaving this one, and so hide races; hence waiting goes by a system call it does not
// know.
class Barrier {
  public:
    void reset(unsigned size) { size_ = size, returned_.store(0, std::memory_order_relaxed); }
    void arrive(int line) {
        const unsigned mine = generation_.load(std::memory_order_relaxed);
        int other = 0;
        if (returned_.load(std::memory_order_relaxed) != 0) {
            fail(kReturned, line);
        }
        if (!line_.compare_exchange_strong(other, line, std::memory_order_relaxed) && other != line) {
            fail(kDivergent, line);
        }
        order_[mine % 2].fetch_add(1, std::memory_order_release);
        hidden_fence();
        if (arrived_.fetch_add(1, std::memory_order_relaxed) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            line_.store(0, std::memory_order_relaxed);
            hidden_fence();
            generation_.store(mine + 1, std::memory_order_relaxed);
            hidden_fence();
            syscall(SYS_futex, &generation_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
        }
        while (generation_.load(std::memory_order_relaxed) == mine) {
            syscall(SYS_futex, &generation_, FUTEX_WAIT_PRIVATE, mine, nullptr, nullptr, 0);
        }
        hidden_fence();
        order_[mine % 2].load(std::memory_order_acquire);
    }
    void leave() {
        if (arrived_.load(std::memory_order_relaxed) != 0) {
            fail(kReturned, line_.load(std::memory_order_relaxed));
        }
        returned_.fetch_add(1, std::memory_order_relaxed);
    }

  private:
    unsigned size_ = 0;
    std::atomic<unsigned> generation_{0}, arrived_{0}, returned_{0}, order_[2] = {};
    std::atomic<int> line_{0};
};

struct WarpState {
    std::atomic<std::uint64_t> slot[2][kWarp];
    std::atomic<unsigned> arrived{0}, generation{0};
    std::atomic<unsigned> order[2] = {};
};

constexpr int kBetween = -1;  // the line of the barrier between blocks

struct Engine {
    std::mutex one_launch;
    Grid grid;
    Barrier inner;
    int line = 0;  // of the barrier of the cluster that the block waits at
    WarpState warps[kMostThreads / kWarp];
};

inline Engine& engine() {
    static Engine* const one = new Engine;
    return *one;
}

inline thread_local Thread current;
inline thread_local Barrier* turns;  // where the turns of this thread's block begin and end

inline Thread& self() {
    return current;
}
inline Grid& grid() {
    return engine().grid;
}
inline void barrier(int line) {
    engine().inner.arrive(line);
}

inline void cluster_barrier(int line) {
    engine().inner.arrive(line);
    if (current.flat == 0) {
        engine().line = line;
    }
    turns->arrive(kBetween);
    turns->arrive(kBetween);
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

// Ordered as a Barrier is: every arrival before every departure.
inline void warp_barrier() {
    WarpState& warp = engine().warps[current.warp()];
    std::atomic<unsigned>& order = warp.order[warp.generation.load(std::memory_order_relaxed) % 2];
    order.fetch_add(1, std::memory_order_release);
    exchange(0);
    order.load(std::memory_order_acquire);
}

inline void run(dim3 blocks, dim3 block, unsigned cluster, std::size_t shared, std::function<void()> body) {
    Engine& one = engine();
    const std::lock_guard<std::mutex> held(one.one_launch);
    one.grid = {blocks, block, {}, shared, std::unique_ptr<unsigned char[]>(new unsigned char[shared]),
                cluster};
    const unsigned count = one.grid.threads();
    std::vector<Barrier> outer(cluster);
    bool more = true;
    std::vector<std::thread> threads;
    for (Barrier& between : outer) {
        between.reset(count + 1);
        for (unsigned flat = 0; flat < count; ++flat) {
            threads.emplace_back([&, flat] {
                current = one.grid.thread(flat);
                turns = &between;
                for (between.arrive(kBetween); more; between.arrive(kBetween)) {
                    body();
                    one.inner.leave();
                    between.arrive(kBetween);
                }
            });
        }
    }
    one.grid.every_block([&](bool) {
        Barrier& between = outer[one.grid.rank];
        one.inner.reset(count);
        one.line = 0;
        between.arrive(kBetween);
        between.arrive(kBetween);
        return one.line;
    });
    more = false;
    for (Barrier& between : outer) {
        between.arrive(kBetween);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace simt
