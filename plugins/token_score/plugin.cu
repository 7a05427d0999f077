// TokenScore as a plugin; kernels/token_score.cuh is what it runs.
#include <token_score.cuh>

#include "../common/operators.h"
#include "../common/report.h"

namespace tokenrt::plugin {

namespace {

class TokenScore final : public Operator {
  public:
    TokenScore()
        : Operator(
              "TokenScore",
              {{"scale", Kind::kFloat},
               {"first_row", Kind::kSize, 0, kMostTokens - 1},
               {"end_row", Kind::kSize, 1, kMostTokens}},
              {{"queries", "BHND", Type::kOwn}, {"keys", "BHND", Type::kOwn}, {"bias", "*", Type::kFloat32}},
              {{"score", "BN", Type::kFloat32}}) {}

    void check(const Values& values) const override {
        if (values.number("first_row") >= values.number("end_row")) {
            refuse("field 'first_row' is ", values.number("first_row"), ", it must be below 'end_row', ",
                   values.number("end_row"));
        }
    }

    void fit(const Values& values, const Sizes& sizes) const override {
        if (sizes['N'] != kUnknown && sizes['N'] < values.number("end_row")) {
            refuse("field 'end_row' is ", values.number("end_row"), ", but there are ", sizes['N'],
                   " tokens");
        }
    }

    std::size_t workspace(const Values& values, const Sizes& sizes) const override {
        return token_score_workspace(shape(values, sizes));
    }

    cudaError_t run(const Call& call) const override {
        ScoreShape whole = shape(call.values, call.sizes);
        spread(whole, call.described[2].dims);
        return tokenrt::token_score(call.type, call.in<void>(0), call.in<void>(1), call.in<float>(2),
                                    call.out<float>(0), call.workspace, whole, call.stream);
    }

  private:
    static ScoreShape shape(const Values& values, const Sizes& sizes) {
        return {sizes.of('B'),
                sizes.of('H'),
                sizes.of('N'),
                sizes.of('D'),
                values.number("first_row"),
                values.number("end_row"),
                values.real("scale"),
                {0, 0, 0, 0}};
    }

    // The strides with which the bias is broadcast to [B,H,R,N]: its axes are the last ones.
    static void spread(ScoreShape& whole, const nvinfer1::Dims& bias) {
        const std::int64_t wanted[4] = {whole.batch, whole.heads, whole.rows(), whole.tokens};
        long long stride = 1;
        for (int axis = 3, own = bias.nbDims - 1; own >= 0; --axis, --own) {
            if (bias.d[own] != 1 && bias.d[own] != wanted[axis]) {
                refuse("axis ", own, " of input 'bias' is ", bias.d[own], ", it must be 1 or ", wanted[axis]);
            }
            whole.bias[axis] = bias.d[own] == 1 ? 0 : stride;
            stride *= bias.d[own];
        }
    }
};

}  // namespace

const Operator& token_score() {
    static const TokenScore only;
    return only;
}

}  // namespace tokenrt::plugin
