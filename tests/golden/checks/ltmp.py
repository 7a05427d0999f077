"""LTMP: fixed numbers as its files have them, and learned thresholds with the count they gave as quota."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method


def check_ltmp(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The block around each kind of step."""
    block = Block(arrays, params["num_heads"], params["norm_eps"])
    x = arrays["x_in"].astype(np.float64)
    branch, taps = block.attend(x, arrays["size"])
    close("attention", taps["attn"], arrays["attn"])
    close("scores", taps["attn"].mean((1, 2)), arrays["scores"])
    kept = arrays["y"].shape[1]
    removed, learned = x.shape[1] - kept, params["kind"].startswith("lt_")
    merged = _merged(arrays, params, removed)
    pruned = removed - merged
    found = apply_method(
        "ltmp",
        {"x": x + branch, "attn": arrays["attn"], "keys": taps["keys"], "size": arrays["size"]},
        keep=kept,
        backend=backend,
        r_prune=pruned,
        first="prune" if params["kind"] == "prunemerge" else "merge",
        order="position" if learned else "score",
    )
    if params["kind"] == "lt_mergeprune" and not merged:
        # Nothing merged: the release still puts odd positions behind even ones, the method leaves all in place.
        order = np.argsort(found["index"] % 2, axis=1, kind="stable")
        found |= {name: _rows(found[name], order) for name in ("index", "tokens", "size")}
    if "keep_idx" in arrays:
        equal("positions kept", found["index"], arrays["keep_idx"])
    close("tokens", found["tokens"], arrays["y"])
    if "size_out" in arrays:
        close("sizes", found["size"], arrays["size_out"])
    close("block output", block.feed_forward(found["tokens"]), arrays["y_block"])


def _rows(data: Any, index: Any) -> Any:
    return data[np.arange(len(data))[:, None], index]


def _merged(arrays: Arrays, params: Mapping[str, Any], removed: int) -> int:
    """How many tokens were merged. Of fixed numbers each is at most half of what is there when its turn comes; a
    threshold merges the even tokens more similar to an odd one than it, and never the class token."""
    kind, free = params["kind"], arrays["x_in"].shape[1] - 1
    if "merge" not in kind:
        return 0
    if not kind.startswith("lt_"):
        merge, prune = params["r_merge"], params["r_prune"]
        wanted = min(merge, free // 2) if kind == "mergeprune" else removed - min(prune, free // 2)
        if kind == "prunemerge":
            equal(
                "tokens merged", np.array(min(merge, (free - min(prune, free // 2)) // 2)), np.array(wanted)
            )
        return wanted
    unit = arrays["metric"] / np.linalg.norm(arrays["metric"], axis=2, keepdims=True)
    best = (unit[:, 2::2] @ unit[:, 1::2].transpose(0, 2, 1)).max(2)
    return int(np.sum(best[0] > np.ravel(params["threshold"])[0]))


CHECKS: Mapping[str, Check] = {"ltmp": check_ltmp}
