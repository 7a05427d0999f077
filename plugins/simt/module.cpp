// The kernels as a plain C library: what plugins/host.py loads. The functions mirror the launchers, without
// streams.
#include <token_cluster.cuh>
#include <token_combine.cuh>
#include <token_cover_select.cuh>
#include <token_gather.cuh>
#include <token_greedy_select.cuh>
#include <token_group_select.cuh>
#include <token_match.cuh>
#include <token_means.cuh>
#include <token_medoids.cuh>
#include <token_peaks.cuh>
#include <token_score.cuh>
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

std::size_t host_token_match_workspace(int batch, int sources) {
    return token_match_workspace(batch, sources);
}

int host_token_match(int type, const void* metric, const int* sources, const int* destinations,
                     const int* others, float* value, std::int64_t* keep, std::int64_t* source,
                     std::int64_t* destination, void* workspace, int batch, int tokens, int width,
                     int n_sources, int n_destinations, int n_others, int remove, int order) {
    const MatchShape shape{batch, tokens, width, n_sources, n_destinations, n_others, remove, order};
    return token_match(type, metric, sources, destinations, others, value, keep, source, destination,
                       workspace, shape, nullptr);
}

int host_token_combine(int type, const void* tokens, const float* size, const std::int64_t* keep,
                       const std::int64_t* source, const std::int64_t* destination, void* merged,
                       float* total, int batch, int count, int width, int kept, int removed) {
    return token_combine(type, tokens, size, keep, source, destination, merged, total,
                         CombineShape{batch, count, width, kept, removed}, nullptr);
}

int host_token_gather(int type, const void* rows, const std::int64_t* index, void* out, int batch, int from,
                      int to, int width) {
    return token_gather(type, rows, index, out, batch, from, to, width, nullptr);
}

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

std::size_t host_token_greedy_select_workspace(int batch, int tokens) {
    return token_greedy_select_workspace(batch, tokens);
}

int host_token_greedy_select(int type, const void* metric, const float* importance, std::int64_t* index,
                             void* workspace, int batch, int tokens, int width, int keep, int protect,
                             int order, int objective, int seed, float power, float mix) {
    const GreedyShape shape{{batch, tokens, width, keep, protect, order, power, mix}, objective, seed};
    return token_greedy_select(type, metric, importance, index, workspace, shape, nullptr);
}

std::size_t host_token_cover_select_workspace(int batch, int tokens) {
    return token_cover_select_workspace(batch, tokens);
}

int host_token_cover_select(int type, const void* metric, const float* importance, std::int64_t* index,
                            void* workspace, int batch, int tokens, int width, int keep, int protect,
                            int order, float power, float mix) {
    const ChooseShape shape{batch, tokens, width, keep, protect, order, power, mix};
    return token_cover_select(type, metric, importance, index, workspace, shape, nullptr);
}

int host_token_group_select(int type, const void* score, const int* lengths, const int* quotas,
                            std::int64_t* index, int batch, int tokens, int keep, int protect, int groups) {
    const GroupShape shape{batch, tokens, keep, protect, groups};
    return token_group_select(type, score, lengths, quotas, index, shape, nullptr);
}

std::size_t host_token_cluster_workspace(int batch, int tokens) {
    return token_cluster_workspace(batch, tokens);
}

int host_token_cluster(int type, const void* metric, std::int64_t* center, std::int64_t* assign,
                       void* workspace, int batch, int tokens, int width, int keep, int linkage) {
    const ClusterShape shape{batch, tokens, width, keep, linkage};
    return token_cluster(type, metric, center, assign, workspace, shape, nullptr);
}

std::size_t host_token_peaks_workspace(int batch, int tokens) {
    return token_peaks_workspace(batch, tokens);
}

int host_token_peaks(int type, const void* metric, std::int64_t* center, std::int64_t* assign,
                     void* workspace, int batch, int tokens, int width, int keep, int neighbours) {
    const PeaksShape shape{batch, tokens, width, keep, neighbours};
    return token_peaks(type, metric, center, assign, workspace, shape, nullptr);
}

std::size_t host_token_means_workspace(int batch, int tokens) {
    return token_means_workspace(batch, tokens);
}

int host_token_means(int type, const void* metric, const float* weight, const std::int64_t* start,
                     float* center, std::int64_t* assign, void* workspace, int batch, int tokens, int width,
                     int keep, int rounds) {
    const MeansShape shape{batch, tokens, width, keep, rounds};
    return token_means(type, metric, weight, start, center, assign, workspace, shape, nullptr);
}

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
