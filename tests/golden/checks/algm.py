"""ALGM: both steps, with the counts that its thresholds gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_algm(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Map, sizes and tokens."""
    given = {name: arrays[name] for name in ("x", "size") if name in arrays}
    options: dict[str, Any] = {"stage": params["variant"], "protect": int(params["class_token"])}
    if params["variant"] == "local":
        given["grid"] = np.broadcast_to(params["grid"], 2)
        options["height"], options["width"] = (int(side) for side in np.broadcast_to(params["window"], 2))
    kept = arrays["y"].shape[1]
    found = apply_method("algm", given, keep=kept, backend=backend, **options)
    equal("map from input to output", found["assign"], arrays["assign"])
    belongs = found["assign"][:, None] == np.arange(kept)[None, :, None]
    equal("source matrix", belongs, arrays["source"] == 1)
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"], arrays["size_out"])


CHECKS: Mapping[str, Check] = {"algm": check_algm}
