"""How the token axis passes each operator: one small function each, in one table keyed by domain and operator."""

from __future__ import annotations

from collections.abc import Mapping

from tokenrt.passes.analysis.marks import Rule
from tokenrt.passes.analysis.rules import (
    attention,
    elementwise,
    linear,
    quantization,
    reduction,
    shape,
    spatial,
)

RULES: Mapping[tuple[str, str], Rule] = {
    **elementwise.RULES,
    **linear.RULES,
    **reduction.RULES,
    **shape.RULES,
    **attention.RULES,
    **spatial.RULES,
    **quantization.RULES,
}
