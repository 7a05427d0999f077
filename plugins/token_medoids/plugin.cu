// TokenMedoids as a plugin; kernels/token_medoids.cuh is what it runs.
#include <token_medoids.cuh>

#include "../common/moving.h"
#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenMedoids final : public Moving {
  public:
    TokenMedoids()
        : Moving("TokenMedoids",
                 {{"rounds", Kind::kInt, 0, kMostRounds}, {"power", Kind::kInt, kEuclidean, kSquared}},
                 {{"center", "BK", Type::kInt64}, {"assign", "BN", Type::kInt64}}) {}

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
