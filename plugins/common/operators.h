// Every operator that has a plugin: its function and its place in the list here, its folder in plugins/.
#pragma once

#include "operator.h"

namespace tokenrt::plugin {

const Operator& token_select();
const Operator& token_group_select();
const Operator& token_greedy_select();
const Operator& token_cover_select();
const Operator& token_determinant_select();
const Operator& token_match();
const Operator& token_cluster();
const Operator& token_peaks();
const Operator& token_means();
const Operator& token_medoids();
const Operator& token_score();
const Operator& token_combine();
const Operator& token_merge();
const Operator& token_restore();

constexpr const Operator& (*kOperators[])() = {
    token_select, token_group_select, token_greedy_select, token_cover_select, token_determinant_select,
    token_match,  token_cluster,      token_peaks,         token_means,        token_medoids,
    token_score,  token_combine,      token_merge,         token_restore,
};

}  // namespace tokenrt::plugin
