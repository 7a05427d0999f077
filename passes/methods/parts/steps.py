"""Steps that several methods share: gathering, token maps, sizes, scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenrt.errors import MethodError
from tokenrt.passes.methods.contract import Ops, Reduction, Site, Taps, Value

FLOAT = 1
DROPPED = -1
LAST = np.array([-1])
LOWEST = -3e38
"""Below every score, and finite in float32."""

BY_POSITION, BY_SCORE = "position", "score"
ORDERS = {BY_POSITION: 0, BY_SCORE: 1}


def choice(method: str, option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise MethodError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise MethodError(
            f"option {option}={value} of method {method!r}: expected one of {', '.join(allowed)}"
        )


def at_least(method: str, option: str, value: float, least: int) -> None:
    """Raise MethodError unless `value` is `least` or more."""
    if value < least:
        raise MethodError(f"option {option}={value} of method {method!r}: expected {least} or more")


def no_grid(method: str, site: Site, instead: str = "reduce at one block, the first") -> MethodError:
    """The error where the layout of the tokens is needed and not known."""
    every = site.initial is not None and site.tokens == site.initial
    return MethodError(
        f"method {method!r} needs the grid of the {site.tokens - site.protect} unprotected tokens, and at block "
        f"{site.block} it is {site.grid or 'unknown'}; {'say it with --grid' if every else instead} "
        "(apply_method takes it as the tensor grid, a pair (h, w))"
    )


def gather(op: Ops, data: Value, index: Value) -> Value:
    """Take rows: data [B,N,C], index [B,K] -> [B,K,C]."""
    return op("GatherND", data, op("Unsqueeze", index, LAST), batch_dims=1)


def cut(op: Ops, data: Value, start: int, end: int, axis: int = 1) -> Value:
    """data[start:end] along an axis."""
    return op("Slice", data, np.array([start]), np.array([end]), np.array([axis]))


def free(op: Ops, data: Value, site: Site, axis: int = 1) -> Value:
    """The unprotected of N entries along an axis."""
    return cut(op, data, site.protect, site.tokens, axis) if site.protect else data


def float_tokens(op: Ops, taps: Taps) -> Value:
    """The tokens [B,N,C] in float32."""
    return op("Cast", taps.tokens, to=FLOAT)


def sizes(op: Ops, taps: Taps, site: Site) -> Value:
    """Sizes [B,N,1], one where nothing was merged yet."""
    return ones(op, taps.tokens, site) if taps.size is None else taps.size


def lengths(op: Ops, rows: Value) -> Value:
    """Euclidean lengths [B,N,1] of rows [B,N,C]."""
    return op("Sqrt", op("ReduceSum", op("Mul", rows, rows), LAST, keepdims=1))


def batch_shape(op: Ops, tokens: Value, *rest: int) -> Value:
    """Return the shape [B, *rest] as a tensor, B read from `tokens`."""
    batch = op("Slice", op("Shape", tokens), np.array([0]), np.array([1]))
    return op("Concat", batch, np.array(rest), axis=0)


def head_mean(op: Ops, keys: Value, heads: int, width: int) -> Value:
    """Average over heads: keys [B,H,N,D] -> [B,N,D].

    As a product with a constant row, which ONNX Runtime runs seven times faster than ReduceSum at batch 1.
    """
    rows = op("Reshape", keys, np.array([0, 0, -1]))
    mean = op("MatMul", np.full((1, heads), 1 / heads, np.float32), rows)
    return op("Reshape", mean, np.array([0, -1, width]))


def ones(op: Ops, tokens: Value, site: Site) -> Value:
    """Return sizes before anything was merged: [B,N,1], all one."""
    return op("Expand", op.constant(np.ones((1, 1, 1), np.float32)), batch_shape(op, tokens, site.tokens, 1))


def numbered(op: Ops, tokens: Value, count: int) -> Value:
    """Return 0 .. count-1 for every image: [B,count] int64."""
    return op("Expand", op.constant(np.arange(count)[None]), batch_shape(op, tokens, count))


def kept_map(op: Ops, tokens: Value, index: Value, kept: int, site: Site) -> Value:
    """Return where each input token went when `index` [B,kept] was kept: [B,N], -1 when dropped."""
    dropped = op("Expand", op.constant(np.full((1, 1), DROPPED)), batch_shape(op, tokens, site.tokens))
    return op("ScatterElements", dropped, index, numbered(op, tokens, kept), axis=1)


def merged_map(op: Ops, tokens: Value, keep: Value, source: Value, destination: Value, site: Site) -> Value:
    """Return where each input token went when `source` [B,R] joined the slots `destination` [B,R]: [B,N]."""
    places = op("Concat", keep, source, axis=1)
    slots = op("Concat", numbered(op, tokens, site.keep), destination, axis=1)
    return op("ScatterElements", places, places, slots, axis=1)


def pruned(op: Ops, taps: Taps, site: Site, index: Value) -> Reduction:
    """Keep the tokens at `index` [B,K] and drop the rest."""
    size = None if taps.size is None else gather(op, taps.size, index)
    assign = kept_map(op, taps.tokens, index, site.keep, site)
    return Reduction(gather(op, taps.tokens, index), size, index, assign)


def constantly_pruned(
    op: Ops, taps: Taps, site: Site, index: np.ndarray[Any, np.dtype[np.int64]]
) -> Reduction:
    """Keep the same tokens, `index` [K], of every image and drop the rest."""
    assign = np.full(site.tokens, DROPPED)
    assign[index] = np.arange(len(index))
    size = None if taps.size is None else op("Gather", taps.size, index, axis=1)
    tokens = op("Gather", taps.tokens, index, axis=1)
    return Reduction(tokens, size, op.constant(index[None]), op.constant(assign[None]))


def importance(op: Ops, taps: Taps, site: Site, how: str) -> Value:
    """Return the score [B,N] that `how` names; auto is class where there is a class token, else received."""
    if how == "auto":
        how = "class" if site.class_token else "received"
    if how == "class" and not site.class_token:
        raise MethodError(
            "score=class needs a class token in front: one that no input reaches, or position 0 read by a pooler, and this "
            "model has neither; use score=received, the attention that all tokens give (methods with a weight: weight=received)"
        )
    if how == "class":
        return taps.class_attention()
    if how == "received":
        return taps.received_attention()
    metric = taps.metric()
    norm = op("ReduceSum", op("Mul", metric, metric), LAST, keepdims=0)
    if not taps.padded:
        return norm
    # Attention to padding (size 0) is 0 already; the length of its keys must not count either.
    return op("Mul", norm, op("Squeeze", op("Cast", op("Greater", taps.size, 0.0), to=FLOAT), LAST))
