"""PruMerge and PruMerge+."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_prumerge(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Centres in their order and what they become, behind the class token; counts are those the release arrived at."""
    queries = np.zeros_like(arrays["k"])
    queries[:, :1] = arrays["q"]
    given = {"x": arrays["x"], "queries": queries[:, None], "keys": arrays["k"][:, None]}
    options: dict[str, Any] = {"order": "score", "keep": 1 + arrays["y"].shape[1], "backend": backend}
    if params["variant"] == "advanced_plus":
        options |= {"plus": True} | _plus(arrays, params)
    found = apply_method("prumerge", given, **options)
    equal("centres", found["index"][:, 1:] - 1, arrays["keep_idx"])
    close("tokens", found["tokens"][:, 1:], arrays["y"])


def _plus(arrays: Arrays, params: Mapping[str, Any]) -> dict[str, Any]:
    """How many attentive tokens and which samples: of the share of outliers, or of the ratio."""
    batch, tokens = arrays["cls_attn"].shape
    if params["adaptive"]:
        ratio = int(arrays["iqr_count"]) / (batch * tokens)
        return {"attentive": int(tokens * ratio), "every": int(int(1 / ratio) / 3)}
    step = int(1 / params["reduction_ratio"])
    best = int(tokens * params["reduction_ratio"])
    return {"attentive": best, "every": step, "first": step // 2, "variant": "reference"}


CHECKS: Mapping[str, Check] = {"prumerge": check_prumerge}
