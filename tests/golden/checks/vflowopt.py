"""VFlowOpt: the entropy of pixels, the score, what is recycled, and what leaves by the same score later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_vflowopt(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    VARIANTS[params["variant"]](arrays, params, backend)


def _score(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The score of all tokens but one, from attention and recorded entropies."""
    batch, tokens = arrays["score"].shape
    given = {
        "x": np.zeros((batch, tokens, 1), np.float32),
        "attn": arrays["attn"],
        "importance": arrays["entropy"].reshape(batch, tokens),
    }
    options = {"threshold": params["t"], "detail": params["alpha_v"], "entropy": "importance"}
    _scored(given, arrays["score"], backend, **options)


def _entropy(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The score holds their softmax; attention, the same for all tokens, adds the same to all."""
    pixels, bits = _cut_alike(arrays["pixel_values"]), arrays["entropy"]
    batch, tokens = bits.shape
    given = {
        "x": np.zeros((batch, tokens, 1), np.float32),
        "attn": np.full((batch, 1, tokens, tokens), 1 / tokens, np.float32),
        "pixels": pixels,
        "grid": (pixels.shape[2] // params["patch"], pixels.shape[3] // params["patch"]),
    }
    share = np.exp(bits - bits.max(axis=1, keepdims=True))
    total = share.sum(axis=1, keepdims=True)
    wanted = 1 / tokens + share / total
    found = _scored(given, wanted, backend, threshold=0.0, detail=1.0, mean=0.0, deviation=1.0)
    shares = found["state_score"].astype(np.float64) - 1 / tokens
    recovered = np.log(shares * total) + bits.max(axis=1, keepdims=True)
    close("entropies", recovered, np.take_along_axis(bits, found["index"], axis=1))


def _cut_alike(pixels: Any) -> Any:
    """The pixels, those that float32 and float64 cut to different 8 bits in the middle of what float32 has."""
    whole = np.floor(pixels * np.float32(255)).astype(np.float64)
    other = np.floor(pixels.astype(np.float64) * 255)
    return np.where(whole == other, pixels, (whole + 0.5) / 255).astype(np.float32)


def _scored(given: Mapping[str, Any], wanted: Any, backend: str, **options: Any) -> dict[str, Any]:
    keep = wanted.shape[1] - 1
    found = apply_method("vflowopt", given, keep=keep, protect=0, side=0, backend=backend, **options)
    close("scores", found["state_score"], np.take_along_axis(wanted, found["index"], axis=1))
    equal("kept", found["index"], np.sort(np.argsort(-wanted, axis=1)[:, :keep], axis=1))
    return found


def _recycle(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    base, rows, columns = params["base_side"], params["local_rows"], params["local_w"]
    given = {"x": arrays["x"], "importance": arrays["score"]}
    options = {"score": "importance", "side": params["m"], "grids": f"{base}x{base}+{rows}x{columns}"}
    found = apply_method("vflowopt", given, keep=params["K"], protect=0, backend=backend, **options)
    equal("kept", found["index"], arrays["keep_idx"])
    close("tokens", found["tokens"], arrays["y"])
    group = arrays["merge_group"][0]
    for number in range(group.max() + 1):
        outputs = found["assign"][0][group == number]
        equal("group", outputs, np.full_like(outputs, outputs[0]))


def _llm(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Stage by stage, the score handed on."""
    score = arrays["score"]
    places = np.arange(score.shape[1])[None]
    for stage, count in enumerate(arrays["stage_counts"]):
        given = {"x": score[..., None], "importance": score}
        found = apply_method(
            "vflowopt", given, keep=int(count), protect=0, side=0, score="importance", backend=backend
        )
        places = np.take_along_axis(places, found["index"], axis=1)
        equal("kept", places, arrays[f"keep_idx_stage{stage}"])
        score = found["state_score"].astype(np.float32)


VARIANTS: Mapping[str, Callable[[Arrays, Mapping[str, Any], str], None]] = {
    "score": _score,
    "entropy": _entropy,
    "recycle": _recycle,
    "llm": _llm,
}
CHECKS: Mapping[str, Check] = {"vflowopt": check_vflowopt}
