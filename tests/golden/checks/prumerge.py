"""PruMerge, PruMerge+ and Recoverable Compression."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_prumerge(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Centres in their order and what they become, behind the class token; counts are those the release arrived at."""
    given = _one_head(arrays)
    options: dict[str, Any] = {"order": "score", "keep": 1 + arrays["y"].shape[1], "backend": backend}
    if params["variant"] == "advanced_plus":
        options |= {"plus": True} | _plus(arrays, params)
    found = apply_method("prumerge", given, **options)
    equal("centres", found["index"][:, 1:] - 1, arrays["keep_idx"])
    close("tokens", found["tokens"][:, 1:], arrays["y"])


def _one_head(arrays: Arrays) -> dict[str, Any]:
    """Tokens, keys and queries of one head, of which only the class token's is read."""
    queries = np.zeros_like(arrays["k"])
    queries[:, :1] = arrays["q"]
    return {"x": arrays["x"], "queries": queries[:, None], "keys": arrays["k"][:, None]}


def _plus(arrays: Arrays, params: Mapping[str, Any]) -> dict[str, Any]:
    """How many attentive tokens and which samples: of the share of outliers, or of the ratio."""
    batch, tokens = arrays["cls_attn"].shape
    if params["adaptive"]:
        ratio = int(arrays["iqr_count"]) / (batch * tokens)
        return {"attentive": int(tokens * ratio), "every": int(int(1 / ratio) / 3)}
    step = int(1 / params["reduction_ratio"])
    best = int(tokens * params["reduction_ratio"])
    return {"attentive": best, "every": step, "first": step // 2, "variant": "reference"}


def check_recoverable(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Kept tokens, then the centres inside the list of the rest; a token that both choose counts as attentive."""
    kept, centres = arrays["keep_idx"].shape[1], arrays["centre_local"].shape[1]
    text = np.pad(arrays["similarity"][:, 0], [(0, 0), (1, 0)])
    given = _one_head(arrays) | {"importance": text}
    options: dict[str, Any] = {
        "recalled": kept - arrays["idx_vision"].shape[1],
        "centres": centres,
        "variant": "reference",
    }
    found = apply_method(
        "recoverable_compression", given, keep=1 + arrays["y"].shape[1], backend=backend, **options
    )
    index = found["index"][:, 1:] - 1
    equal("kept", index[:, :kept], arrays["keep_idx"])
    rest = np.delete(np.arange(text.shape[1] - 1), arrays["keep_idx"][0])
    equal("centres", index[:, kept:], rest[arrays["centre_local"]])
    close("tokens", found["tokens"][:, 1:], arrays["y"])


CHECKS: Mapping[str, Check] = {"prumerge": check_prumerge, "recoverable_compression": check_recoverable}
