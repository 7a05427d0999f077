"""Choosing tokens one by one so that the determinant of their kernel is large: pivoted Cholesky, written out."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Value
from tokenrt.passes.methods.parts import bipartite

NOTHING = 1e-5
"""The share of its own entry that a token must have left; less is rounding, and counts as none."""


def choose(op: Ops, kernel: Value, own: Value, tokens: int, count: int, epsilon: float = 0.0) -> Value:
    """`count` of T tokens as chosen [B,count]: each time the one with the most left, of equals the first.

    kernel [B,T,T], own [B,T] its diagonal. What a chosen token explains of the others leaves the kernel,
    L - l l' / (l_j + epsilon) with its row l. Once the rank is used up nothing is left of any token, and the first ones
    follow.
    """
    place = np.arange(tokens)[None]
    least = op("Mul", own, NOTHING)
    left, gain, chosen = own, op("Max", own, 0.0), list[Value]()
    for turn in range(count):
        best = op("ArgMax", gain, axis=1, keepdims=1)
        chosen.append(best)
        if turn == count - 1:
            break
        pivot = op("GatherElements", gain, best, axis=1)
        inverse = op("Where", op("Greater", pivot, 0.0), op("Div", 1.0, op("Add", pivot, epsilon)), 0.0)
        row = op("GatherND", kernel, best, batch_dims=1)
        scaled = op("Mul", row, inverse)
        column = op("Unsqueeze", scaled, np.array([2]))
        kernel = op("Sub", kernel, op("Mul", column, op("Unsqueeze", row, np.array([1]))))
        left = op("Sub", left, op("Mul", row, scaled))
        open_gain = op(
            "Where", op("Equal", place, best), -1.0, op("Where", op("Greater", left, least), left, 0.0)
        )
        gain = open_gain if turn == 0 else op("Where", op("Less", gain, 0.0), -1.0, open_gain)
    return bipartite.joined(op, chosen)
