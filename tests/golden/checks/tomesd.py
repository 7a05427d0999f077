"""ToMe for diffusion, its random places of destinations switched off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


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
    given = {"x": arrays["x"], "stream": arrays["metric"], "grid": grid}
    found = apply_method("tomesd", given, restore=True, **options)
    equal("map from input to output", found["assign"], arrays["assign"])
    positions = arrays["src_tok"][arrays["unm_idx"]]
    wanted = np.concatenate([positions, np.tile(arrays["dst_tok"], (len(positions), 1))], axis=1)
    equal("positions kept", found["index"], wanted)
    close("tokens", found["tokens"], arrays["y"])
    close("sums", found["tokens"] * found["size"], arrays["y_sum"])
    close("restored tokens", found["restored"], arrays["unmerged"])


CHECKS: Mapping[str, Check] = {"tomesd": check_tomesd}
