// TokenMeans as a plugin; kernels/token_means.cuh is what it runs.
#include <token_means.cuh>

#include "../common/moving.h"
#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenMeans final : public Moving {
  public:
    TokenMeans()
        : Moving("TokenMeans", {{"rounds", Kind::kInt, 1, kMostRounds}},
                 {{"center", "BKD", Type::kFloat32}, {"assign", "BN", Type::kInt64}}) {}

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_means_workspace(sizes.of('B'), sizes.of('N'));
    }

    cudaError_t run(const Call& call) const override {
        const MeansShape shape{call.sizes.of('B'), call.sizes.of('N'), call.sizes.of('D'), call.sizes.of('K'),
                               call.values.number("rounds")};
        return tokenrt::token_means(call.type, call.in<void>(0), call.in<float>(1), call.in<std::int64_t>(2),
                                    call.out<float>(0), call.out<std::int64_t>(1), call.workspace, shape,
                                    call.stream);
    }
};

}  // namespace

const Operator& token_means() {
    static const TokenMeans only;
    return only;
}

}  // namespace tokenrt::plugin
