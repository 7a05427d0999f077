// TokenCombine as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_combine.cuh>

using namespace tokenrt;

extern "C" {

int host_token_combine(int type, const void* tokens, const float* size, const std::int64_t* keep,
                       const std::int64_t* source, const std::int64_t* destination, void* merged,
                       float* total, int batch, int count, int width, int kept, int removed) {
    return token_combine(type, tokens, size, keep, source, destination, merged, total,
                         CombineShape{batch, count, width, kept, removed}, nullptr);
}

}  // extern "C"
