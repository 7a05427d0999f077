// What must hold for operators that keep K of N tokens, the first P of them whatever they are.
#pragma once

#include "operator.h"
#include "report.h"

namespace tokenrt::plugin {

class Keeping : public Operator {
  public:
    using Operator::Operator;

    void check(const Values& values) const override {
        if (values.number("protect") >= values.number("keep")) {
            refuse("field 'protect' is ", values.number("protect"), ", it must be below 'keep', ",
                   values.number("keep"));
        }
    }

    void fit(const Values&, const Sizes& sizes) const override {
        if (sizes['N'] != kUnknown && sizes['N'] < sizes['K']) {
            refuse("field 'keep' is ", sizes['K'], ", but there are ", sizes['N'], " tokens");
        }
    }
};

}  // namespace tokenrt::plugin
