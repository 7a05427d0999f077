"""What every method can be given: seeded tensors of any size, a grid, random weights, and what else it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenrt.passes.methods.contract import Method, Ops
from tokenrt.perf.bench.method_models import length

C, D, H = 12, 8, 2
WORDS, PATCH, LEARNED = 5, 4, 36
WAKING = 24
BY_ROLE = ("normed", "keys", "queries", "values", "stream", "text_attn")
FRAMES = (4, 3, 2)
"""How many frames a clip has: the first that its tokens can be split into, else one."""

CROPPED = ("hired", "globalcom2")
"""Methods whose tokens are of several crops, laid out like frames."""


def grid(cells: int) -> tuple[int, int]:
    """The most square layout of this many cells."""
    height = next(size for size in range(math.isqrt(cells), 0, -1) if cells % size == 0)
    return height, cells // height


def clip(cells: int) -> tuple[int, int, int]:
    """The layout of this many cells as frames of the most square layout."""
    count = next((frames for frames in FRAMES if cells % frames == 0), 1)
    return count, *grid(cells // count)


def taken(
    method: type[Method], tokens: int, keep: int, protect: int, batch: int, seed: int = 0
) -> dict[str, Any]:
    """What only some methods read: inputs that the model gains, the picture, frames, tensors of other layers."""
    rng = np.random.default_rng([seed, tokens, 1])
    names = {name.removesuffix("?") for name in (*method.takes, *method.reads)}
    found: dict[str, Any] = {}
    frames, height, width = clip(tokens - protect)
    if method.name in CROPPED or (method.family == "video" and method.home != "block"):
        found["grid"] = (frames, height, width)
    if "text" in names:
        found["text"] = rng.standard_normal((batch, WORDS, C)).astype(np.float32)
    if "text_mask" in names:
        found["text_mask"] = (np.arange(WORDS) < WORDS - 1).astype(np.float32)[None].repeat(batch, 0)
    if "importance" in names:
        found["importance"] = rng.random((batch, tokens)).astype(np.float32)
    if "quotas" in names:
        found["quotas"] = np.stack(
            [shared(rng, keep - protect, frames, height * width) for _ in range(batch)]
        )
    if "pixels" in names:
        height, width = grid(tokens - protect)
        found["pixels"] = rng.random((batch, 3, PATCH * height, PATCH * width)).astype(np.float32)
    if "segments" in names:
        found["segments"] = rng.integers(-1, keep - protect, (batch, tokens))
    if "update" in names:
        height, width = grid(tokens - protect)
        found["update"] = rng.standard_normal((batch, 4, 2 * height, 2 * width)).astype(np.float32)
    if "neurons" in names:
        found["neurons"] = rng.standard_normal((batch, tokens, WAKING)).astype(np.float32)
        found["text_neurons"] = rng.standard_normal((batch, WORDS, WAKING)).astype(np.float32)
    if names & {"text_attention", "last_attention"}:
        found["text_attn"] = shares(rng, batch, tokens)
    for role in method.layers:
        own = arrays(tokens, batch, protect, seed + 1 + method.layers.index(role))
        own["stream"], own["text_attn"] = own["normed"], shares(rng, batch, tokens)
        found |= {f"{role}_{name}": own[name] for name in BY_ROLE}
    return found


def shares(rng: np.random.Generator, batch: int, tokens: int) -> Any:
    """Attention [B,H,T,N] of words to tokens, which leaves a part for other words."""
    weight = np.exp(rng.standard_normal((batch, H, WORDS, tokens + WORDS)))
    return (weight / weight.sum(axis=-1, keepdims=True))[..., :tokens].astype(np.float32)


def shared(rng: np.random.Generator, total: int, groups: int, most: int) -> Any:
    """`total` tokens shared at random among groups of at most `most`."""
    places = rng.permutation(groups * most)[:total]
    return np.bincount(places // most, minlength=groups)


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
        "E": C, "L": LEARNED,
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
        "tensors": arrays(tokens, batch, protect, seed) | taken(method, tokens, keep, protect, batch, seed),
        "keep": keep,
        "protect": protect,
    }
    if method.needs:
        options["weights"] = weights(method, tokens, keep, protect)
    if "projected" in method.reads:
        options["projector"] = projector
    return options


def projector(op: Ops, tokens: Any) -> Any:
    """A product with a matrix, and a bend: [B,N,C] -> [B,N,D]."""
    matrix = np.random.default_rng(11).standard_normal((C, D)).astype(np.float32)
    return op("Tanh", op("MatMul", tokens, matrix))


def wide(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors in float64; grids and counts as they are."""
    return {
        name: np.asarray(value, np.float64) if np.asarray(value).dtype.kind == "f" else value
        for name, value in tensors.items()
    }
