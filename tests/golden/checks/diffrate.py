"""DiffRate, alone and in its block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_diffrate(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The step on recorded attention, then the block around it from its input."""
    close("scores", arrays["attn"][:, :, 0, 1:].mean(1), arrays["scores"])
    options: dict[str, Any] = {
        "keep": arrays["y"].shape[1],
        "backend": backend,
        "prune_kept": params["prune_kept"],
        "variant": "reference",
    }
    found = apply_method("diffrate", {name: arrays[name] for name in ("x", "attn", "size")}, **options)
    _compare(found, arrays)
    equal("positions kept", found["index"], arrays["sort_idx"][:, : options["keep"]])
    # The release sends pruned tokens to output 0 when it restores them.
    back = np.maximum(found["assign"], 0)
    close(
        "restored tokens", np.take_along_axis(found["tokens"], back[:, :, None], axis=1), arrays["unmerged"]
    )

    block = Block(arrays, params["num_heads"], params["norm_eps"])
    branch, taps = block.attend(arrays["x_in"].astype(np.float64), arrays["size"])
    close("attention", taps["attn"], arrays["attn"])
    given = {"x": arrays["x_in"] + branch, "size": arrays["size"]}
    found = apply_method("diffrate", given | {name: taps[name] for name in ("queries", "keys")}, **options)
    _compare(found, arrays)
    close("block output", block.feed_forward(found["tokens"]), arrays["y_block"])


def _compare(found: Arrays, arrays: Arrays) -> None:
    belongs = found["assign"][:, None] == np.arange(arrays["y"].shape[1])[None, :, None]
    equal("source matrix", belongs, arrays["source"] == 1)
    close("tokens", found["tokens"], arrays["y"])
    close("sizes", found["size"], arrays["size_out"])


CHECKS: Mapping[str, Check] = {"diffrate": check_diffrate}
