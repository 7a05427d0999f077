// TokenRestore as a plugin; kernels/token_gather.cuh is what it runs.
#include <token_gather.cuh>

#include "../common/operators.h"

namespace tokenrt::plugin {

namespace {

class TokenRestore final : public Operator {
  public:
    TokenRestore()
        : Operator("TokenRestore", {}, {{"tokens", "BKC", Type::kOwn}, {"source_map", "BN", Type::kInt64}},
                   {{"restored", "BNC", Type::kOwn}}) {}

    cudaError_t run(const Call& call) const override {
        const Sizes& sizes = call.sizes;
        return token_gather(call.type, call.in<void>(0), call.in<std::int64_t>(1), call.out<void>(0),
                            sizes.of('B'), sizes.of('K'), sizes.of('N'), sizes.of('C'), call.stream);
    }
};

}  // namespace

const Operator& token_restore() {
    static const TokenRestore only;
    return only;
}

}  // namespace tokenrt::plugin
