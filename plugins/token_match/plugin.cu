// TokenMatch as a plugin; kernels/token_match.cuh is what it runs.
#include "../common/operators.h"
#include "../common/pairing.h"

namespace tokenrt::plugin {

namespace {

class TokenMatch final : public Pairing {
  public:
    TokenMatch() : Pairing("TokenMatch", {}, {{"metric", "BND", Type::kOwn}}, {}) {}

  private:
    cudaError_t pair(const Call& call, const MatchShape& shape) const override {
        return tokenrt::token_match(call.type, call.in<void>(0), call.lists[0], call.lists[1], call.lists[2],
                                    call.out<float>(0), call.out<std::int64_t>(1), call.out<std::int64_t>(2),
                                    call.out<std::int64_t>(3), call.workspace, shape, call.stream);
    }
};

}  // namespace

const Operator& token_match() {
    static const TokenMatch only;
    return only;
}

}  // namespace tokenrt::plugin
