"""Steps that methods which score every token share: small networks on tokens, what is unprotected, what is padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tokenrt.passes.methods.contract import Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import layers, steps
from tokenrt.passes.methods.parts.weights import Trained

INT64 = 7
EPSILON = 1e-30
"""Floor of divisors, so that 0/0 is 0."""

ALWAYS = 3e30
"""Above every score that `numbers` leaves: of what stays whatever its score is."""

TOKEN_AXIS = np.array([1])
GATE: Mapping[str, str] = {
    "gate.0.weight": "M,C", "gate.0.bias": "M", "gate.2.weight": "1,M", "gate.2.bias": "1"
}  # fmt: skip
"""The trained tensors of `gate`, M hidden."""

PAPER, REFERENCE = "paper", "reference"
VARIANTS = (PAPER, REFERENCE)


def behind_protected(op: Ops, score: Value, site: Site) -> Value:
    """[B,N] from [B,T]: a zero for each protected token in front."""
    return op("Concat", filled(op, score, 0.0, site.protect), score, axis=1) if site.protect else score


def filled(op: Ops, like: Value, number: float, *rest: int) -> Value:
    """[B,*rest] float32, all one number, B that of `like`."""
    value = op.constant(np.full((1,) * (1 + len(rest)), number, np.float32))
    return op("Expand", value, steps.batch_shape(op, like, *rest))


def present(op: Ops, taps: Taps) -> Value | None:
    """[B,N] float32, 1 for tokens and 0 for padding; None where nothing is padding."""
    if not taps.padded:
        return None
    return op("Squeeze", op("Cast", op("Greater", taps.size, 0.0), to=steps.FLOAT), steps.LAST)


def apart(op: Ops, taps: Taps, rows: Value) -> Value:
    """What is compared [B,N,D], with a column that makes padding like padding and unlike everything else."""
    there = present(op, taps)
    if there is None:
        return rows
    column = op("Unsqueeze", there, steps.LAST)
    return op("Concat", op("Mul", rows, column), op("Sub", 1.0, column), axis=2)


def unpadded(op: Ops, taps: Taps, score: Value) -> Value:
    """The score [B,N], but the lowest there is for padding."""
    if not taps.padded:
        return score
    return op("Where", op("Greater", op("Squeeze", taps.size, steps.LAST), 0.0), score, steps.LOWEST)


def numbers(op: Ops, score: Value, limit: float = 1e30) -> Value:
    """The same with NaN as 0 and infinities as +-limit, so that sums and ranks stay defined."""
    known = op("Where", op("IsNaN", score), 0.0, score)
    return op("Max", op("Min", known, limit), -limit)


def select(op: Ops, taps: Taps, site: Site, score: Value, order: str, kept: int | None = None) -> Value:
    """Positions [B,K] of the protected tokens and the best others; padding last."""
    return op(
        "TokenSelect",
        unpadded(op, taps, score),
        keep=site.keep if kept is None else kept,
        protect=site.protect,
        order=steps.ORDERS[order],
    )


def pruned(op: Ops, taps: Taps, site: Site, score: Value, order: str) -> Reduction:
    """Keep the protected tokens and the best others, drop the rest."""
    return steps.pruned(op, taps, site, select(op, taps, site, score, order))


def gather_row(op: Ops, data: Value, index: Value) -> Value:
    """Entries of data [B,N] at index [B,K] -> [B,K]."""
    return op("GatherElements", data, index, axis=1)


def dropped(op: Ops, like: Value, index: Value, site: Site) -> Value:
    """[B,N] float32: 1 where a token is not among `index` [B,K]."""
    return op("ScatterElements", filled(op, like, 1.0, site.tokens), index, _zeros(op, like, index), axis=1)


def _zeros(op: Ops, like: Value, index: Value) -> Value:
    return op("Mul", op("Cast", index, to=steps.FLOAT), 0.0)


def weighted_mean(op: Ops, weight: Value, rows: Value) -> Value:
    """Sum of w_j x_j / sum of w_j: weight [B,N], rows [B,N,C] -> [B,1,C]."""
    total = op("Max", op("ReduceSum", weight, TOKEN_AXIS, keepdims=1), EPSILON)
    return op("MatMul", op("Unsqueeze", op("Div", weight, total), TOKEN_AXIS), rows)


def cosines(op: Ops, rows: Value) -> Value:
    """[B,N,N] cosines of rows [B,N,D] with each other; those of a zero row are 0."""
    length = op("Sqrt", op("ReduceSum", op("Mul", rows, rows), steps.LAST, keepdims=1))
    unit = op("Div", rows, op("Max", length, 1e-12))
    return op("MatMul", unit, op("Transpose", unit, perm=[0, 2, 1]))


def diagonal(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The identity matrix."""
    return np.eye(count, dtype=np.float32)


