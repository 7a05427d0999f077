"""SiT, Sinkhorn and PatchMerger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close
from tokenrt import apply_method

SIT = {
    "norm_weight": "w_weight_0_weight",
    "norm_bias": "w_weight_0_bias",
    "hidden_weight": "w_weight_1_weight",
    "hidden_bias": "w_weight_1_bias",
    "slot_weight": "w_weight_3_weight",
    "slot_bias": "w_weight_3_bias",
}


def mix(method: str, arrays: Arrays, matrix: str, backend: str, **options: Any) -> None:
    """Compare the outputs, and the map and the places that follow from the recorded matrix where there is one."""
    keep = arrays["y"].shape[1]
    found = apply_method(method, {"x": arrays["x"]}, keep=keep, protect=0, backend=backend, **options)
    close("tokens", found["tokens"], arrays["y"])
    if matrix in arrays:
        weight = arrays[matrix]
        at = np.take_along_axis(weight, found["assign"][:, None], axis=1)
        close("weights of the strongest outputs", at, weight.max(axis=1, keepdims=True))
        at = np.take_along_axis(weight, found["index"][:, :, None], axis=2)
        close("weights of the strongest tokens", at, weight.max(axis=2, keepdims=True))


def check_sit(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    weights = {name: arrays[recorded] for name, recorded in SIT.items()}
    weights["scale"] = arrays["w_scale"].reshape(1)
    mix("sit", arrays, "weights", backend, weights=weights)


def check_sinkhorn(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    options = {"eps": params["eps"], "iterations": params["iters"]}
    mix("sinkhorn", arrays, "weights", backend, weights={"centers": arrays["w_v"]}, **options)


def check_patchmerger(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    weights = {
        "queries": arrays["w_queries"],
        "norm_weight": arrays["w_norm_weight"],
        "norm_bias": arrays["w_norm_bias"],
    }
    options = {"scaled": bool(params["scaled_attention"]), "epsilon": params.get("norm_eps", 1e-5)}
    mix("patchmerger", arrays, "attn", backend, weights=weights, **options)


CHECKS: Mapping[str, Check] = {
    "sit": check_sit,
    "sinkhorn": check_sinkhorn,
    "patchmerger": check_patchmerger,
}
