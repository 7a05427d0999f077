// TokenGreedySelect as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_greedy_select.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_greedy_select_workspace(int batch, int tokens) {
    return token_greedy_select_workspace(batch, tokens);
}

int host_token_greedy_select(int type, const void* metric, const float* importance, std::int64_t* index,
                             void* workspace, int batch, int tokens, int width, int keep, int protect,
                             int order, int objective, int seed, float power, float mix) {
    const GreedyShape shape{{batch, tokens, width, keep, protect, order, power, mix}, objective, seed};
    return token_greedy_select(type, metric, importance, index, workspace, shape, nullptr);
}

}  // extern "C"
