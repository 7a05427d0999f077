"""ToMe, alone, in its block, and as TokenReduction runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, Unsupported, close, equal
from tokenrt import apply_method


def check_tome(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """ToMe's own merging, on its own or inside a whole patched block."""
    variant = params.get("variant")
    if variant in VARIANTS:
        return VARIANTS[variant](arrays, params, backend)
    if variant is not None:
        raise Unsupported(f"variant {variant} of ToMe")
    given = {"x": arrays["x"], "keys": arrays["metric"][:, None]}
    options: dict[str, Any] = {
        "keep": arrays["y"].shape[1],
        "protect": _protected(params),
        "backend": backend,
        "restore": True,
    }
    found = apply_method("tome", given | _sizes(arrays), **options)
    _compare_merged(found, arrays)
    close("tokens", found["tokens"], arrays["y"])
    if "unmerged" in arrays:
        close("restored tokens", found["restored"], arrays["unmerged"])
    if "y_mean" in arrays:
        close("plain mean", apply_method("tome", given, **options)["tokens"], arrays["y_mean"])
    return None


def _protected(params: Mapping[str, Any]) -> int:
    return int(params.get("class_token", True)) + int(params.get("distill_token", False))


def _compare_merged(found: Arrays, arrays: Arrays) -> None:
    equal("map from input to output", found["assign"], arrays["assign"])
    close("sizes", found["size"], arrays["size_out"])
    if "source" in arrays:
        belongs = found["assign"][:, None] == np.arange(found["size"].shape[1])[None, :, None]
        equal("source matrix", belongs, arrays["source"] == 1)


def _check_kth(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The release drops the last incomplete group of k tokens before it matches the others."""
    every, kept = params["k"], arrays["y"].shape[1]
    whole = {name: arrays[name][:, : every * kept] for name in ("x", "metric", "size") if name in arrays}
    whole["keys"] = whole.pop("metric")[:, None]
    found = apply_method("tome", whole, keep=kept, protect=0, backend=backend, every=every, restore=True)
    goes = found["assign"].reshape(-1, kept, every)[:, :, :-1].reshape(-1, kept * (every - 1))
    equal("destination of each source", goes, arrays["dst_idx"])
    close("sizes", found["size"], arrays["size_out"])
    close("tokens", found["tokens"], arrays["y"])
    close("restored tokens", found["restored"], arrays["unmerged"])


def _check_tome_block(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    branch, taps = block.attend(
        arrays["x"].astype(np.float64), arrays.get("size") if params.get("prop_attn", True) else None
    )
    close("attention branch", branch, arrays["x_attn"])
    close("metric", taps["keys"].mean(1), arrays["metric"])
    given = {"x": arrays["x"] + branch, "keys": taps["keys"]} | _sizes(arrays)
    options = {"keep": arrays["y"].shape[1], "protect": _protected(params)}
    found = apply_method("tome", given, backend=backend, **options)
    _compare_merged(found, arrays)
    close("block output", block.feed_forward(found["tokens"]), arrays["y"])


def _sizes(arrays: Arrays) -> dict[str, Any]:
    return {"size": arrays["size"]} if "size" in arrays else {}


VARIANTS = {"kth": _check_kth, "block": _check_tome_block}


def check_tr_tome(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """ToMe as TokenReduction runs it: always proportional attention; the map leaves out the class token."""
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    branch, taps = block.attend(arrays["x_in"].astype(np.float64), arrays.get("size"))
    close("metric", taps["keys"].mean(1), arrays["metric"])
    given = {"x": arrays["x_in"] + branch, "keys": taps["keys"]} | _sizes(arrays)
    first = _protected(params)
    found = apply_method("tome", given, keep=arrays["y"].shape[1], protect=first, backend=backend)
    equal("map from patch to output", found["assign"][:, first:] - first, arrays["assign"])
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"], arrays["size_out"])
    close("block output", block.feed_forward(found["tokens"]), arrays["y_block"])


CHECKS: Mapping[str, Check] = {"tome": check_tome, "tr_tome": check_tr_tome}
