// TokenMedoids as a plugin; kernels/token_medoids.cuh is what it runs.
#include <token_medoids.cuh>

#include "../common/operators.h"
#include "../common/report.h"

namespace tokenrt::plugin {

namespace {

class TokenMedoids final : public Operator {
  public:
    TokenMedoids()
        : Operator("TokenMedoids",
                   {{"rounds", Kind::kInt, 0, kMostRounds}, {"power", Kind::kInt, kEuclidean, kSquared}},
                   {{"metric", "BND", Type::kOwn},
                    {"weight", "BN", Type::kFloat32},
                    {"start", "BK", Type::kInt64}},
                   {{"center", "BK", Type::kInt64}, {"assign", "BN", Type::kInt64}}) {}

    void fit(const Values&, const Sizes& sizes) const override {
        if (sizes['N'] != kUnknown && sizes['N'] < sizes['K']) {
            refuse("input 'start' has ", sizes['K'], " positions, but there are ", sizes['N'], " tokens");
        }
    }

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_medoids_workspace(sizes.of('B'), sizes.of('N'));
    }

    cudaError_t run(const Call& call) const override {
        const MedoidsShape shape{call.sizes.of('B'),           call.sizes.of('N'),
                                 call.sizes.of('D'),           call.sizes.of('K'),
                                 call.values.number("rounds"), call.values.number("power")};
        return tokenrt::token_medoids(call.type, call.in<void>(0), call.in<float>(1),
                                      call.in<std::int64_t>(2), call.out<std::int64_t>(0),
                                      call.out<std::int64_t>(1), call.workspace, shape, call.stream);
    }
};

}  // namespace

const Operator& token_medoids() {
    static const TokenMedoids only;
    return only;
}

}  // namespace tokenrt::plugin
