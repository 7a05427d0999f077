// TokenSelect as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_select.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_select_workspace(int batch, int keep, int order) {
    return token_select_workspace(batch, keep, order);
}

int host_token_select(int type, const void* score, std::int64_t* index, void* workspace, int batch,
                      int tokens, int keep, int protect, int order) {
    return token_select(type, score, index, workspace, batch, tokens, keep, protect, order, nullptr);
}

}  // extern "C"
