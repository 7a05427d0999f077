// What tests ask of the host build: the record of launches, as plugins/host/recorder.py reads it, and blocks
// in another order.
#include <dlfcn.h>

#include "block.h"
#include "device.h"
#include "record.h"

extern "C" {

// From here on this thread's launches are noted and not run.
void host_record_begin() {
    simt::record() = {true, {}};
}

// Where shared memory lies in this library: `count` places and bytes, which every block then finds full of
// 0xff.
void host_shared(int count, const unsigned long long* places, const unsigned long long* bytes) {
    Dl_info found{};
    if (dladdr(reinterpret_cast<const void*>(&host_shared), &found) == 0) {
        return;
    }
    simt::shared_variables().clear();
    for (int i = 0; i < count; ++i) {
        simt::shared_variables().push_back(
            {static_cast<unsigned char*>(found.dli_fbase) + places[i], static_cast<std::size_t>(bytes[i])});
    }
}

// Whether the blocks of every launch run from the last to the first.
void host_backwards(int chosen) {
    simt::backwards() = chosen != 0;
}

// The GPU that launchers find: see device.h.
void host_device(int capability, int multiprocessors, int cluster) {
    simt::device() = {capability, multiprocessors, static_cast<unsigned>(cluster)};
}

// Ends the record. Returns how many launches it holds.
int host_record_end() {
    simt::record().on = false;
    return static_cast<int>(simt::record().launches.size());
}

// Writes launch `i` as 10 numbers: where the kernel lies in this library, its grid, its block, the blocks of
// a cluster, bytes of dynamic shared memory, and 0 where the library is unknown.
void host_recorded(int i, unsigned long long* to) {
    const simt::Launch& launch = simt::record().launches.at(static_cast<std::size_t>(i));
    const auto place = reinterpret_cast<std::uintptr_t>(launch.kernel);
    Dl_info found{};
    const bool known = dladdr(reinterpret_cast<const void*>(place), &found) != 0;
    to[0] = place - (known ? reinterpret_cast<std::uintptr_t>(found.dli_fbase) : 0);
    const dim3* const sides[] = {&launch.grid, &launch.block};
    for (int side = 0; side < 2; ++side) {
        to[1 + 3 * side] = sides[side]->x;
        to[2 + 3 * side] = sides[side]->y;
        to[3 + 3 * side] = sides[side]->z;
    }
    to[7] = launch.cluster;
    to[8] = launch.shared_bytes;
    to[9] = known;
}

}  // extern "C"
