"""Methods that share tokens among crops: HiRED, HoloV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, Mismatch, close, equal
from tokenrt import apply_method


def check_hired(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """What the release keeps stays; the fixed count goes beyond it by less than one token a tile."""
    options: dict[str, Any] = {"protect": 0, "class_token": True, "backend": backend}
    if params["variant"] == "llava":
        given = {"x": np.zeros((1, params["N"], 1), np.float32), "cls_attn": arrays["cls_attn_heads"]}
        equal("kept", apply_method("hired", given, keep=params["K"], **options)["index"], arrays["keep_idx"])
        return
    mask = arrays["keep_mask"] > 0
    crops, tokens = mask.shape
    keep = int(crops * tokens * params["rate"])
    given = {
        "x": np.zeros((1, crops * tokens, 1), np.float32),
        "cls_attn": _stitched(arrays["bottom_cls_attn"]),
        "early_cls_attn": _stitched(arrays["top_cls_attn"]),
    }
    options |= {"crops": crops, "alpha": params["alpha"], "variant": "reference"}
    found = apply_method("hired", given, keep=keep, **options)["index"][0]
    kept = np.isin(np.arange(crops * tokens), found).reshape(crops, tokens)
    equal("kept of the thumbnail", kept[0], mask[0])
    equal("kept by the release too", kept & mask, mask)
    more = kept.sum(axis=1) - mask.sum(axis=1)
    if more.max() > 1 or more.sum() != keep - mask.sum():
        raise Mismatch(f"tiles keep {more.tolist()} more than the release")
    for crop in range(crops):
        best = np.argsort(-arrays["bottom_cls_attn"][crop].sum(axis=0), kind="stable")[: kept[crop].sum()]
        equal(f"best of crop {crop}", np.flatnonzero(kept[crop]), np.sort(best))


def _stitched(rows: Any) -> Any:
    """[P,H,n] of the crops -> [1,H,P*n]."""
    return rows.transpose(1, 0, 2).reshape(1, rows.shape[1], -1)


def check_holov(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Order and tokens, rows of zeros included."""
    given = {"x": arrays["x"], "cls_attn": arrays["cls_attn"]}
    options: dict[str, Any] = {
        "parts": params["num_patches"],
        "alpha": params["alpha"],
        "variant": "reference",
        "order": "score",
    }
    found = apply_method(
        "holov", given, keep=params["K"], protect=0, class_token=True, backend=backend, **options
    )
    wanted = arrays["keep_idx"]
    real = wanted >= 0
    equal("rows that are no zeros", found["size"][:, :, 0] > 0, real)
    index = found["index"]
    equal("kept", np.where(real[:, : index.shape[1]], index, -1), wanted[:, : index.shape[1]])
    close("tokens", found["tokens"], arrays["y"])


CHECKS: Mapping[str, Check] = {"hired": check_hired, "holov": check_holov}
