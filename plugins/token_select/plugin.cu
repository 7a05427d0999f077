// TokenSelect as a plugin; kernels/token_select.cuh is what it runs.
#include <token_select.cuh>

#include "../common/keeping.h"
#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenSelect final : public Keeping {
  public:
    TokenSelect()
        : Keeping("TokenSelect",
                  {{"keep", Kind::kSize, 1, kMostTokens},
                   {"protect", Kind::kSize, 0, kMostTokens - 1},
                   {"order", Kind::kInt, kByPosition, kByScore}},
                  {{"score", "BN", Type::kOwn}}, {{"index", "BK", Type::kInt64}}, {{'K', "keep"}}) {}

    std::size_t workspace(const Values& values, const Sizes& sizes) const override {
        return token_select_workspace(sizes.of('B'), sizes.of('K'), values.number("order"));
    }

    cudaError_t run(const Call& call) const override {
        return tokenrt::token_select(call.type, call.in<void>(0), call.out<std::int64_t>(0), call.workspace,
                                     call.sizes.of('B'), call.sizes.of('N'), call.sizes.of('K'),
                                     call.values.number("protect"), call.values.number("order"), call.stream);
    }
};

}  // namespace

const Operator& token_select() {
    static const TokenSelect only;
    return only;
}

}  // namespace tokenrt::plugin
