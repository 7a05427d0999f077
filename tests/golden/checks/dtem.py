"""DTEM in its block: the embedding is the last rows of the fused projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, close
from tokenrt import apply_method


def check_dtem(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """From the block's input to its output."""
    width = 3 * arrays["x_in"].shape[2]
    fused = {name: array for name, array in arrays.items() if name.startswith("w_attn_qkv")}
    block = Block(
        {**arrays, **{name: array[:width] for name, array in fused.items()}},
        params["num_heads"],
        params["norm_eps"],
    )
    weights = {name.removeprefix("w_attn_qkv_"): array[width:] for name, array in fused.items()}
    normed, size = block.norm("norm1", arrays["x_in"].astype(np.float64)), arrays["size"][:, :, None]
    close("metric", normed @ weights["weight"].T + weights["bias"], arrays["metric"])
    branch, _ = block.attend(arrays["x_in"].astype(np.float64), size if params["prop_attn"] else None)
    close("attention branch", branch, arrays["x_attn"])
    found = apply_method(
        "dtem",
        {"x": arrays["x_in"] + branch, "normed": normed, "size": size},
        keep=arrays["y"].shape[1],
        backend=backend,
        weights=weights,
    )
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"][:, :, 0], arrays["size_out"])
    close("block output", block.feed_forward(found["tokens"]), arrays["y_block"])


CHECKS: Mapping[str, Check] = {"dtem": check_dtem}
