// TokenDeterminantSelect as a plugin; kernels/token_determinant_select.cuh is what it runs.
#include <token_determinant_select.cuh>

#include "../common/keeping.h"
#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenDeterminantSelect final : public Keeping {
  public:
    TokenDeterminantSelect()
        : Keeping("TokenDeterminantSelect",
                  {{"keep", Kind::kSize, 1, kTokenDeterminantSelectTokens},
                   {"protect", Kind::kSize, 0, kTokenDeterminantSelectTokens - 1},
                   {"order", Kind::kInt, kByPosition, kByChoice},
                   {"mix", Kind::kFloat, 0, static_cast<int>(kMostImportance)},
                   {"epsilon", Kind::kFloat, 0, static_cast<int>(kMostEpsilon)}},
                  {{"metric", "BND", Type::kOwn}, {"importance", "BN", Type::kFloat32}},
                  {{"index", "BK", Type::kInt64}}, {{'K', "keep"}}) {}

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_determinant_select_workspace(sizes.of('B'), sizes.of('N'));
    }

    cudaError_t run(const Call& call) const override {
        const Values& values = call.values;
        const DeterminantShape shape{
            {call.sizes.of('B'), call.sizes.of('N'), call.sizes.of('D'), call.sizes.of('K'),
             values.number("protect"), values.number("order"), 0, values.real("mix")},
            values.real("epsilon")};
        return tokenrt::token_determinant_select(call.type, call.in<void>(0), call.in<float>(1),
                                                 call.out<std::int64_t>(0), call.workspace, shape,
                                                 call.stream);
    }
};

}  // namespace

const Operator& token_determinant_select() {
    static const TokenDeterminantSelect only;
    return only;
}

}  // namespace tokenrt::plugin
