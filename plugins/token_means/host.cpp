// TokenMeans as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_means.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_means_workspace(int batch, int tokens) {
    return token_means_workspace(batch, tokens);
}

int host_token_means(int type, const void* metric, const float* weight, const std::int64_t* start,
                     float* center, std::int64_t* assign, void* workspace, int batch, int tokens, int width,
                     int keep, int rounds) {
    const MeansShape shape{batch, tokens, width, keep, rounds};
    return token_means(type, metric, weight, start, center, assign, workspace, shape, nullptr);
}

}  // extern "C"
