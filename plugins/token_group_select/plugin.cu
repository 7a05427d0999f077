// TokenGroupSelect as a plugin; kernels/token_group_select.cuh is what it runs.
#include <token_group_select.cuh>

#include <numeric>

#include "../common/operators.h"
#include "../common/report.h"

namespace tokenrt::plugin {

namespace {

class TokenGroupSelect final : public Operator {
  public:
    TokenGroupSelect()
        : Operator("TokenGroupSelect",
                   {{"keep", Kind::kSize, 1, kMostTokens},
                    {"protect", Kind::kSize, 0, kMostTokens - 1},
                    {"lengths", Kind::kList, 0, kMostTokens},
                    {"quotas", Kind::kList, 0, kMostTokens}},
                   {{"score", "BN", Type::kOwn}}, {{"index", "BK", Type::kInt64}},
                   {{'K', "keep"}, {'G', "lengths"}}, {"lengths", "quotas"}) {}

    void check(const Values& values) const override {
        const auto& lengths = values.list("lengths");
        const auto& quotas = values.list("quotas");
        if (lengths.empty() || lengths.size() > static_cast<std::size_t>(kMostGroups)) {
            refuse("field 'lengths' names ", lengths.size(), " groups, it must be 1 to ", kMostGroups);
        }
        if (lengths.size() != quotas.size()) {
            refuse("fields 'lengths' and 'quotas' name ", lengths.size(), " and ", quotas.size(), " groups");
        }
        for (std::size_t group = 0; group < quotas.size(); ++group) {
            if (quotas[group] > lengths[group]) {
                refuse("field 'quotas' wants ", quotas[group], " of group ", group, ", which has ",
                       lengths[group], " tokens");
            }
        }
        const std::int64_t kept = values.number("protect") + sum(quotas);
        if (kept != values.number("keep")) {
            refuse("fields 'protect' and 'quotas' add up to ", kept, ", but 'keep' is ",
                   values.number("keep"));
        }
    }

    void fit(const Values& values, const Sizes& sizes) const override {
        const std::int64_t tokens = values.number("protect") + sum(values.list("lengths"));
        if (sizes['N'] != kUnknown && sizes['N'] != tokens) {
            refuse("fields 'protect' and 'lengths' add up to ", tokens, ", but there are ", sizes['N'],
                   " tokens");
        }
    }

    cudaError_t run(const Call& call) const override {
        if (call.lists.size() != lists.size()) {
            return cudaErrorNotReady;  // no context was attached, so the lists are not on the device
        }
        const Sizes& sizes = call.sizes;
        const GroupShape shape{sizes.of('B'), sizes.of('N'), sizes.of('K'), call.values.number("protect"),
                               sizes.of('G')};
        return tokenrt::token_group_select(call.type, call.in<void>(0), call.lists[0], call.lists[1],
                                           call.out<std::int64_t>(0), shape, call.stream);
    }

  private:
    template <typename List>
    static std::int64_t sum(const List& list) {
        return std::accumulate(list.begin(), list.end(), std::int64_t{0});
    }
};

}  // namespace

const Operator& token_group_select() {
    static const TokenGroupSelect only;
    return only;
}

}  // namespace tokenrt::plugin
