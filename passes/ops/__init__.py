"""Operators of the tokenrt domain: contract, NumPy reference and ONNX function body, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tokenrt.passes.ops import (
    token_cluster,
    token_combine,
    token_cover_select,
    token_determinant_select,
    token_greedy_select,
    token_group_select,
    token_match,
    token_means,
    token_medoids,
    token_merge,
    token_peaks,
    token_restore,
    token_score,
    token_select,
)
from tokenrt.passes.ops.contract import DOMAIN, LOWEST_OPSET, VERSION, Operator

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.name: operator
        for operator in (
            token_score.OPERATOR,
            token_match.OPERATOR,
            token_cluster.OPERATOR,
            token_peaks.OPERATOR,
            token_means.OPERATOR,
            token_medoids.OPERATOR,
            token_select.OPERATOR,
            token_group_select.OPERATOR,
            token_greedy_select.OPERATOR,
            token_cover_select.OPERATOR,
            token_determinant_select.OPERATOR,
            token_combine.OPERATOR,
            token_merge.OPERATOR,
            token_restore.OPERATOR,
        )
    }
)

__all__ = ["DOMAIN", "LOWEST_OPSET", "OPERATORS", "VERSION", "Operator"]
