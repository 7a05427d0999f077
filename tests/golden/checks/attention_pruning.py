"""TopK and EViT, alone and in their block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, close, equal, with_room
from tokenrt import apply_method


def check_pruning(method: str) -> Check:
    """Pruning by class attention: the set kept, then the tokens in recorded order, then the block around them."""

    def check(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
        options: dict[str, Any] = {"keep": arrays["y"].shape[1], "backend": backend, "order": "score"}
        if method == "evit":
            options["fuse"] = bool(params.get("fuse_token", True))
        close("scores", arrays["attn"][:, :, 0, 1:].mean(1), arrays["scores"])
        if params["K"] == arrays["scores"].shape[1]:
            return _check_whole(method, arrays, params, options)
        given = {"x": arrays["x"], "attn": arrays["attn"]}
        found = apply_method(method, with_room(given, options["keep"]), **options)
        wanted = arrays["keep_idx"] + 1
        kept = found["index"][:, 1:]
        equal("positions kept", np.sort(kept, axis=1), np.sort(wanted, axis=1))
        order = (
            1
            + np.argsort(kept, axis=1)[
                np.arange(len(kept))[:, None], np.argsort(np.argsort(wanted, axis=1), axis=1)
            ]
        )
        tokens = found["tokens"].copy()
        tokens[:, 1 : 1 + kept.shape[1]] = np.take_along_axis(tokens, order[:, :, None], axis=1)
        close("tokens", tokens, arrays["y"])
        return _compare_block(method, arrays, params, options, wanted)

    return check


def _check_whole(method: str, arrays: Arrays, params: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Where all tokens are kept the releases leave them as they are, without a fused token."""
    given = {"x": arrays["x"], "attn": arrays["attn"]}
    tokens = apply_method(method, given, **options)["tokens"]
    close("tokens", tokens, arrays["y"])
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    close("block output", block.feed_forward(tokens.astype(np.float64)), arrays["y_block"])


def _compare_block(
    method: str, arrays: Arrays, params: Mapping[str, Any], options: Mapping[str, Any], wanted: Any
) -> None:
    """Start at the block's input: attention from queries and keys must choose the same tokens."""
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    branch, taps = block.attend(arrays["x_in"].astype(np.float64))
    close("attention", taps["attn"], arrays["attn"])
    x = arrays["x_in"] + branch
    given = {"x": x, "queries": taps["queries"], "keys": taps["keys"]}
    if x.shape[1] == options["keep"]:
        given = with_room({"x": x, "attn": taps["attn"]}, options["keep"])
    found = apply_method(method, given, **options)
    equal("positions kept, from queries and keys", np.sort(found["index"][:, 1:]), np.sort(wanted))
    close("block output", block.feed_forward(found["tokens"]), arrays["y_block"])


CHECKS: Mapping[str, Check] = {
    "tr_topk": check_pruning("topk"),
    "evit": check_pruning("evit"),
    "tr_evit": check_pruning("evit"),
}
