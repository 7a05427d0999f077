// TokenScore as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_score.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_score_workspace(int batch, int heads, int tokens, int width, int first_row,
                                       int end_row) {
    return token_score_workspace(
        ScoreShape{batch, heads, tokens, width, first_row, end_row, 1.0f, {0, 0, 0, 0}});
}

int host_token_score(int type, const void* queries, const void* keys, const float* bias, float* mean,
                     void* workspace, int batch, int heads, int tokens, int width, int first_row, int end_row,
                     float scale, const long long* strides) {
    const ScoreShape shape{batch,     heads,   tokens, width,
                           first_row, end_row, scale,  {strides[0], strides[1], strides[2], strides[3]}};
    return token_score(type, queries, keys, bias, mean, workspace, shape, nullptr);
}

}  // extern "C"
