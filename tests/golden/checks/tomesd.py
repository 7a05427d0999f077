"""ToMe for diffusion, its random places of destinations switched off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt.passes.apply import apply_method


def check_tomesd(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Pairs found on the metric; means, sums and copies of the tokens they lead to."""
    kept, grid = arrays["y"].shape[1], (params["h"], params["w"])
    options: dict[str, Any] = {
        "keep": kept,
        "protect": 0,
        "backend": backend,
        "sx": params["sx"],
        "sy": params["sy"],
    }
    # The method compares the tokens themselves: matched on the metric alone, then on metric and tokens together,
    # where the tokens are too small to change a cosine.
    faint = 1e-4 * arrays["x"].astype(np.float64)
    both = np.concatenate([arrays["metric"], faint], axis=2)
    found = apply_method("tomesd", {"x": both, "grid": grid}, restore=True, **options)
    width = arrays["metric"].shape[2]
    equal("map from input to output", found["assign"], arrays["assign"])
    positions = arrays["src_tok"][arrays["unm_idx"]]
    wanted = np.concatenate([positions, np.tile(arrays["dst_tok"], (len(positions), 1))], axis=1)
    equal("positions kept", found["index"], wanted)
    tokens = found["tokens"][:, :, width:] * 1e4
    close("tokens", tokens, arrays["y"])
    close("sums", tokens * found["size"], arrays["y_sum"])
    close("restored tokens", found["restored"][:, :, width:] * 1e4, arrays["unmerged"])


CHECKS: Mapping[str, Check] = {"tomesd": check_tomesd}
