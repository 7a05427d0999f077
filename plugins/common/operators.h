// Every operator that has a plugin: one line here, one folder in plugins/.
#pragma once

#include "operator.h"

namespace tokenrt::plugin {

const Operator& token_select();
const Operator& token_match();
const Operator& token_score();
const Operator& token_combine();
const Operator& token_restore();

}  // namespace tokenrt::plugin