def appended(
    op: Ops,
    taps: Taps,
    site: Site,
    score: Value,
    index: Value,
    token: Value,
    state: Mapping[str, Value] | None = None,
    represented: bool = False,
    others: Value | None = None,
) -> Reduction:
    """The tokens at `index` [B,K-1], then `token` [B,1,C], which stands for all that were dropped.

    It takes the place of the best of them, and as its size the sum of theirs.
    others: [B,K-1,C], what the tokens at `index` became, where they did not stay as they were.
    represented: what is added to it later they get as well, when they come back.
    """
    kept = site.keep - 1
    gone = dropped(op, score, index, site)
    best = op(
        "ArgMax", op("Where", op("Greater", gone, 0.0), numbers(op, score), steps.LOWEST), axis=1, keepdims=1
    )
    size = None
    if taps.size is not None:
        rest = op("MatMul", op("Unsqueeze", gone, TOKEN_AXIS), taps.size)
        size = op("Concat", steps.gather(op, taps.size, index), rest, axis=1)
    kept_tokens = steps.gather(op, taps.tokens, index) if others is None else others
    return Reduction(
        op("Concat", kept_tokens, op("CastLike", token, taps.tokens), axis=1),
        size,
        op("Concat", index, best, axis=1),
        steps.kept_map(op, taps.tokens, index, kept, site),
        state=state or {},
        represented=represented,
    )


def gate(op: Ops, method: Trained, site: Site, rows: Value) -> Value:
    """linear, GELU, linear to one number: rows [B,N,C] -> [B,N]; tensors GATE of the method.

    Of vectors side by side [B,N,W*C], whose tokens leave alike, the mean of their numbers.
    """
    first, bias, last, end = (method.tensor(name, site) for name in GATE)
    hidden = first.shape[0]
    method.check("gate.0.bias", bias, (hidden,))
    method.check("gate.2.weight", last, (1, hidden))
    method.check("gate.2.bias", end, (1,))
    if site.across > 1:
        method.check("gate.0.weight", first, (hidden, (site.channels or 0) // site.across))
        rows = op("Reshape", rows, np.array([0, 0, site.across, first.shape[1]]))
    rated = layers.linear(op, layers.gelu(op, layers.linear(op, rows, first, bias)), last, end)
    rated = op("Squeeze", rated, steps.LAST)
    return op("ReduceMean", rated, axes=[2], keepdims=0) if site.across > 1 else rated


def last_slot(op: Ops, index: Value, site: Site, kept: int) -> Value:
    """Where each input token went when `index` [B,kept] was kept, of repeated ones the last slot: [B,N], -1 when dropped."""
    every = np.arange(site.tokens)[None, None]
    here = op("Cast", op("Equal", op("Unsqueeze", index, np.array([2])), every), to=steps.FLOAT)
    numbered = op("Mul", here, np.arange(1, kept + 1, dtype=np.float32)[None, :, None])
    slot = op("Cast", op("ReduceMax", numbered, axes=[1], keepdims=0), to=INT64)
    return op("Sub", slot, 1)
