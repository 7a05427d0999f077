"""Steps of the bipartite family: matching in any order, means, sums and maxima of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenrt.passes.methods.contract import Ops, Reduction, Site, Taps, Value
from tokenrt.passes.methods.parts import steps

TOKEN_AXIS = np.array([1])


@dataclass(frozen=True)
class Pairs:
    """Who stays and who joins whom: keep [B,K] and source [B,R] positions, slot [B,R] outputs 0 .. K-1."""

    keep: Value
    source: Value
    slot: Value

    def behind(self, op: Ops, order: Value) -> Pairs:
        """The same pairs, whose positions were places in `order` [B,M], as the positions listed there."""
        keep, source = (op("GatherElements", order, places, axis=1) for places in (self.keep, self.source))
        return Pairs(keep, source, self.slot)


def sides(first: int, end: int, every: int = 2) -> tuple[list[int], list[int]]:
    """Sources and destinations among the positions first .. end-1: the last of `every` is a destination."""
    free = range(first, end)
    destinations = [position for position in free if position % every == every - 1]
    return [position for position in free if position % every != every - 1], destinations


def match(
    op: Ops,
    metric: Value,
    others: Sequence[int],
    sources: Sequence[int],
    destinations: Sequence[int],
    remove: int,
    *,
    by_value: bool = False,
) -> tuple[Value, Pairs]:
    """Send the `remove` sources most similar to a destination there: similarity [B,S] of every source, and pairs.

    Kept in this order: others, unmerged sources (ascending, or by descending similarity), destinations.
    """
    value, keep, source, slot = op(
        "TokenMatch",
        metric,
        sources=list(sources),
        destinations=list(destinations),
        others=list(others),
        keep=len(others) + len(sources) + len(destinations) - remove,
        remove=remove,
        order=int(by_value),
    )
    return value, Pairs(keep, source, slot)


def every_source(
    op: Ops,
    unit: Value,
    order: Value,
    others: Sequence[int],
    sources: Sequence[int],
    destinations: Sequence[int],
) -> Pairs:
    """Send every source to its most similar destination; the lists name places in `order` [B,M], positions of unit rows [B,N,D].

    There is nothing to choose, so nothing is ranked. Ties go to the earlier destination; what cannot be compared (NaN)
    resembles nothing, as in TokenMatch. Kept in this order: others, destinations.
    """
    keep, left, right = (
        op("Gather", order, np.array(places), axis=1)
        for places in ([*others, *destinations], sources, destinations)
    )
    turned = op("Transpose", steps.gather(op, unit, right), perm=[0, 2, 1])
    similarity = op("MatMul", steps.gather(op, unit, left), turned)
    nearest = op("ArgMax", op("ThresholdedRelu", similarity, alpha=-2.0), axis=2, keepdims=0)
    return Pairs(keep, left, op("Add", nearest, len(others)))


def match_halves(op: Ops, metric: Value, site: Site) -> Pairs:
    """ToMe's matching: even positions into odd ones, unmerged ones in position order behind protected tokens."""
    sources, destinations = sides(site.protect, site.tokens)
    protected = range(site.protect)
    return match(op, metric, protected, sources, destinations, site.removed, by_value=site.protect == 0)[1]


def counted_once(op: Ops, taps: Taps, site: Site) -> Value:
    """Weights [B,N,1] of a plain mean: one for every token, zero for padding."""
    if not taps.padded:
        return steps.ones(op, taps.tokens, site)
    return op("Cast", op("Greater", taps.size, 0.0), to=steps.FLOAT)


def merged(op: Ops, taps: Taps, site: Site, pairs: Pairs, weight: Value | None = None) -> Reduction:
    """Mean of each kept token and those that join it, weighted by size or by `weight` [B,N,1]; sizes add up.

    Tokens in neither list of `pairs` are dropped.
    """
    size = steps.sizes(op, taps, site)
    tokens, summed = op(
        "TokenCombine", taps.tokens, size if weight is None else weight, pairs.keep, pairs.source, pairs.slot
    )
    if weight is not None:
        summed = total(op, size, pairs)
    return Reduction(tokens, summed, pairs.keep, went(op, taps.tokens, pairs, site.keep, site))


def total(op: Ops, size: Value, pairs: Pairs) -> Value:
    """Sizes [B,K,1] of the kept tokens with all that join them, where tokens were combined by other weights."""
    flat = op("Squeeze", size, steps.LAST)
    return op("Unsqueeze", gathered(op, flat, pairs), steps.LAST)


def went(op: Ops, tokens: Value, pairs: Pairs, kept: int, site: Site) -> Value:
    """Where each input token went: [B,N], -1 for those in neither list of `pairs`."""
    dropped = op(
        "Expand", op.constant(np.full((1, 1), steps.DROPPED)), steps.batch_shape(op, tokens, site.tokens)
    )
    places = op("Concat", pairs.keep, pairs.source, axis=1)
    slots = op("Concat", steps.numbered(op, tokens, kept), pairs.slot, axis=1)
    return op("ScatterElements", dropped, places, slots, axis=1)


def gathered(op: Ops, values: Value, pairs: Pairs, *, largest: bool = False) -> Value:
    """Sum or maximum of `values` [B,N] over each kept token and those that join it: [B,K].

    Only the slots that receive something are computed, once per source; those that share one write the same.
    """
    where = op("GatherElements", pairs.keep, pairs.slot, axis=1)
    moved, near = (op("GatherElements", values, places, axis=1) for places in (pairs.source, where))
    meet = together(op, pairs)
    if largest:
        row = op("Unsqueeze", moved, TOKEN_AXIS)
        grown = op("Max", near, op("ReduceMax", op("Where", meet, row, steps.LOWEST), axes=[2], keepdims=0))
    else:
        share = op("Cast", meet, to=steps.FLOAT)
        total = op("MatMul", share, op("Unsqueeze", moved, steps.LAST))
        grown = op("Add", near, op("Squeeze", total, steps.LAST))
    # Into all N values: TensorRT scatters no more entries than there are, and more can leave than stay.
    summed = op("ScatterElements", values, where, grown, axis=1)
    return op("GatherElements", summed, pairs.keep, axis=1)


def together(op: Ops, pairs: Pairs) -> Value:
    """Which sources have the same slot: [B,R,R] truth values."""
    return op("Equal", op("Unsqueeze", pairs.slot, steps.LAST), op("Unsqueeze", pairs.slot, TOKEN_AXIS))


def ascending(op: Ops, index: Value, count: int) -> Value:
    """Sort `count` positions [B,count]; by way of float32, which TopK takes on every runtime."""
    values, _ = op("TopK", op("Cast", index, to=steps.FLOAT), np.array([count]), axis=1, largest=0)
    return op("Cast", values, to=7)


def joined(op: Ops, parts: Sequence[Value]) -> Value:
    """Concatenate along axis 1."""
    return parts[0] if len(parts) == 1 else op("Concat", *parts, axis=1)
