"""Methods that share tokens among crops: HiRED, HoloV, GlobalCom2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, Mismatch, close, equal
from tokenrt import apply_method
from tokenrt.passes.methods.parts.mosaic import Mosaic


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


def check_globalcom2(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """What each crop keeps, in the released order; then the crops with a newline token a row, as float16."""
    side, rows, columns = params["side"], params["gh"], params["gw"]
    crops, tokens = arrays["cls_scores"].shape
    width, height = params["original_size"] if params["padded"] else (0, 0)
    given = {
        "x": arrays["x"].reshape(1, crops * tokens, -1),
        "importance": arrays["cls_scores"].reshape(1, -1),
        "grid": (crops, side, side),
    }
    options: dict[str, Any] = {
        "retention": params["retention_ratio"],
        "rows": rows,
        "width": width,
        "height": height,
    }
    keep = arrays["thumb_idx"].shape[1] + int(arrays["per_group_budget"].sum())
    found = apply_method(
        "globalcom2",
        given,
        keep=keep,
        protect=0,
        score="importance",
        order="score",
        backend=backend,
        **options,
    )
    index, first = found["index"][0], arrays["thumb_idx"].shape[1]
    equal("kept of the thumbnail", index[:first], arrays["thumb_idx"][0])
    close("thumbnail", found["tokens"][:, :first], arrays["y_thumb"])
    filled = Mosaic.of_picture(rows, columns, side, side, width, height).filled.reshape(rows * columns, -1)
    equal("tokens that show the picture", filled.sum(axis=1), arrays["valid_per_crop"])
    starts = np.cumsum(arrays["per_group_budget"])[:-1]
    grid = np.full((rows * side, columns * side), -1)
    for crop, local in enumerate(np.split(arrays["crop_idx_local"], starts)):
        kept = index[first:][index[first:] // tokens == crop + 1] % tokens
        places = np.flatnonzero(filled[crop])[local]
        equal(f"kept of crop {crop}", kept, places)
        # The release puts a token where the crop has the place that it has among those that show the picture.
        row, column = np.divmod(local, side)
        down, across = np.divmod(crop, columns)
        grid[down * side + row, across * side + column] = (crop + 1) * tokens + places
    close("crops", _with_newlines(arrays, grid), arrays["y_crops"][0])


def _with_newlines(arrays: Arrays, grid: Any) -> Any:
    """Rows of the kept tokens of a grid, each with a newline token behind it."""
    flat = arrays["x"].reshape(-1, arrays["x"].shape[-1])
    lines = [np.vstack([flat[line[line >= 0]], arrays["w_image_newline"]]) for line in grid]
    return np.concatenate(lines).astype(np.float16).astype(np.float32)


CHECKS: Mapping[str, Check] = {
    "hired": check_hired,
    "holov": check_holov,
    "globalcom2": check_globalcom2,
}
