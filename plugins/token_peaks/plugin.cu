// TokenPeaks as a plugin; kernels/token_peaks.cuh is what it runs.
#include <token_peaks.cuh>

#include "../common/operators.h"
#include "../common/report.h"

namespace tokenrt::plugin {

namespace {

class TokenPeaks final : public Operator {
  public:
    TokenPeaks()
        : Operator("TokenPeaks",
                   {{"keep", Kind::kSize, 1, kMostTokens}, {"neighbours", Kind::kSize, 1, kMostNeighbours}},
                   {{"metric", "BND", Type::kOwn}},
                   {{"center", "BK", Type::kInt64}, {"assign", "BN", Type::kInt64}}, {{'K', "keep"}}) {}

    void fit(const Values& values, const Sizes& sizes) const override {
        for (const char* const name : {"keep", "neighbours"}) {
            if (sizes['N'] != kUnknown && sizes['N'] < values.number(name)) {
                refuse("field '", name, "' is ", values.number(name), ", but there are ", sizes['N'],
                       " tokens");
            }
        }
    }

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_peaks_workspace(sizes.of('B'), sizes.of('N'));
    }

    cudaError_t run(const Call& call) const override {
        const PeaksShape shape{call.sizes.of('B'), call.sizes.of('N'), call.sizes.of('D'), call.sizes.of('K'),
                               call.values.number("neighbours")};
        return tokenrt::token_peaks(call.type, call.in<void>(0), call.out<std::int64_t>(0),
                                    call.out<std::int64_t>(1), call.workspace, shape, call.stream);
    }
};

}  // namespace

const Operator& token_peaks() {
    static const TokenPeaks only;
    return only;
}

}  // namespace tokenrt::plugin
