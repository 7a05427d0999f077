// What operators that pair tokens share: their lists, and that these name every token once.
#pragma once

#include <token_match.cuh>

#include "operator.h"
#include "report.h"

namespace tokenrt::plugin {

class Pairing : public Operator {
  public:
    void check(const Values& values) const override {
        const Sizes sizes = given(values);
        const std::int64_t tokens = sizes['K'] + sizes['R'];
        if (sizes['S'] + sizes['T'] + sizes['O'] != tokens) {
            refuse("fields 'sources', 'destinations' and 'others' list ",
                   sizes['S'] + sizes['T'] + sizes['O'], " tokens, but 'keep' and 'remove' add up to ",
                   tokens);
        }
        if (tokens > kMostTokens) {
            refuse("fields 'keep' and 'remove' add up to ", tokens, " tokens, the kernels take up to ",
                   kMostTokens);
        }
        if (sizes['T'] < 1) {
            refuse("field 'destinations' is empty");
        }
        if (sizes['R'] > sizes['S']) {
            refuse("field 'remove' is ", sizes['R'], ", but 'sources' has ", sizes['S']);
        }
        std::vector<bool> listed(static_cast<std::size_t>(tokens));
        for (const char* const name : lists) {
            for (const std::int32_t place : values.list(name)) {
                const auto at = static_cast<std::size_t>(place);
                if (at >= listed.size() || listed[at]) {
                    refuse("field '", name, "' names position ", place,
                           at < listed.size() ? " a second time" : ", which does not exist");
                }
                listed[at] = true;
            }
        }
    }

    void fit(const Values&, const Sizes& sizes) const override {
        if (sizes['N'] != kUnknown && sizes['N'] != sizes['K'] + sizes['R']) {
            refuse("fields 'keep' and 'remove' add up to ", sizes['K'] + sizes['R'], ", but there are ",
                   sizes['N'], " tokens");
        }
    }

    std::size_t workspace(const Values&, const Sizes& sizes) const override {
        return token_match_workspace(sizes.of('B'), sizes.of('S'), sizes.of('T'));
    }

    cudaError_t run(const Call& call) const override {
        if (call.lists.size() != lists.size()) {
            return cudaErrorNotReady;  // no context was attached, so the lists are not on the device
        }
        const Sizes& sizes = call.sizes;
        return pair(call, {sizes.of('B'), sizes.of('N'), sizes.of('D'), sizes.of('S'), sizes.of('T'),
                           sizes.of('O'), sizes.of('R'), call.values.number("order")});
    }

  protected:
    // more, before: fields, and outputs in front of the pairs, of the operator's own.
    Pairing(const char* name, std::vector<Field> more, std::vector<Tensor> inputs, std::vector<Tensor> before)
        : Operator(name,
                   joined<Field>({{"sources", Kind::kList, 0, kMostTokens - 1},
                                  {"destinations", Kind::kList, 0, kMostTokens - 1},
                                  {"others", Kind::kList, 0, kMostTokens - 1},
                                  {"keep", Kind::kSize, 1, kMostTokens},
                                  {"remove", Kind::kSize, 1, kMostTokens},
                                  {"order", Kind::kInt, kSourcesByPosition, kSourcesByValue}},
                                 more),
                   std::move(inputs),
                   joined<Tensor>(std::move(before), {{"value", "BS", Type::kFloat32},
                                                      {"keep", "BK", Type::kInt64},
                                                      {"source", "BR", Type::kInt64},
                                                      {"destination", "BR", Type::kInt64}}),
                   {{'S', "sources"}, {'T', "destinations"}, {'O', "others"}, {'K', "keep"}, {'R', "remove"}},
                   {"sources", "destinations", "others"}) {}

    virtual cudaError_t pair(const Call& call, const MatchShape& shape) const = 0;

  private:
    template <typename Item>
    static std::vector<Item> joined(std::vector<Item> first, const std::vector<Item>& second) {
        first.insert(first.end(), second.begin(), second.end());
        return first;
    }
};

}  // namespace tokenrt::plugin
