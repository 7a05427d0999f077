"""VisionZip, of its authors and as AngelSlim has it; EmbedLens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_visionzip(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The class token leads; the recorded score order is told by the scores themselves."""
    attn, metric = arrays["cls_attn_heads"], arrays["metric"]
    keys = np.repeat(metric[:, None], attn.shape[1], axis=1)
    given = {"x": arrays["x"], "cls_attn": attn, "keys": keys}
    kept = 1 + params["dominant"]
    options = {"targets": params["contextual"], "keep": kept + params["contextual"]}
    found = apply_method("visionzip", given, backend=backend, **options)
    equal("kept", found["index"][:, 1:kept] - 1, arrays["keep_idx"])
    close("tokens", found["tokens"], arrays["y"])


def check_angelslim(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The class row from queries and keys, over the patches alone."""
    q, k = arrays["q"].astype(np.float64), arrays["k"].astype(np.float64)[:, :, 1:]
    weight = np.exp(q @ k.swapaxes(2, 3) * q.shape[-1] ** -0.5)
    attn = (weight / weight.sum(axis=-1, keepdims=True))[:, :, 0]
    given = {"x": arrays["x"], "cls_attn": attn, "keys": k}
    options: dict[str, Any] = {"share": params["zip_ratio"], "way": "mean", "order": "position"}
    options |= {"keep": params["K"], "protect": 0, "class_token": True, "backend": backend}
    found = apply_method("visionzip", given, **options)
    equal("kept", found["index"], arrays["keep_idx"])
    belongs = found["assign"][0] == np.arange(params["K"])[:, None]
    close("merge matrix", belongs / belongs.sum(axis=1, keepdims=True), arrays["merge"])
    close("tokens", found["tokens"], arrays["y"])


def check_embedlens(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """As many as the release keeps: those with the most of the table nearer than the target ids."""
    table = arrays["w_vocab"]
    weights = {"prototypes": table[params["target_ids"]], "vocabulary": table}
    options: dict[str, Any] = {"keep": params["K"], "protect": 0, "backend": backend, "weights": weights}
    equal("kept", apply_method("embedlens", {"x": arrays["x"]}, **options)["index"], arrays["keep_idx"])


CHECKS: Mapping[str, Check] = {
    "visionzip": check_visionzip,
    "angelslim_visionzip": check_angelslim,
    "embedlens": check_embedlens,
}
