// What operators that move K centres share: their inputs, and that there are no more centres than tokens.
#pragma once

#include "operator.h"
#include "report.h"

namespace tokenrt::plugin {

class Moving : public Operator {
  public:
    void fit(const Values&, const Sizes& sizes) const override {
        if (sizes['N'] != kUnknown && sizes['N'] < sizes['K']) {
            refuse("input 'start' has ", sizes['K'], " positions, but there are ", sizes['N'], " tokens");
        }
    }

  protected:
    Moving(const char* name, std::vector<Field> fields, std::vector<Tensor> outputs)
        : Operator(name, std::move(fields),
                   {{"metric", "BND", Type::kOwn},
                    {"weight", "BN", Type::kFloat32},
                    {"start", "BK", Type::kInt64}},
                   std::move(outputs)) {}
};

}  // namespace tokenrt::plugin
