"""Graphs over the unprotected tokens: who neighbours whom on the grid or in feature space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tokenrt.passes.methods.contract import Method, Ops, Site, Value
from tokenrt.passes.methods.parts import scores, steps


def grid_neighbours(method: Method, site: Site) -> np.ndarray[Any, np.dtype[np.float32]]:
    """1 where two cells touch, corners included, 0 elsewhere and on the diagonal: [T,T].

    A layout that is not known is taken for a square. Raises: MethodError where the count of tokens is none.
    """
    count = site.tokens - site.protect
    side = math.isqrt(count)
    if site.grid is None and side * side != count:
        raise steps.no_grid(method.name, site, "use graph=semantic, or start at the first block")
    cells = np.stack(np.unravel_index(np.arange(count), site.grid or (side, side)), axis=-1)
    apart = np.abs(cells[:, None] - cells[None]).max(axis=-1)
    return np.asarray(apart == 1, np.float32)


def nearest_neighbours(op: Ops, rows: Value, count: int, tokens: int) -> Value:
    """1 where column j is among the `count` rows most similar to row i, by cosine, i itself left out: [B,T,T].

    All that equal the last of them count too.
    """
    cosine = scores.cosines(op, rows)
    best, _ = op("TopK", cosine, np.array([min(count + 1, tokens)]), axis=2)
    least = op("ReduceMin", best, axes=[2], keepdims=1)
    near = op("Cast", op("GreaterOrEqual", cosine, least), to=steps.FLOAT)
    return op("Mul", near, 1 - scores.diagonal(tokens))


def normalised(op: Ops, graph: Value) -> Value:
    """G_ij / sqrt(d_i d_j) with the row sums d; 0 where a sum is 0."""
    degree = op("ReduceSum", graph, steps.LAST, keepdims=1)
    root = op("Where", op("Greater", degree, 0.0), op("Div", 1.0, op("Sqrt", op("Max", degree, 1e-12))), 0.0)
    return op("Mul", op("Mul", graph, root), op("Transpose", root, perm=[0, 2, 1]))


def sparsified(op: Ops, attention: Value, share: float, tokens: int) -> Value:
    """Attention [B,H,N,N] of which only the largest entries of each head are left.

    Those from the k-th smallest on stay, k = floor(N^2 (1 - share)). It is bracketed by halving [0, 1], because
    TensorRT sorts no N^2 entries: what is closer to it than 2^-40, or than one rounding, counts as equal.
    """
    left = tokens * tokens - int(tokens * tokens * (1 - share)) + 1
    low = op("Mul", op("ReduceMin", attention, axes=[2, 3], keepdims=1), 0.0)
    high = op("Add", low, 1.0 + 2.0**-20)
    for _ in range(40):
        middle = op("Mul", op("Add", low, high), 0.5)
        reach = op("Cast", op("GreaterOrEqual", attention, middle), to=steps.FLOAT)
        enough = op("GreaterOrEqual", op("ReduceSum", reach, np.array([2, 3]), keepdims=1), float(left))
        low, high = op("Where", enough, middle, low), op("Where", enough, high, middle)
    return op("Where", op("GreaterOrEqual", attention, low), attention, 0.0)
