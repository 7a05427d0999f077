"""Schedules of counts: VisPCO. Its own estimate of the work is not compared: a plan counts that of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.golden.compare import Arrays, Check, equal
from tokenrt.passes import methods
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.planning.resolve import resolve


def check_vispco(arrays: Arrays, params: Mapping[str, Any], backend: str) -> None:
    """The tokens that each layer sees, words protected; the same for every backend."""
    del backend
    layers = params["num_hidden_layers"]
    given = zip(*(arrays[name] for name in ("k", "r", "num_visual", "num_text", "keep_counts")), strict=True)
    for center, ratio, tokens, words, wanted in given:
        budget = Budget.schedule("sigmoid", f"{float(ratio)!r}@{float(center)!r}")
        total, protect = int(tokens + words), int(words)
        sites, _ = resolve(budget, methods.get("topk")(), total, protect, layers, "after-attention")
        left, seen = {site.block: site.tokens for site in sites}, [total]
        for block in range(layers - 1):
            seen.append(left.get(block, seen[-1]))
        equal("tokens seen by each layer", np.array(seen), wanted)


CHECKS: Mapping[str, Check] = {"vispco": check_vispco}
