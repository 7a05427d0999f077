// TokenMerge as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_merge.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_merge_workspace(int batch, int sources, int destinations) {
    return token_merge_workspace(batch, sources, destinations);
}

int host_token_merge(int type, const void* tokens, const float* size, const void* metric, const int* sources,
                     const int* destinations, const int* others, void* merged, float* total, float* value,
                     std::int64_t* keep, std::int64_t* source, std::int64_t* destination, void* workspace,
                     int batch, int count, int width, int n_sources, int n_destinations, int n_others,
                     int remove, int order, int channels, int metric_type) {
    const MatchShape shape{batch, count, width, n_sources, n_destinations, n_others, remove, order};
    return token_merge(type, tokens, size, metric_type, metric, sources, destinations, others, merged, total,
                       value, keep, source, destination, workspace, channels, shape, nullptr);
}

}  // extern "C"
