"""ATS: the authors' sampler and the one of TokenReduction, in the masked form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, Unsupported, close, equal
from tokenrt import apply_method

EPSILON = 1e-6
"""The authors' masked softmax adds it, divided among the tokens."""


def attention(arrays: Arrays, heads: int) -> tuple[Any, Any]:
    """Attention [B,H,N,N] and values [B,H,N,D] of the authors' block with nothing masked."""
    x = arrays["x"].astype(np.float64)
    batch, tokens, channels = x.shape
    qkv = x @ arrays["w_qkv_weight"].T.astype(np.float64)
    if "w_qkv_bias" in arrays:
        qkv = qkv + arrays["w_qkv_bias"]
    queries, keys, values = qkv.reshape(batch, tokens, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    logits = queries @ keys.transpose(0, 1, 3, 2) * (channels // heads) ** -0.5
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return (weight + EPSILON / tokens) / (weight.sum(-1, keepdims=True) + EPSILON), values


def _reduced(arrays: Arrays, images: Any) -> Arrays:
    """Those images that lose tokens: as many slots as tokens reduce nothing, one fewer holds all that are drawn of them."""
    if not images.any():
        raise Unsupported("every token drawn of every image: nothing is reduced")
    return {
        name: value[images] if value.shape[:1] == images.shape and not name.startswith("w_") else value
        for name, value in arrays.items()
    }


def check_ats(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Which tokens are drawn, in ascending significance, what stands in each slot, and the attention of those rows."""
    attn, values = attention(arrays, params["num_heads"])
    tokens = arrays["raw_x"].shape[1]
    reduced = (arrays["keep_idx"] >= 0).sum(axis=1) < tokens
    arrays, attn, values = _reduced(arrays, reduced), attn[reduced], values[reduced]
    slots = arrays["y"].shape[1]
    keep = min(slots, tokens - 1)
    found = apply_method(
        "ats",
        {"x": arrays["raw_x"], "attn": attn, "values": values},
        keep=keep,
        backend=backend,
        variant="reference",
        form="masked",
        samples=params["n_ref_tokens"] - 1,
    )
    real = np.pad(found["size"][:, :, 0], [(0, 0), (0, slots - keep)]) > 0
    equal("slots in use", real, arrays["policy_out"][:, :, 0] > 0)
    index = np.where(real[:, : found["index"].shape[1]], found["index"], -1)
    equal("drawn", index, arrays["keep_idx"][:, : index.shape[1]])
    equal("empty slots", arrays["keep_idx"][:, index.shape[1] :] < 0, ~real[:, index.shape[1] :])
    close("tokens", found["tokens"], arrays["selected_x"][:, :keep])
    rows = np.take_along_axis(attn, np.maximum(arrays["keep_idx"], 0)[:, None, :, None], axis=2)
    out = (rows @ values).transpose(0, 2, 1, 3).reshape(*real.shape, -1) @ arrays["w_proj_weight"].T
    close("attention output", (out + arrays.get("w_proj_bias", 0)) * real[:, :, None], arrays["y"])


def check_ats_tr(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Which tokens are drawn, ascending; the recorded form stops at the most any image drew."""
    tokens = arrays["x"].shape[1]
    points = len(arrays["sample_steps"])
    # Of as many points as images the list of points would pass for one entry an image.
    images = {name: value for name, value in arrays.items() if name != "sample_steps"}
    arrays = _reduced(images, arrays["n_unique"] < tokens - 1)
    given = {"x": arrays["x"], "attn": arrays["attn"], "values": arrays["v"]}
    if (arrays["mask"] == 0).any():
        given["size"] = arrays["mask"].astype(np.float32)[:, :, None]
    options: dict[str, Any] = {
        "keep": min(1 + points, tokens - 1),
        "backend": backend,
        "variant": "tokenreduction",
        "samples": params["sample_count"],
    }
    found = apply_method("ats", given, form="masked", **options)
    width = 1 + arrays["n_unique"].max()
    arrays = arrays | {name: arrays[name][:, :width] for name in ("keep_idx", "mask_out", "y")}
    drawn = found["assign"] >= 0
    equal("tokens drawn", drawn[:, 1:].sum(axis=1), arrays["n_unique"])
    wanted = np.zeros_like(drawn)
    np.put_along_axis(wanted, arrays["keep_idx"], True, axis=1)
    equal("drawn", drawn, wanted)
    real = arrays["mask_out"] == 1
    equal("order", np.where(real, found["index"][:, :width], 0), arrays["keep_idx"])
    tokens = np.where(real[:, :, None], found["tokens"][:, :width], arrays["x"][:, :1])
    close("tokens", tokens, arrays["y"])
    rows = np.take_along_axis(arrays["attn"], arrays["keep_idx"][:, None, :, None], axis=2)
    close("attention rows", rows, arrays["attn_out"][:, :, :width])


CHECKS: Mapping[str, Check] = {"ats": check_ats, "ats_tr": check_ats_tr}
