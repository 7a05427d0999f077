// TokenRestore, and gathering, as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_gather.cuh>

using namespace tokenrt;

extern "C" {

int host_token_gather(int type, const void* rows, const std::int64_t* index, void* out, int batch, int from,
                      int to, int width) {
    return token_gather(type, rows, index, out, batch, from, to, width, nullptr);
}

}  // extern "C"
