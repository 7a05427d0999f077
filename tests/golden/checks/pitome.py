"""PiToMe: its four ways of pairing tokens by energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method
from tokenrt.passes.methods.merging.pitome import removed


def check_pitome(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The count from the ratio, then the map, sizes, means, and which token stands for each output."""
    tokens, protect, mode = arrays["x"].shape[1], int(params["class_token"]), params["mode"]
    counted = tokens if mode == "bsm" else tokens - protect
    kept = arrays["y"].shape[1]
    if params.get("ratio") is not None:
        share = min(removed(counted, params["ratio"]), (tokens - protect) // 2)
        equal("tokens removed", np.array(share), np.array(tokens - kept))
    given = {"x": arrays["x"], "keys": arrays["metric"][:, None]}
    if "size" in arrays:
        given["size"] = arrays["size"]
    found = apply_method(
        "pitome",
        given,
        keep=kept,
        protect=protect,
        backend=backend,
        mode=mode,
        margin=params["margin"],
        margin_drop=0,
        alpha=params["alpha"],
    )
    equal("map from input to output", found["assign"], arrays["assign"])
    belongs = found["assign"][:, None] == np.arange(kept)[None, :, None]
    equal("source matrix", belongs, arrays["source"] == 1)
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"], arrays["size_out"])
    if "y_prune" in arrays:
        standing = np.take_along_axis(arrays["x"], found["index"][:, :, None], axis=1)
        close("tokens that stay", standing, arrays["y_prune"])


CHECKS: Mapping[str, Check] = {"pitome": check_pitome}
