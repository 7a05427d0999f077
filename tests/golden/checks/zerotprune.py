"""Zero-TPrune: the authors' earlier ranking, alone and in its block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_tokenrank(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Rank and selection from recorded logits, then from the block's input; tokens leave behind the block."""
    logits = arrays["attn_logits"].astype(np.float64)
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    options: dict[str, Any] = {
        "keep": arrays["y"].shape[1],
        "backend": backend,
        "variant": "reference",
        "iterations": params["iters"],
        "temperature": params["tau_imp"],
    }
    given = {"x": arrays["x_full"], "attn": weight / weight.sum(-1, keepdims=True)}
    ranked = apply_method("zerotprune", given, order="score", **options)
    equal("kept, best first", ranked["index"][:, 1:], arrays["keep_idx"] + 1)
    found = apply_method("zerotprune", given, **options)
    equal("tokens left in place", found["assign"][:, 1:] >= 0, arrays["mask"] == 1)
    close("tokens", found["tokens"], arrays["y"])

    block = Block(arrays, params["num_heads"], params["norm_eps"])
    x = arrays["x_in"].astype(np.float64)
    branch, taps = block.attend(x)
    full = block.feed_forward(x + branch)
    close("block output before pruning", full, arrays["x_full"])
    found = apply_method(
        "zerotprune", {"x": full, "queries": taps["queries"], "keys": taps["keys"]}, **options
    )
    close("block output", found["tokens"], arrays["y"])


CHECKS: Mapping[str, Check] = {"zerotprune_tokenrank": check_tokenrank}
