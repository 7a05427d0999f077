"""Choosing centres among the tokens: by weight, far from each other, by density, by cost."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, steps

WEIGHTS = ("received", "class", "auto", "equal")


def weights(op: Ops, taps: Taps, site: Site, how: str) -> Value:
    """Return the weight [B,T] of the unprotected tokens: attention as `how` names it, or one each; 0 for padding."""
    if how == "equal":
        shape = steps.batch_shape(op, taps.tokens, site.tokens - site.protect)
        weight = op("Expand", op.constant(np.ones((1, 1), np.float32)), shape)
    else:
        score = steps.free(op, steps.importance(op, taps, site, how), site)
        weight = clusters.finite(op, score)
    shown = clusters.real(op, taps, site)
    return weight if shown is None else op("Where", op("Squeeze", shown, clusters.ROWS), weight, 0.0)


def heaviest(op: Ops, weight: Value, site: Site) -> Value:
    """Return the M unprotected tokens [B,M] with the largest weights, in descending order."""
    by_score = steps.ORDERS[steps.BY_SCORE]
    return op("TokenSelect", weight, keep=clusters.outputs(site), protect=0, order=by_score)


def spread_out(op: Ops, distance: Value, tokens: int, count: int, start: int, reach: str) -> Value:
    """Return `count` tokens [B,count]: `start`, then each time the token not chosen yet that reaches farthest.

    distance [B,T,T]; `reach` names the operator by which distances to those chosen count: Min (to the nearest of
    them) or Max (to the farthest). Written out, one choice after the other.
    """
    shape = steps.batch_shape(op, distance, 1)
    chosen = [op("Expand", op.constant(np.array([[start]])), shape)]
    far = taken = None
    for _ in range(count - 1):
        row = op("Squeeze", steps.gather(op, distance, chosen[-1]), clusters.ROWS)
        here = op("Equal", np.arange(tokens)[None], chosen[-1])
        far = row if far is None else op(reach, far, row)
        taken = here if taken is None else op("Or", taken, here)
        chosen.append(op("ArgMax", op("Where", taken, -1.0, far), axis=1, keepdims=1))
    return chosen[0] if count == 1 else op("Concat", *chosen, axis=1)


def nearest(op: Ops, distance: Value, medoid: Value) -> Value:
    """Return the nearest medoid of each token: distance [B,T,T], medoid [B,M] -> [B,T]; the smaller slot wins."""
    return op("ArgMin", steps.gather(op, distance, medoid), axis=1, keepdims=0)


def cheapest(op: Ops, cost: Value, assign: Value, count: int) -> Value:
    """Return the member of least cost of each cluster [B,count], the smaller index of equals, 0 of an empty one."""
    member = clusters.members(op, assign, count)
    rated = op("Where", member, op("Unsqueeze", cost, clusters.ROWS), clusters.FAR)
    return op("ArgMin", rated, axis=2, keepdims=0)


def peaks(op: Ops, taps: Taps, site: Site, neighbours: int) -> tuple[Value, Value]:
    """Return the density peaks [B,M] by descending score and the nearest one of each unprotected token [B,T]."""
    count = site.tokens - site.protect
    points = clusters.aside(op, scaled(op, taps, site), taps, site)
    keep = clusters.outputs(site)
    center, assign = op("TokenPeaks", points, keep=keep, neighbours=min(neighbours, count))
    return center, assign


def scaled(op: Ops, taps: Taps, site: Site) -> Value:
    """Return the unprotected tokens around their mean, divided by sqrt(C): [B,T,C]."""
    return scaled_rows(op, clusters.plain(op, taps, site), site.tokens - site.protect)


def scaled_rows(op: Ops, rows: Value, count: int) -> Value:
    """Return `count` rows [B,T,C] around their mean, divided by sqrt(C)."""
    points, _ = clusters.points(op, rows, count)
    width = op("Cast", op("Slice", op("Shape", points), np.array([2]), np.array([3])), to=steps.FLOAT)
    return op("Div", points, op("Sqrt", width))
