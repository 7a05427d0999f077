"""Attention column sums: what is kept by recorded scores, and the scores from queries and keys of segments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_attncolsum(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Positions and tokens; the release is dominant where the share it keeps is at most the ratio it merges."""
    options: dict[str, Any] = {}
    if params["variant"] == "merge" and 1 - params["pruning_rate"] > params["merge_ratio"]:
        options = {"form": "merge", "merge_ratio": params["merge_ratio"]}
    attn = _merged(arrays, params) if params["variant"] == "score" else _as_rows(arrays["scores"])
    given = {"x": arrays["x"][None], "attn": attn[None]}
    found = apply_method("attncolsum", given, keep=params["K"], protect=0, backend=backend, **options)
    equal("kept", found["index"][0], arrays["keep_idx"])
    close("tokens", found["tokens"][0], arrays["y"])


def _as_rows(scores: Any) -> Any:
    """Attention [1,N,N] whose columns have these sums."""
    return np.broadcast_to(scores / len(scores), (1, len(scores), len(scores)))


def _merged(arrays: Arrays, params: Mapping[str, Any]) -> Any:
    """Attention [H,N,N] among merged tokens: rows of a token's patches added up, columns averaged."""
    unit, ends = params["merge_unit"], arrays["cu_seqlens"]
    q, k = (arrays[name].astype(np.float64).transpose(1, 0, 2) for name in ("q", "k"))
    heads, patches, width = q.shape
    segment = np.searchsorted(ends, np.arange(patches), side="right")
    logits = np.where(segment[:, None] == segment, q @ k.transpose(0, 2, 1) * width**-0.5, -np.inf)
    weight = np.exp(logits - logits.max(axis=2, keepdims=True))
    attn = weight / weight.sum(axis=2, keepdims=True)
    close("scores of patches", attn.sum(axis=1).mean(axis=0), arrays["patch_score"])
    tokens = patches // unit
    merged = attn.reshape(heads, tokens, unit, tokens, unit).sum(axis=2).mean(axis=3)
    merged = merged[:, :, arrays["reverse_idx"]]
    close("scores of tokens", merged.sum(axis=1).mean(axis=0), arrays["scores"])
    return merged


CHECKS: Mapping[str, Check] = {"attncolsum": check_attncolsum}
