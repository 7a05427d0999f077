// TokenGroupSelect as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_group_select.cuh>

using namespace tokenrt;

extern "C" {

int host_token_group_select(int type, const void* score, const int* lengths, const int* quotas,
                            std::int64_t* index, int batch, int tokens, int keep, int protect, int groups) {
    const GroupShape shape{batch, tokens, keep, protect, groups};
    return token_group_select(type, score, lengths, quotas, index, shape, nullptr);
}

}  // extern "C"
