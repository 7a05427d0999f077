"""Steps that clustering and mixing share: tokens as points, distances, centres, merging by a map, mixing by a matrix.

T counts the unprotected tokens and M the outputs made of them: N = P + T, K = P + M.
"""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import steps

LARGEST = 1e12
"""Magnitude from which on a number counts as not finite; sums of squares stay below the largest float32."""

FAR = 1e30
"""A squared distance, or a cost, that no comparison prefers."""

ASIDE = 1e6
"""Coordinate that puts padding away from every token."""

LAST = steps.LAST
ROWS = np.array([1])


def outputs(site: Site) -> int:
    """Return M, how many outputs the unprotected tokens become."""
    return site.keep - site.protect


def plain(op: Ops, taps: Taps, site: Site) -> Value:
    """Return the unprotected tokens in float32: [B,T,C]."""
    return op("Cast", steps.free(op, taps.tokens, site), to=steps.FLOAT)


def finite(op: Ops, value: Value) -> Value:
    """Return `value` with 0 for what is NaN, infinite or beyond LARGEST."""
    return op("Where", op("Less", op("Abs", value), LARGEST), value, 0.0)


def points(op: Ops, tokens: Value, count: int) -> tuple[Value, Value]:
    """Return the tokens [B,T,C] around their mean, and the mean [B,1,C]; numbers that are not finite count as 0.

    Distances do not change, and without the part all tokens share, their squares lose no digits to it. Equal tokens
    come out as equal points close to 0.
    """
    sound = finite(op, tokens)
    mean = op("Mul", op("ReduceSum", sound, ROWS, keepdims=1), 1.0 / count)
    return op("Sub", sound, mean), mean


def real(op: Ops, taps: Taps, site: Site) -> Value | None:
    """Return which unprotected tokens are no padding, [B,1,T] bool; None when all are."""
    if not taps.padded:
        return None
    row = op("Transpose", steps.free(op, taps.size, site), perm=[0, 2, 1])
    return op("Greater", row, 0.0)


def aside(op: Ops, features: Value, taps: Taps, site: Site) -> Value:
    """Return the points [B,T,C+1] with all padding in one place, far from every token; as they are without padding."""
    if not taps.padded:
        return features
    shown = op("Cast", op("Greater", steps.free(op, taps.size, site), 0.0), to=steps.FLOAT)
    away = op("Mul", op("Sub", 1.0, shown), ASIDE)
    return op("Concat", op("Mul", features, shown), away, axis=2)


def squared_distances(op: Ops, rows: Value, count: int) -> Value:
    """Return the squared Euclidean distances [B,T,T] of points [B,T,C].

    The squares are the diagonal of the Gram matrix itself, so equal points are at distance 0.
    """
    gram = op("MatMul", rows, op("Transpose", rows, perm=[0, 2, 1]))
    square = op("ReduceSum", op("Where", np.eye(count, dtype=bool)[None], gram, 0.0), LAST, keepdims=1)
    squares = op("Add", square, op("Transpose", square, perm=[0, 2, 1]))
    return op("Max", op("Sub", squares, op("Mul", gram, 2.0)), 0.0)


def distances_between(op: Ops, left: Value, right: Value) -> Value:
    """Return the squared Euclidean distances [B,M,T] of points [B,M,C] and [B,T,C]."""
    product = op("MatMul", left, op("Transpose", right, perm=[0, 2, 1]))
    own = op("ReduceSum", op("Mul", left, left), LAST, keepdims=1)
    other = op("ReduceSum", op("Mul", right, right), LAST, keepdims=1)
    squares = op("Add", own, op("Transpose", other, perm=[0, 2, 1]))
    return op("Max", op("Sub", squares, op("Mul", product, 2.0)), 0.0)


def members(op: Ops, assign: Value, count: int) -> Value:
    """Return which tokens belong to each cluster: assign [B,T] -> [B,count,T] bool."""
    return op("Equal", op("Unsqueeze", assign, ROWS), np.arange(count)[None, :, None])


def by_position(op: Ops, center: Value, assign: Value, count: int) -> tuple[Value, Value, Value]:
    """Number the clusters by ascending centre: center [B,M], assign [B,T] -> order [B,M], center, assign."""
    _, order = op("TopK", op("Cast", center, to=steps.FLOAT), np.array([count]), axis=1, largest=0)
    slots = op("Expand", op.constant(np.arange(count)[None]), op("Shape", center))
    rank = op("ScatterElements", slots, order, slots, axis=1)
    return (
        order,
        op("GatherElements", center, order, axis=1),
        op("GatherElements", rank, assign, axis=1),
    )


