"""MCTF: both directions, four poolings, and the merged attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method

POOLING = ("size", "attention", "max", "mean")


def check_mctf(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Map, sizes and tokens, then the attention where it was merged."""
    given = {name: arrays[name] for name in ("x", "attn", "size") if name in arrays}
    protect, kept = int(params["num_protected"]), arrays["y"].shape[1]
    found = apply_method(
        "mctf",
        given,
        keep=kept,
        protect=protect,
        backend=backend,
        bidirectional=bool(params["bidirection"]),
        pooling=POOLING[params["pooling_type"]],
        reuse=bool(params["one_step_ahead"]),
        variant="reference" if protect > 1 else "paper",
        **{name: params[name] for name in ("tau_sim", "tau_info", "tau_size")},
    )
    equal("map from input to output", found["assign"], arrays["assign"])
    belongs = found["assign"][:, None] == np.arange(kept)[None, :, None]
    equal("source matrix", belongs, arrays["source"] == 1)
    close("sizes", found["size"], arrays["size_out"])
    close("tokens", found["tokens"], arrays["y"])
    if "attn_out" in arrays:
        close("merged attention", found["state_attention"], arrays["attn_out"])


CHECKS: Mapping[str, Check] = {"mctf": check_mctf}
