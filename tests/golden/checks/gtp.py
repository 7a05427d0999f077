"""GTP-ViT: scores, graphs, propagation, and attention of which only the largest entries are left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.block import Block
from tests.golden.compare import Arrays, Check, Unsupported, close, equal, with_room
from tokenrt import apply_method

WHAT = {
    "CLSAttn": "class",
    "IMGAttn": "image",
    "DiagAttn": "diagonal",
    "MixedAttn": "mixed",
    "SumAttn": "sum",
    "CosSim": "cosine",
}
SCORES = {
    f"{what}{over}": f"{name}-{over.lower()}" for what, name in WHAT.items() for over in ("Max", "Mean")
}
PROPAGATION = {"GraphProp": "graph", "Mean": "mean", "None": "none"}


def check_gtp(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Kept tokens best first, then in place; the graph the method makes, what it passes on, and the sizes."""
    if params.get("variant") == "sparse_attention":
        return _check_sparse(arrays, params, backend)
    if params["selection"] not in SCORES:
        raise Unsupported(f"selection {params['selection']}")
    protect = int(params["class_token"])
    cells = arrays["x"].shape[1] - protect
    side = math.isqrt(cells)
    given = {"x": arrays["x"], "attn": arrays["attn"]}
    options: dict[str, Any] = {
        "keep": arrays["y"].shape[1],
        "protect": protect,
        "backend": backend,
        "score": SCORES[params["selection"]],
        "propagation": PROPAGATION[params["propagation"]],
        "alpha": params["alpha"],
        "token_scale": bool(params["token_scale"]),
        "variant": "reference",
        "order": "score",
    }
    if params["graph_type"] is not None:
        options["graph"] = params["graph_type"].lower()
        given["grid"] = (side, cells // side)
    if params["num_neighbours"] is not None:
        options["neighbours"] = params["num_neighbours"]
    if "token_scales" in arrays:
        given["size"] = arrays["token_scales"][:, :, None]
    if options["propagation"] == "mean":
        given = with_room(given, options["keep"])
    found = apply_method("gtp", given, **options)
    equal("kept, best first", found["index"][:, protect:], arrays["keep_idx"])
    left = np.array([np.flatnonzero(image < 0) for image in found["assign"][:, : protect + cells]])
    equal("those that left", left, np.sort(arrays["prop_idx"], axis=1))
    close("tokens", found["tokens"], arrays["y"])
    if "graph_out" in arrays:
        close("graph", found["state_graph"], arrays["graph_out"])
        carried = apply_method("gtp", given, state={"graph": arrays["graph"]}, **options)
        close("tokens on the recorded graph", carried["tokens"], arrays["y"])
        close("graph handed on", carried["state_graph"], arrays["graph_out"])
    if "token_scales_out" in arrays and options["propagation"] == "graph":
        close("sizes", found["size"][:, :, 0], arrays["token_scales_out"])
    return None


def _check_sparse(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """Only the score reads sparse attention: whole attention with `sparsity` must score like the recorded sparse one."""
    weights = {f"w_attn_{name[2:]}": value for name, value in arrays.items() if name.startswith("w_")}
    block = _Bare(weights, params["num_heads"], 0.0)
    scales = arrays["token_scales"][:, :, None] if "token_scales" in arrays else None
    _, taps = block.attend(arrays["x"].astype(np.float64), scales)
    whole = {"x": arrays["x"], "attn": taps["attn"]}
    sparse = {"x": arrays["x"], "attn": arrays["attn"]}
    kept = np.where(arrays["attn"] > 0, taps["attn"], 0)
    close("attention left", kept, arrays["attn"])
    tokens = arrays["x"].shape[1]
    options: dict[str, Any] = {
        "backend": backend,
        "propagation": "none",
        "order": "score",
        "keep": tokens - 1,
    }
    for score in SCORES.values():
        found = apply_method("gtp", whole, score=score, sparsity=params["sparsity"], **options)
        wanted = apply_method("gtp", sparse, score=score, **options)
        equal(f"ranked by {score}", found["index"], wanted["index"])


class _Bare(Block):
    """A block without the norm in front."""

    def norm(self, name: str, x: Any) -> Any:
        return x


CHECKS: Mapping[str, Check] = {"gtp": check_gtp}
