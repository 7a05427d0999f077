"""Methods that keep the best tokens of a picture by one score: FasterVLM, cosine, GeoPrune, RATE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_fastervlm(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    given = {"x": arrays["x"], "cls_attn": arrays["cls_attn"]}
    found = apply_method("fastervlm", given, keep=params["K"], protect=0, class_token=True, backend=backend)
    equal("kept", found["index"], arrays["keep_idx"])
    close("tokens", found["tokens"], arrays["y"])


def check_cosine(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    channels = params["num_scored_channels"] or 0
    given = {"x": arrays["x"][None]}
    found = apply_method("cosine", given, keep=params["K"], protect=0, channels=channels, backend=backend)
    equal("kept", found["index"][0], arrays["keep_idx"])
    close("tokens", found["tokens"][0], arrays["y"])


def check_geoprune(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    options: dict[str, Any] = {
        "directions": params["num_singular_values"],
        "sweeps": params["num_power_iters"],
        "weights": {"start": arrays["v0"]},
    }
    given = {"x": arrays["x"][None]}
    found = apply_method("geoprune", given, keep=params["K"], protect=0, backend=backend, **options)
    equal("kept", found["index"][0], arrays["keep_idx"])


def check_rate(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    options: dict[str, Any] = {
        "variant": "reference" if params["variant"] == "release" else "paper",
        "block": params["pivot_block_size"],
        "skip": params["skip_ratio"],
        "directions": params["num_proj"],
        "weights": {"directions": arrays["rand_proj"]},
    }
    given = {"x": arrays["x"][None]}
    found = apply_method("rate", given, keep=params["K"], protect=0, backend=backend, **options)
    equal("kept", found["index"][0], arrays["keep_idx"])


CHECKS: Mapping[str, Check] = {
    "fastervlm": check_fastervlm,
    "cosine_vllm": check_cosine,
    "geoprune": check_geoprune,
    "rate": check_rate,
}
