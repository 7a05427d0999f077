// The most that each operator takes. Made by `python -m tokenrt.plugins.contracts` from the [limits] of the
// contracts, plugins/token_*/contract.toml.
#pragma once

namespace tokenrt {

constexpr int kMostBatch = 1024;
constexpr int kMostTokens = 16384;
constexpr int kMostHeads = 256;
constexpr int kMostWidth = 8192;
constexpr long long kMostElements = 2147483647;  // rows times channels of an image
constexpr long long kTokenClusterWork = 134217728;
constexpr long long kTokenCoverSelectWork = 8589934592;
constexpr long long kTokenGreedySelectWork = 8589934592;
constexpr int kTokenDeterminantSelectTokens = 4096;
constexpr int kTokenCoverSelectBeyond = 4096;
constexpr int kTokenGreedySelectBeyond = 4096;

struct Limits {
    const char* name;
    struct {
        char letter;
        int most;
    } axes[4];
    const char* factors[3];  // letters and fields whose product is at most `work`
    long long work;
    int beyond;  // up to so many tokens the work is not bounded
};

constexpr Limits kLimits[] = {
    {"TokenCluster", {{'B', 1024}, {'N', 16384}}, {"remove", "N"}, 134217728, 0},
    {"TokenCombine", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
    {"TokenCoverSelect", {{'B', 1024}, {'N', 16384}, {'D', 8192}}, {"keep", "N", "D"}, 8589934592, 4096},
    {"TokenDeterminantSelect", {{'B', 1024}, {'N', 4096}, {'D', 8192}}, {}, 0, 0},
    {"TokenGreedySelect", {{'B', 1024}, {'N', 16384}, {'D', 8192}}, {"keep", "N", "D"}, 8589934592, 4096},
    {"TokenGroupSelect", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
    {"TokenMatch", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
    {"TokenMeans", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
    {"TokenMedoids", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
    {"TokenMerge", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
    {"TokenPeaks", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
    {"TokenRestore", {{'B', 1024}, {'K', 32768}, {'N', 16384}}, {}, 0, 0},
    {"TokenScore", {{'B', 1024}, {'H', 256}, {'N', 16384}, {'D', 8192}}, {}, 0, 0},
    {"TokenSelect", {{'B', 1024}, {'N', 16384}}, {}, 0, 0},
};

}  // namespace tokenrt
