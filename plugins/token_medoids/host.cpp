// TokenMedoids as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_medoids.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_medoids_workspace(int batch, int tokens) {
    return token_medoids_workspace(batch, tokens);
}

int host_token_medoids(int type, const void* metric, const float* weight, const std::int64_t* start,
                       std::int64_t* center, std::int64_t* assign, void* workspace, int batch, int tokens,
                       int width, int keep, int rounds, int power) {
    const MedoidsShape shape{batch, tokens, width, keep, rounds, power};
    return token_medoids(type, metric, weight, start, center, assign, workspace, shape, nullptr);
}

}  // extern "C"
