// NVIDIA's own calculator, cuda_occupancy.h: reads lines of arch, threads a multiprocessor holds, its shared
// memory, reserved bytes, threads, registers, shared memory; prints the blocks it holds.
#include <cuda_occupancy.h>
#include <cstddef>

#include <cstdio>

int main() {
    int arch, held, kib, reserved, threads, registers, shared;
    while (std::scanf("%d %d %d %d %d %d %d", &arch, &held, &kib, &reserved, &threads, &registers, &shared) ==
           7) {
        cudaOccDeviceProp device{};
        device.computeMajor = arch / 10;
        device.computeMinor = arch % 10;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = held;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 * 1024;
        device.sharedMemPerMultiprocessor = static_cast<std::size_t>(kib) * 1024;
        device.sharedMemPerBlockOptin =
            device.sharedMemPerMultiprocessor - static_cast<std::size_t>(reserved);
        device.reservedSharedMemPerBlock = static_cast<std::size_t>(reserved);
        device.numSms = 1;
        cudaOccFuncAttributes kernel{};
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.sharedSizeBytes = static_cast<std::size_t>(shared);
        const cudaOccDeviceState state{};
        cudaOccResult result{};
        const auto status =
            cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0);
        std::printf("%d %d\n", static_cast<int>(status), result.activeBlocksPerMultiprocessor);
    }
}
