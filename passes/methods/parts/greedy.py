"""Steps of methods that choose tokens one by one, by what each adds to those chosen."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.methods.contract import Ops, Site, Taps, Value
from tokenrt.passes.methods.parts import clusters, scores, steps
from tokenrt.passes.ops.token_greedy_select import MAX_MIN, MOST_IMPORTANT

GIVEN = "importance"
HOW = ("auto", "class", "received", GIVEN)
"""What counts as importance: attention, or an input of the model."""


def importance(op: Ops, taps: Taps, site: Site, how: str) -> Value:
    """The score [B,N] that `how` names."""
    return taps.importance() if how == GIVEN else steps.importance(op, taps, site, how)


def spread(op: Ops, taps: Taps, site: Site, score: Value, least: float) -> Value:
    """The score of the unprotected tokens from 0 to 1, (s - min) / (max - min + least): [B,T]; 0 for padding.

    NaN counts as 0. Padding has no part in the minimum and the maximum.
    """
    own = scores.numbers(op, steps.free(op, score, site))
    shown = clusters.real(op, taps, site)
    if shown is None:
        low, high = (op(name, own, axes=[1], keepdims=1) for name in ("ReduceMin", "ReduceMax"))
        return op("Div", op("Sub", own, low), op("Add", op("Sub", high, low), least))
    there = op("Squeeze", shown, np.array([1]))
    low = op("ReduceMin", op("Where", there, own, -steps.LOWEST), axes=[1], keepdims=1)
    high = op("ReduceMax", op("Where", there, own, steps.LOWEST), axes=[1], keepdims=1)
    scaled = op("Div", op("Sub", own, low), op("Add", op("Sub", high, low), least))
    return op("Where", there, scaled, 0.0)


def apart(
    op: Ops,
    taps: Taps,
    site: Site,
    features: Value,
    rated: Value,
    order: str,
    *,
    power: float = 0.0,
    mix: float = 0.0,
) -> Value:
    """Positions [B,K]: first the most important token, then each time the one of largest a^power n + mix a.

    n is 1 - the largest cosine to a chosen token, a the importance `rated` [B,N], 0 or more. Padding comes last where the
    importance has a say.
    """
    if mix and taps.padded:
        # Enough for every token, and none for padding, that it is behind whatever it adds.
        rated = op("Mul", op("Add", rated, 3.0 / mix), scores.present(op, taps))
    return op(
        "TokenGreedySelect",
        scores.apart(op, taps, clusters.finite(op, features)),
        rated,
        keep=site.keep,
        protect=site.protect,
        order=steps.ORDERS[order],
        objective=MAX_MIN,
        power=power,
        mix=mix,
        seed=MOST_IMPORTANT,
    )
