// TokenCoverSelect as a plugin; kernels/token_cover_select.cuh is what it runs.
#include <token_cover_select.cuh>

#include "../common/keeping.h"
#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenCoverSelect final : public Keeping {
  public:
    TokenCoverSelect()
        : Keeping("TokenCoverSelect",
                  {{"keep", Kind::kSize, 1, kMostTokens},
                   {"protect", Kind::kSize, 0, kMostTokens - 1},
                   {"order", Kind::kInt, kByPosition, kByChoice},
                   {"power", Kind::kFloat, 0, static_cast<int>(kMostPower)},
                   {"mix", Kind::kFloat, 0, static_cast<int>(kMostImportance)}},
                  {{"metric", "BND", Type::kOwn}, {"importance", "BN", Type::kFloat32}},
                  {{"index", "BK", Type::kInt64}}, {{'K', "keep"}}) {}

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_cover_select_workspace(sizes.of('B'), sizes.of('N'));
    }

    cudaError_t run(const Call& call) const override {
        const Values& values = call.values;
        const ChooseShape shape{call.sizes.of('B'),   call.sizes.of('N'),       call.sizes.of('D'),
                                call.sizes.of('K'),   values.number("protect"), values.number("order"),
                                values.real("power"), values.real("mix")};
        return tokenrt::token_cover_select(call.type, call.in<void>(0), call.in<float>(1),
                                           call.out<std::int64_t>(0), call.workspace, shape, call.stream);
    }
};

}  // namespace

const Operator& token_cover_select() {
    static const TokenCoverSelect only;
    return only;
}

}  // namespace tokenrt::plugin
