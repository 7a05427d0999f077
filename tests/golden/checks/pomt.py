"""Pruning one more token: what is kept by falling score, and the mean behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, close, equal
from tokenrt import apply_method
from tokenrt.passes.planning.utility import best as best_count
from tokenrt.passes.planning.utility import utility


def check_pomt(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    if params["variant"] == "schedule":
        given = (arrays["latency"], arrays["accuracy"], params["alpha"])
        close("utility", utility(*given), arrays["utility"])
        best = int(arrays["best"][0])
        equal("best count", np.array(best_count(arrays["tokens"], *given)), np.array(best))
        equal("removed", np.array(params["max_vit_token_count"] - best - 1), np.array(int(arrays["R"][0])))
        return
    given = {"x": arrays["x"], "attn": arrays["attn"], "values": arrays["v"]}
    options: dict[str, Any] = {"protect": params["prefix_tokens"], "order": "score", "variant": "reference"}
    found = apply_method("pomt", given, keep=arrays["y"].shape[1], backend=backend, **options)
    dropped = np.sort(np.argsort(found["assign"] >= 0, axis=1, kind="stable")[:, : params["R"] + 1], axis=1)
    equal("dropped", dropped, np.sort(arrays["discard_idx"], axis=1))
    close("tokens", found["tokens"], arrays["y"])


CHECKS: Mapping[str, Check] = {"pomt": check_pomt}
