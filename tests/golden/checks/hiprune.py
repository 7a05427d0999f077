"""HiPrune: its authors', AngelSlim's and vLLM's; anchors and neighbours step through the flat list in all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def _found(
    middle: Any, deep: Any, params: Mapping[str, Any], width: int, backend: str, anchors: int = 0
) -> Any:
    """Positions kept by scores [B,N], given as attention whose columns have those means."""
    batch, tokens = deep.shape
    shape = (batch, 1, tokens, tokens)
    given = {
        "x": np.zeros((batch, tokens, 1), np.float32),
        "attn": np.broadcast_to(deep[:, None, None], shape),
        "middle_attn": np.broadcast_to(middle[:, None, None], shape),
        "grid": (tokens // width, width),
    }
    options: dict[str, Any] = {"alpha": params["alpha"], "anchors": anchors, "variant": "reference"}
    return apply_method("hiprune", given, keep=params["K"], protect=0, backend=backend, **options)["index"]


def check_hiprune(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    middle, deep = arrays["score_shallow"], arrays["score_deep"]
    if "attn_deep" in arrays:
        middle, deep = (arrays[name].mean(axis=(1, 2))[:, 1:] for name in ("attn_shallow", "attn_deep"))
        close("scores of the middle block", middle, arrays["score_shallow"])
        close("scores of the deep block", deep, arrays["score_deep"])
    equal("kept", _found(middle, deep, params, params["width"], backend), arrays["keep_idx"])


def check_angelslim(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Its scores first: the class row over patches alone, or what all queries give, added up over four patches."""
    middle, deep = (_angelslim(arrays, name, params["variant"]) for name in ("shallow", "deep"))
    least = int(params["alpha"] > 0 and params["K"] >= 5)
    total = max(deep.sum(), 1.0)
    found = _found(middle / total, deep / total, params, params["width"], backend, least)
    equal("kept", found, arrays["keep_idx"])


def _angelslim(arrays: Arrays, which: str, variant: str) -> Any:
    q, k = (arrays[f"{letter}_{which}"].astype(np.float64) for letter in "qk")
    k = k[:, :, 1:] if variant == "llava" else k
    logits = q[:, :, :1] @ k.swapaxes(2, 3) if variant == "llava" else q @ k.swapaxes(2, 3)
    weight = np.exp(logits * q.shape[-1] ** -0.5)
    score = (weight / weight.sum(axis=-1, keepdims=True)).mean(axis=1).sum(axis=1)
    if variant != "llava":
        score = score.reshape(len(score), -1, 4).sum(axis=2)
    close(f"scores of the {which} block", score, arrays[f"score_{which}"])
    return score


def check_vllm(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Scores of soft tokens are added up over their windows first."""
    if params["variant"] == "aggregate":
        pos = arrays["pos"]
        real = pos[:, 0] >= 0
        for name in ("mid", "deep"):
            patch = arrays[f"attn_{name}"][:, real][:, :, real].mean(axis=(0, 1))
            close(f"scores {name}", np.bincount(arrays["kernel_idx"], patch), arrays[name])
        width = (pos[:, 0].max() + 1) // params["pooling"]
    else:
        width = params["grid_w"]
    found = _found(arrays["mid"][None], arrays["deep"][None], params, int(width), backend)
    equal("kept", found[0], arrays["keep_idx"])


CHECKS: Mapping[str, Check] = {
    "hiprune": check_hiprune,
    "angelslim_hiprune": check_angelslim,
    "hiprune_vllm": check_vllm,
}
