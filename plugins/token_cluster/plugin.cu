// TokenCluster as a plugin; kernels/token_cluster.cuh is what it runs.
#include <token_cluster.cuh>

#include "../common/operators.h"
#include "../common/report.h"

namespace tokenrt::plugin {

namespace {

class TokenCluster final : public Operator {
  public:
    TokenCluster()
        : Operator("TokenCluster",
                   {{"keep", Kind::kSize, 1, kMostTokens},
                    {"remove", Kind::kSize, 1, kMostTokens},
                    {"linkage", Kind::kInt, kSingle, kAverage}},
                   {{"metric", "BND", Type::kOwn}},
                   {{"center", "BK", Type::kInt64}, {"assign", "BN", Type::kInt64}}, {{'K', "keep"}}) {}

    void fit(const Values& values, const Sizes& sizes) const override {
        const std::int64_t tokens = values.number("keep") + values.number("remove");
        if (sizes['N'] != kUnknown && sizes['N'] != tokens) {
            refuse("fields 'keep' and 'remove' add up to ", tokens, ", but there are ", sizes['N'],
                   " tokens");
        }
    }

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_cluster_workspace(sizes.of('B'), sizes.of('N'));
    }

    cudaError_t run(const Call& call) const override {
        const ClusterShape shape{call.sizes.of('B'), call.sizes.of('N'), call.sizes.of('D'),
                                 call.sizes.of('K'), call.values.number("linkage")};
        return tokenrt::token_cluster(call.type, call.in<void>(0), call.out<std::int64_t>(0),
                                      call.out<std::int64_t>(1), call.workspace, shape, call.stream);
    }
};

}  // namespace

const Operator& token_cluster() {
    static const TokenCluster only;
    return only;
}

}  // namespace tokenrt::plugin
