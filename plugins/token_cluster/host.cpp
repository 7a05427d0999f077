// TokenCluster as plugins/host/kernels.py calls it: the launcher in C, without its stream.
#include <token_cluster.cuh>

using namespace tokenrt;

extern "C" {

std::size_t host_token_cluster_workspace(int batch, int tokens) {
    return token_cluster_workspace(batch, tokens);
}

int host_token_cluster(int type, const void* metric, std::int64_t* center, std::int64_t* assign,
                       void* workspace, int batch, int tokens, int width, int keep, int linkage) {
    const ClusterShape shape{batch, tokens, width, keep, linkage};
    return token_cluster(type, metric, center, assign, workspace, shape, nullptr);
}

}  // extern "C"
