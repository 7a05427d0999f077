// TokenGreedySelect as a plugin; kernels/token_greedy_select.cuh is what it runs.
#include <token_greedy_select.cuh>

#include "../common/keeping.h"
#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenGreedySelect final : public Keeping {
  public:
    TokenGreedySelect()
        : Keeping("TokenGreedySelect",
                  {{"keep", Kind::kSize, 1, kMostTokens},
                   {"protect", Kind::kSize, 0, kMostTokens - 1},
                   {"order", Kind::kInt, kByPosition, kByChoice},
                   {"objective", Kind::kInt, kMaxMin, kMaxSum},
                   {"power", Kind::kFloat, 0, static_cast<int>(kMostPower)},
                   {"mix", Kind::kFloat, 0, static_cast<int>(kMostImportance)},
                   {"seed", Kind::kInt, kFromNothing, kMostIsolated}},
                  {{"metric", "BND", Type::kOwn}, {"importance", "BN", Type::kFloat32}},
                  {{"index", "BK", Type::kInt64}}, {{'K', "keep"}}) {}

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_greedy_select_workspace(sizes.of('B'), sizes.of('N'));
    }

    cudaError_t run(const Call& call) const override {
        const Values& values = call.values;
        const GreedyShape shape{
            {call.sizes.of('B'), call.sizes.of('N'), call.sizes.of('D'), call.sizes.of('K'),
             values.number("protect"), values.number("order"), values.real("power"), values.real("mix")},
            values.number("objective"),
            values.number("seed")};
        return tokenrt::token_greedy_select(call.type, call.in<void>(0), call.in<float>(1),
                                            call.out<std::int64_t>(0), call.workspace, shape, call.stream);
    }
};

}  // namespace

const Operator& token_greedy_select() {
    static const TokenGreedySelect only;
    return only;
}

}  // namespace tokenrt::plugin