def whole(op: Ops, taps: Taps, site: Site, indices: Value) -> Value:
    """Put 0 .. P-1 before indices among the unprotected [B,M] and count those from P: [B,P+M]."""
    if site.protect == 0:
        return indices
    head = steps.numbered(op, taps.tokens, site.protect)
    return op("Concat", head, op("Add", indices, np.array(site.protect)), axis=1)


def merged(
    op: Ops, taps: Taps, site: Site, center: Value, assign: Value, weight: Value | None = None
) -> Reduction:
    """Replace each cluster by its mean, weighted by size or by `weight` [B,N,1]; sizes add up.

    center [B,M]: a different member of each cluster; assign [B,T]: the cluster of each token; both count among the
    unprotected.
    """
    keep, assign = whole(op, taps, site, center), whole(op, taps, site, assign)
    everyone = op("Expand", op.constant(np.ones((1, 1), np.float32)), op("Shape", assign))
    nobody = op("Expand", op.constant(np.zeros((1, 1), np.float32)), op("Shape", keep))
    leaving = op("ScatterElements", everyone, keep, nobody, axis=1)
    source = op("TokenSelect", leaving, keep=site.removed, protect=0, order=steps.ORDERS[steps.BY_POSITION])
    destination = op("GatherElements", assign, source, axis=1)
    size = steps.sizes(op, taps, site)
    tokens, total = op(
        "TokenCombine", taps.tokens, size if weight is None else weight, keep, source, destination
    )
    if weight is not None:
        total = collected(op, size, assign, site.keep)
    return Reduction(tokens, total, keep, assign)


def carried(op: Ops, stays: Value, goes: Value, site: Site) -> tuple[Value, Value]:
    """Centres [B,M], ascending, and the cluster of each unprotected token [B,T], of tokens that go where another one stays.

    stays [B,T] is 1 for the M tokens that stay and 0 for others; goes [B,T] is the token at which each ends up, among the
    unprotected, itself where it stays.
    """
    center = op("TokenSelect", stays, keep=outputs(site), protect=0, order=steps.ORDERS[steps.BY_POSITION])
    numbers = steps.numbered(op, stays, outputs(site))
    slot = op("ScatterElements", op("Mul", goes, 0), center, numbers, axis=1)
    return center, op("GatherElements", slot, goes, axis=1)


def collected(op: Ops, size: Value, assign: Value, count: int) -> Value:
    """Add up sizes [B,N,1] by cluster: [B,count,1]."""
    return op("MatMul", op("Cast", members(op, assign, count), to=steps.FLOAT), size)


def mixed(op: Ops, taps: Taps, site: Site, matrix: Value, mixture: Value) -> Reduction:
    """Put the protected tokens before `mixture` [B,M,C], which the rows of `matrix` [B,M,T] mixed.

    An output stands at its strongest token, and a token is mapped to its strongest output; the smaller index wins.
    Sizes are one: a mixture stands for no count of tokens.
    """
    tokens = ahead(op, taps, site, op("CastLike", mixture, taps.tokens))
    position = whole(op, taps, site, op("ArgMax", matrix, axis=2, keepdims=0))
    assign = whole(op, taps, site, op("ArgMax", matrix, axis=1, keepdims=0))
    return Reduction(tokens, None, position, assign)


def ahead(op: Ops, taps: Taps, site: Site, rest: Value) -> Value:
    """Put the protected tokens before `rest` [B,M,C], in the model's own type."""
    if site.protect == 0:
        return rest
    head = op("Slice", taps.tokens, np.array([0]), np.array([site.protect]), ROWS)
    return op("Concat", head, rest, axis=1)


def shares(op: Ops, logits: Value, shown: Value | None) -> Value:
    """Softmax over tokens of logits [B,M,T]; padding gets nothing."""
    if shown is not None:
        logits = op("Where", shown, logits, steps.LOWEST)
    return op("Softmax", logits, axis=-1)


def after_protected(op: Ops, size: Value, rest: Value, site: Site) -> Value:
    """Put the sizes of the protected tokens, of size [B,N,1], before `rest` [B,M,1]."""
    if site.protect == 0:
        return rest
    return op("Concat", op("Slice", size, np.array([0]), np.array([site.protect]), ROWS), rest, axis=1)


def with_protected(op: Ops, affinity: Value, site: Site) -> Value:
    """Add rows and columns by which protected tokens restore themselves: [B,T,M] -> [B,N,K]."""
    if site.protect == 0:
        return affinity
    zeros = op.constant(np.zeros((1, 1, 1), np.float32))
    left = op("Expand", zeros, steps.batch_shape(op, affinity, site.tokens - site.protect, site.protect))
    own = op.constant(np.eye(site.protect, site.keep, dtype=np.float32)[None])
    top = op("Expand", own, steps.batch_shape(op, affinity, site.protect, site.keep))
    return op("Concat", top, op("Concat", left, affinity, axis=2), axis=1)
