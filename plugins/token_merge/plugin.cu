// TokenMerge as a plugin; kernels/token_merge.cuh is what it runs.
#include <token_merge.cuh>

#include "../common/operators.h"
#include "../common/pairing.h"

namespace tokenrt::plugin {

namespace {

class TokenMerge final : public Pairing {
  public:
    TokenMerge()
        : Pairing("TokenMerge", {{"type", Kind::kInt, kFloat, kBfloat16}},
                  {{"tokens", "BNC", Type::kOwn},
                   {"size", "BN1", Type::kFloat32},
                   {"metric", "BND", Type::kFree}},
                  {{"merged", "BKC", Type::kOwn}, {"total", "BK1", Type::kFloat32}}) {}

    void check(const Values& values) const override {
        Pairing::check(values);
        check_type(values);
    }

    int own_type(const Values& values) const override { return values.number("type"); }

  private:
    cudaError_t pair(const Call& call, const MatchShape& shape) const override {
        return tokenrt::token_merge(
            call.type, call.in<void>(0), call.in<float>(1), call.type_of(2), call.in<void>(2), call.lists[0],
            call.lists[1], call.lists[2], call.out<void>(0), call.out<float>(1), call.out<float>(2),
            call.out<std::int64_t>(3), call.out<std::int64_t>(4), call.out<std::int64_t>(5), call.workspace,
            call.sizes.of('C'), shape, call.stream);
    }
};

}  // namespace

const Operator& token_merge() {
    static const TokenMerge only;
    return only;
}

}  // namespace tokenrt::plugin
