// Mode A: every CUDA thread is a fiber, and all fibers of a block take turns on one thread of the machine.
//
// A fiber runs until it must wait and then hands over to the next one of the ring. The order is fixed, so a
// run is repeatable; a race stays invisible, which is what mode B is for.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <mutex>
#include <vector>

#include "block.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

#if defined(__x86_64__)
#if defined(__clang__)
#define SIMT_OPAQUE naked, noinline
#else
#define SIMT_OPAQUE naked, noinline, noipa
#endif

// Saves the registers a call must preserve, swaps stacks, restores. swapcontext does a system call each time.
__attribute__((SIMT_OPAQUE)) inline void switch_stack(void** /*from*/, void* /*to*/) {
    __asm__(
        "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
}
#endif

struct Fiber : Thread {
#if defined(__x86_64__)
    void* context = nullptr;
#else
    ucontext_t context;
#endif
    char* stack = nullptr;
    Fiber* before = nullptr;
    Fiber* after = nullptr;
};

// Stacks are mapped once and kept; below each lies a page that faults.
class Stacks {
  public:
    static constexpr std::size_t kBytes = 256 * 1024;
    char* bottom(std::size_t number) {
        if (number >= stacks_.size()) {
            stacks_.resize(number + 1);
        }
        if (stacks_[number] == nullptr) {
            void* found = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (found == MAP_FAILED) {
                fail("no memory for the stack of a fiber", 0);
            }
            mprotect(found, static_cast<std::size_t>(getpagesize()), PROT_NONE);
            stacks_[number] = static_cast<char*>(found);
        }
        return stacks_[number];
    }

  private:
    std::vector<char*> stacks_;
};

struct WarpState {
    std::uint64_t slot[2][kWarp];
    unsigned arrived = 0, generation = 0;
};

struct Engine {
    std::mutex one_launch;  // static shared memory and the ring exist once
    Stacks stacks;
    Grid grid;
    std::vector<Fiber> fibers;         // of all blocks of a cluster
    Fiber* paused[kMostCluster] = {};  // of each block, the one that goes on first
    WarpState warps[kMostThreads / kWarp];
    Fiber home;
    std::size_t home_bytes = 0;
    Fiber* current = nullptr;
    std::function<void()> body;
    unsigned arrived = 0, generation = 0, returned = 0, idle = 0;
    int line = 0;

    void go(Fiber* to, bool leaving = false) {
        Fiber* from = current;
        current = to;
#if defined(__SANITIZE_ADDRESS__)
        void* fake = nullptr;
        __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, to->stack,
                                       to == &home ? home_bytes : Stacks::kBytes);
#else
        (void)leaving;
#endif
#if defined(__x86_64__)
        switch_stack(&from->context, to->context);
#else
        swapcontext(&from->context, &to->context);
#endif
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }
    // Every fiber in a row waiting in vain means that what they wait for never comes.
    void wait() {
        if (++idle > 2 * (grid.threads() - returned)) {
            fail(kStuck, line);
        }
        go(current->after);
    }
    void arrive_at(int where) {
        if (returned != 0) {
            fail(kReturned, where);
        }
        if (arrived != 0 && line != where) {
            fail(kDivergent, where);
        }
        line = where;
        idle = 0;
        const unsigned mine = generation;
        if (++arrived == grid.threads()) {
            arrived = 0;
            ++generation;
            return;
        }
        while (generation == mine) {
            wait();
        }
    }
    std::uint64_t* exchange(std::uint64_t value) {
        WarpState& warp = warps[current->warp()];
        const unsigned mine = warp.generation;
        std::uint64_t* slots = warp.slot[mine % 2];
        slots[current->lane()] = value;
        idle = 0;
        if (++warp.arrived == kWarp) {
            warp.arrived = 0;
            ++warp.generation;
            return slots;
        }
        while (warp.generation == mine) {
            wait();
        }
        return slots;
    }
    // Behind the barrier of the block, whoever is first leaves it to the others of the cluster.
    void arrive_at_cluster(int where) {
        const unsigned mine = grid.round;
        arrive_at(where);
        while (grid.round == mine) {
            paused[grid.rank] = current;
            go(&home);
        }
    }
    void finish() {
        if (arrived != 0) {
            fail(kReturned, line);
        }
        ++returned;
        idle = 0;
        Fiber* self = current;
        self->before->after = self->after;
        self->after->before = self->before;
        go(self->after == self ? &home : self->after, true);
    }
    int turn(bool begins);
};

inline Engine& engine() {
    static Engine* const one = new Engine;  // never destroyed: a kernel may run while the process ends
    return *one;
}

inline void enter() {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    std::size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (engine().home_bytes == 0) {  // the first fiber of a launch comes from its stack
        engine().home.stack = static_cast<char*>(const_cast<void*>(bottom));
        engine().home_bytes = size;
    }
#endif
    engine().body();
    engine().finish();
}

inline int Engine::turn(bool begins) {
    const unsigned count = grid.threads();
    Fiber* const own = &fibers[grid.rank * count];
    Fiber* next = begins ? own : paused[grid.rank];
    paused[grid.rank] = nullptr;
    returned = arrived = idle = 0;
    for (unsigned flat = 0; begins && flat < count; ++flat) {
        Fiber& fiber = own[flat];
        static_cast<Thread&>(fiber) = grid.thread(flat);
        fiber.stack = stacks.bottom(grid.rank * count + flat);
        fiber.before = &own[(flat + count - 1) % count];
        fiber.after = &own[(flat + 1) % count];
#if defined(__x86_64__)
        // Six registers and the address to return to; the stack is then aligned as after a call.
        void** top = reinterpret_cast<void**>(fiber.stack + Stacks::kBytes - 64);
        top[0] = reinterpret_cast<void*>(&enter);
        top[1] = nullptr;
        fiber.context = top - 6;
#else
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack;
        fiber.context.uc_stack.ss_size = Stacks::kBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, &enter, 0);
#endif
    }
    current = &home;
    go(next);
    return paused[grid.rank] != nullptr ? line : 0;
}

inline Thread& self() {
    return *engine().current;
}
inline Grid& grid() {
    return engine().grid;
}
inline void barrier(int line) {
    engine().arrive_at(line);
}
inline void cluster_barrier(int line) {
    engine().arrive_at_cluster(line);
}
inline std::uint64_t* exchange(std::uint64_t value) {
    return engine().exchange(value);
}
inline std::uint64_t read(const std::uint64_t* slot) {
    return *slot;
}
inline void warp_barrier() {
    engine().exchange(0);
}

inline void run(dim3 blocks, dim3 block, unsigned cluster, std::size_t shared, std::function<void()> body) {
    Engine& one = engine();
    const std::lock_guard<std::mutex> held(one.one_launch);
    one.grid = {blocks, block, {}, shared, std::unique_ptr<unsigned char[]>(new unsigned char[shared]),
                cluster};
    one.fibers.resize(std::size_t{cluster} * one.grid.threads());
    one.home_bytes = 0;
    one.body = std::move(body);
    one.grid.every_block([&](bool begins) { return one.turn(begins); });
}

}  // namespace simt
