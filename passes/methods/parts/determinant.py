"""Choosing tokens one by one so that the determinant of their kernel is large: pivoted Cholesky, written out."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Value
from tokenrt.passes.methods.parts import bipartite, steps

NOTHING = 1e-5
"""The share of its own entry that a token must have left; less is rounding, and counts as none."""

MIDDLE = np.array([1])


def choose(op: Ops, kernel: Value, tokens: int, count: int, epsilon: float = 0.0) -> Value:
    """`count` of T tokens as chosen [B,count]: each time the one with the most left, of equals the first.

    kernel [B,T,T]. A token has its own entry, less the squares of what the chosen tokens explain of it: of the token j with d
    left that is (its row - what those before explain of it) / sqrt(d + epsilon). A turn reads one row of the kernel and the t
    rows of the turns before, t T numbers. Once the rank is used up nothing is left of any token, and the first ones follow.
    """
    diagonal = np.eye(tokens, dtype=np.float32)[None]
    left = op("ReduceSum", op("Mul", kernel, diagonal), MIDDLE, keepdims=1)
    least = op("Mul", left, NOTHING)
    gain, chosen, explained = op("Max", left, 0.0), list[Value](), None
    for turn in range(count):
        best = op("ArgMax", gain, axis=2, keepdims=0)
        chosen.append(best)
        if turn == count - 1:
            break
        here = op("Equal", np.arange(tokens)[None, None], op("Unsqueeze", best, MIDDLE))
        pivot = op("ReduceMax", gain, axes=[2], keepdims=1)
        row = steps.gather(op, kernel, best)
        if explained is not None:
            own = op("MatMul", op("Cast", here, to=steps.FLOAT), op("Transpose", explained, perm=[0, 2, 1]))
            row = op("Sub", row, op("MatMul", own, explained))
        scale = op("Sqrt", op("Add", pivot, epsilon))
        part = op("Where", op("Greater", pivot, 0.0), op("Div", row, scale), 0.0)
        explained = part if explained is None else op("Concat", explained, part, axis=1)
        left = op("Sub", left, op("Mul", part, part))
        rest = op("Where", op("Greater", left, least), left, 0.0)
        gain = op("Where", op("Or", here, op("Less", gain, 0.0)), -1.0, rest)
    return bipartite.joined(op, chosen)
