// TokenDeterminantSelect as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_determinant_select.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_determinant_select_workspace(int batch, int tokens) {
    return token_determinant_select_workspace(batch, tokens);
}

int host_token_determinant_select(int type, const void* metric, const float* importance, std::int64_t* index,
                                  void* workspace, int batch, int tokens, int width, int keep, int protect,
                                  int order, float mix, float epsilon) {
    const DeterminantShape shape{{batch, tokens, width, keep, protect, order, 0, mix}, epsilon};
    return token_determinant_select(type, metric, importance, index, workspace, shape, nullptr);
}

}  // extern "C"
