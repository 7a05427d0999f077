// TokenCombine as a plugin; kernels/token_combine.cuh is what it runs.
#include <token_combine.cuh>

#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenCombine final : public Operator {
  public:
    TokenCombine()
        : Operator("TokenCombine", {{"type", Kind::kInt, kFloat, kBfloat16}},
                   {{"tokens", "BNC", Type::kOwn},
                    {"size", "BN1", Type::kFloat32},
                    {"keep", "BK", Type::kInt64},
                    {"source", "BR", Type::kInt64},
                    {"destination", "BR", Type::kInt64}},
                   {{"merged", "BKC", Type::kOwn}, {"total", "BK1", Type::kFloat32}}) {}

    void check(const Values& values) const override { check_type(values); }

    int own_type(const Values& values) const override { return values.number("type"); }

    cudaError_t run(const Call& call) const override {
        const Sizes& sizes = call.sizes;
        return tokenrt::token_combine(
            call.type, call.in<void>(0), call.in<float>(1), call.in<std::int64_t>(2),
            call.in<std::int64_t>(3), call.in<std::int64_t>(4), call.out<void>(0), call.out<float>(1),
            CombineShape{sizes.of('B'), sizes.of('N'), sizes.of('C'), sizes.of('K'), sizes.of('R')},
            call.stream);
    }
};

}  // namespace

const Operator& token_combine() {
    static const TokenCombine only;
    return only;
}

}  // namespace tokenrt::plugin
