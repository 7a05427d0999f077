"""Projectors that read a picture with fewer tokens: M3's nested grids, MQT's first queries."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import Any

from tests.golden.compare import Arrays, Check, close
from tokenrt import apply_method


def check_m3(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The window the release takes for a scale, whatever count that leaves."""
    tokens = arrays["x"].shape[1]
    options: dict[str, Any] = {
        "keep": params["M"],
        "protect": 0,
        "pool": int((tokens / params["scale"]) ** 0.5),
    }
    found = apply_method("m3", {"x": arrays["x"], "grid": (isqrt(tokens),) * 2}, backend=backend, **options)
    close("tokens", found["tokens"], arrays["y"])


def check_mqt(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The recorded weights under the names they have in a checkpoint; of as many queries as tokens all but the last."""
    keep = min(params["num_visual_tokens"], arrays["x"].shape[1] - 1)
    weights = {
        name.removeprefix("w_").replace("__", "."): value
        for name, value in arrays.items()
        if name.startswith("w_")
    }
    found = apply_method(
        "mqt",
        {"x": arrays["x"], "grid": tuple(params["tgt_size"])},
        keep=keep,
        protect=0,
        heads=params["num_heads"],
        weights=weights,
        backend=backend,
    )
    close("tokens", found["tokens"], arrays["y"][:, :keep])


CHECKS: Mapping[str, Check] = {"m3": check_m3, "mqt": check_mqt}
