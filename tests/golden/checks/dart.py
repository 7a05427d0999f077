"""DART: its authors', AngelSlim's and TensorRT-Edge-LLM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def _with_norms(states: Any, norms: Any) -> Any:
    """States [1,T,C] at other L1 norms [1,T]: their directions stay, and the norms rank them."""
    return states * (norms / np.abs(states).sum(axis=2))[:, :, None]


def _given(arrays: Arrays, start: int, end: int, others: Any) -> dict[str, Any]:
    """Image tokens with their keys, and the other tokens as text whose norms are those of their keys."""
    norms = np.abs(arrays["keys"]).sum(axis=(1, 3))
    text = _with_norms(arrays["states"][:, others], norms[:, others])
    return {
        "x": arrays["states"][:, start:end],
        "keys": arrays["keys"][:, :, start:end],
        "text": text.astype(np.float32),
    }


def check_dart(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Text pivots come from behind the image; turns are in the recorded order of the release's set."""
    start, end = params["vis_start"], params["vis_start"] + params["vis_len"]
    given = _given(arrays, start, end, slice(end, None))
    close("norms of keys", np.abs(arrays["keys"]).sum(axis=(1, 3)), arrays["key_l1"])
    ranks = [*arrays["pivot_image"][0], *arrays["pivot_text"][0]]
    options: dict[str, Any] = {
        "form": "paper",
        "norm": "keys",
        "pivots": arrays["pivot_image"].shape[1],
        "text_pivots": arrays["pivot_text"].shape[1],
        "turns": ",".join(str(ranks.index(pivot)) for pivot in arrays["pivot_order"][0]),
    }
    options |= {"keep": params["K"], "protect": 0, "backend": backend}
    chosen = apply_method("dart", given, order="score", **options)["index"]
    equal("pivots", chosen[:, : options["pivots"]] + start, arrays["pivot_image"])
    equal("kept", apply_method("dart", given, **options)["index"], arrays["keep_idx"])


def check_angelslim(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    start, end = params["vis_start"], params["vis_start"] + params["vis_len"]
    every = np.arange(arrays["states"].shape[1])
    given = _given(arrays, start, end, every[(every < start) | (every >= end)])
    options: dict[str, Any] = {
        "form": "angelslim",
        "norm": "keys",
        "pivots": arrays["pivot_image"].shape[1],
        "text_pivots": arrays["pivot_text"].shape[1],
    }
    options |= {"keep": params["K"], "protect": 0, "backend": backend}
    chosen = apply_method("dart", given, order="score", **options)["index"]
    equal("pivots", chosen[:, : options["pivots"]], arrays["pivot_image"])
    equal("kept", apply_method("dart", given, **options)["index"], arrays["keep_idx"])


def check_edgellm(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Each span of image tokens with the same text, none of too few; in the order of selection, then all that stays."""
    x, image = arrays["x"], arrays["is_image"]
    text = x[~image][None]
    retained, whole = list[Any](), image.sum() < params["min_visual_tokens"]
    for begin, end, target in arrays["spans"]:
        options: dict[str, Any] = {
            "pivots": params["pivot_image_tokens"],
            "text_pivots": min(params["pivot_text_tokens"], text.shape[1]),
        }
        given, keep = {"x": x[begin:end][None], "text": text}, int(end - begin if whole else target)
        found = apply_method("dart", given, keep=keep, protect=0, order="score", backend=backend, **options)
        retained.append(found["index"][0] + begin)
    recorded = np.split(arrays["retained"], np.cumsum([len(chosen) for chosen in retained])[:-1])
    for chosen, wanted, (begin, end, _) in zip(retained, recorded, arrays["spans"], strict=True):
        all_stay = len(chosen) == end - begin
        equal("order of choosing", chosen, np.sort(wanted) if all_stay else wanted)
    stays = ~image | np.isin(np.arange(len(x)), np.concatenate(retained))
    equal("kept", np.flatnonzero(stays), arrays["keep_idx"])


CHECKS: Mapping[str, Check] = {
    "dart": check_dart,
    "angelslim_dart": check_angelslim,
    "dart_edgellm": check_edgellm,
}
