// TokenPeaks as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_peaks.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_peaks_workspace(int batch, int tokens) {
    return token_peaks_workspace(batch, tokens);
}

int host_token_peaks(int type, const void* metric, std::int64_t* center, std::int64_t* assign,
                     void* workspace, int batch, int tokens, int width, int keep, int neighbours) {
    const PeaksShape shape{batch, tokens, width, keep, neighbours};
    return token_peaks(type, metric, center, assign, workspace, shape, nullptr);
}

}  // extern "C"
