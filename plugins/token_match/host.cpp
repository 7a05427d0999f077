// TokenMatch as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_match.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_match_workspace(int batch, int sources, int destinations) {
    return token_match_workspace(batch, sources, destinations);
}

int host_token_match(int type, const void* metric, const int* sources, const int* destinations,
                     const int* others, float* value, std::int64_t* keep, std::int64_t* source,
                     std::int64_t* destination, void* workspace, int batch, int tokens, int width,
                     int n_sources, int n_destinations, int n_others, int remove, int order) {
    const MatchShape shape{batch, tokens, width, n_sources, n_destinations, n_others, remove, order};
    return token_match(type, metric, sources, destinations, others, value, keep, source, destination,
                       workspace, shape, nullptr);
}

}  // extern "C"
