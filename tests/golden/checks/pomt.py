"""Pruning one more token: what is kept by falling score, and the mean behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, Unsupported, close, equal
from tokenrt import apply_method


def check_pomt(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    if params["variant"] == "schedule":
        raise Unsupported(
            "a count from measured latency and accuracy is the planner's to find, with its own measure"
        )
    given = {"x": arrays["x"], "attn": arrays["attn"], "values": arrays["v"]}
    options: dict[str, Any] = {"protect": params["prefix_tokens"], "order": "score", "variant": "reference"}
    found = apply_method("pomt", given, keep=arrays["y"].shape[1], backend=backend, **options)
    dropped = np.sort(np.argsort(found["assign"] >= 0, axis=1, kind="stable")[:, : params["R"] + 1], axis=1)
    equal("dropped", dropped, np.sort(arrays["discard_idx"], axis=1))
    close("tokens", found["tokens"], arrays["y"])


CHECKS: Mapping[str, Check] = {"pomt": check_pomt}
