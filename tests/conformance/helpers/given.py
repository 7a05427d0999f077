"""What every method can be given: seeded tensors of any size, a grid, random weights of the shapes it wants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenrt.passes.methods.contract import Method
from tokenrt.perf.bench.method_models import length

C, D, H = 12, 8, 2


def grid(cells: int) -> tuple[int, int]:
    """The most square layout of this many cells."""
    height = next(size for size in range(math.isqrt(cells), 0, -1) if cells % size == 0)
    return height, cells // height


def arrays(tokens: int, batch: int, protect: int, seed: int = 0) -> dict[str, Any]:
    """Tensors in float32 that every method may read."""
    rng = np.random.default_rng([seed, tokens])
    given: dict[str, Any] = {
        "x": rng.standard_normal((batch, tokens, C)).astype(np.float32),
        "normed": rng.standard_normal((batch, tokens, C)).astype(np.float32),
        "size": rng.integers(1, 6, (batch, tokens, 1)).astype(np.float32),
        "grid": grid(tokens - protect),
    }
    for name in ("keys", "queries", "values"):
        given[name] = rng.standard_normal((batch, H, tokens, D)).astype(np.float32)
    return given


def weights(method: type[Method], tokens: int, keep: int, protect: int) -> Mapping[str, Any]:
    """Random tensors for `method.needs`, whose letters are the shared ones, products and quotients of them, or numbers."""
    rng = np.random.default_rng(7)
    letters = {
        "C": C, "D": D, "H": H, "N": tokens, "K": keep - protect, "T": tokens - protect, "M": 4, "Q": 3,
    }  # fmt: skip
    return {
        name: 0.3
        * rng.standard_normal([length(part, letters) for part in shape.split(",")]).astype(np.float32)
        for name, shape in method.needs.items()
    }


def call(
    method: type[Method], tokens: int, keep: int, protect: int, batch: int, seed: int = 0
) -> dict[str, Any]:
    """Keyword arguments of apply_method for this method, its tensors included."""
    options: dict[str, Any] = {
        "tensors": arrays(tokens, batch, protect, seed),
        "keep": keep,
        "protect": protect,
    }
    if method.needs:
        options["weights"] = weights(method, tokens, keep, protect)
    return options


def wide(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors in float64."""
    return {
        name: value if name == "grid" else np.asarray(value, np.float64) for name, value in tensors.items()
    }
