"""Steps of methods that keep the best tokens and let the others join a few of themselves, spread evenly."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import bipartite, scores, steps
from tokenrt.passes.methods.parts.bipartite import Pairs

SUM, MEAN = "sum", "mean"
WAYS = (SUM, MEAN)
"""What a target becomes: itself plus the mean of those that join it, or the mean of all of them."""


def rest(op: Ops, like: Value, index: Value, site: Site, kept: int) -> Value:
    """The N - kept tokens that are not among `index` [B,kept], ascending."""
    gone = scores.dropped(op, like, index, site)
    return op("TokenSelect", gone, keep=site.tokens - kept, protect=0, order=steps.ORDERS[steps.BY_POSITION])


def to_nearest(op: Ops, taps: Taps, site: Site, index: Value, tokens: Value) -> Pairs:
    """Each token that is not among `index` [B,K] joins the unprotected one of these of largest cosine of tokens [B,N,C]."""
    source = rest(op, tokens, index, site, site.keep)
    unit = op("LpNormalization", scores.apart(op, taps, tokens), axis=2, p=2)
    near, far = (steps.gather(op, unit, places) for places in (source, index))
    alike = op("MatMul", near, op("Transpose", far, perm=[0, 2, 1]))
    if site.protect:
        outside = (np.arange(site.keep) < site.protect)[None, None]
        alike = op("Where", outside, -2.0, alike)
    return Pairs(index, source, op("ArgMax", alike, axis=2, keepdims=0))


def spread(count: int, targets: int) -> tuple[list[int], list[int]]:
    """Places of every step-th of `count` tokens, the first `targets` of them, and the other places; step = count // targets."""
    chosen = [place * max(1, count // targets) for place in range(targets)]
    return chosen, [place for place in range(count) if place not in set(chosen)]


def spread_targets(
    op: Ops, taps: Taps, site: Site, index: Value, kept: int, metric: Value, way: str = SUM
) -> Reduction:
    """The tokens at `index` [B,kept], then K - kept targets spread over the rest, each with those of the rest most like it.

    Alike is the larger cosine of `metric` [B,N,D], of equals the earlier target. Padding adds nothing to a target.
    """
    left = rest(op, metric, index, site, kept)
    targets, joining = spread(site.tokens - kept, site.keep - kept)
    target, source = (
        op("Gather", left, np.array(targets), axis=1),
        op("Gather", left, np.array(joining), axis=1),
    )
    keep = op("Concat", index, target, axis=1)
    if not joining:
        return steps.pruned(op, taps, site, keep)
    unit = op("LpNormalization", scores.apart(op, taps, metric), axis=2, p=2)
    turned = op("Transpose", steps.gather(op, unit, target), perm=[0, 2, 1])
    nearest = op(
        "ArgMax", scores.numbers(op, op("MatMul", steps.gather(op, unit, source), turned)), axis=2, keepdims=0
    )
    member = op("Equal", op("Unsqueeze", nearest, np.array([1])), np.arange(len(targets))[None, :, None])
    weight = op("Cast", member, to=steps.FLOAT)
    there = scores.present(op, taps)
    tokens = steps.float_tokens(op, taps)
    if there is not None:
        weight = op("Mul", weight, op("Unsqueeze", scores.gather_row(op, there, source), np.array([1])))
        tokens = op("Where", op("Greater", taps.size, 0.0), tokens, 0.0)
    count = op("ReduceSum", weight, steps.LAST, keepdims=1)
    total = op("MatMul", weight, steps.gather(op, tokens, source))
    own = steps.gather(op, tokens, target)
    joined = (
        op("Add", own, op("Div", total, op("Max", count, 1.0)))
        if way == SUM
        else op("Div", op("Add", own, total), op("Add", count, 1.0))
    )
    head = steps.gather(op, taps.tokens, index)
    pairs = Pairs(keep, source, op("Add", nearest, kept))
    return Reduction(
        op("Concat", head, op("CastLike", joined, taps.tokens), axis=1),
        None if taps.size is None else bipartite.total(op, taps.size, pairs),
        keep,
        bipartite.went(op, taps.tokens, pairs, site.keep, site),
    )


def by_position(op: Ops, taps: Taps, site: Site, made: Reduction) -> Reduction:
    """The same tokens in ascending position."""
    places = op("Cast", made.position, to=steps.FLOAT)
    _, order = op("TopK", places, np.array([site.keep]), axis=1, largest=0)
    numbers = steps.numbered(op, taps.tokens, site.keep)
    rank = op("ScatterElements", numbers, order, numbers, axis=1)
    return Reduction(
        steps.gather(op, made.tokens, order),
        None if made.size is None else steps.gather(op, made.size, order),
        op("GatherElements", made.position, order, axis=1),
        op("GatherElements", rank, made.assign, axis=1),
    )
