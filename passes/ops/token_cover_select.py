"""TokenCoverSelect: choose K tokens one after the other so that every token has a similar one among them (facility location)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops._turns import CHOSEN, COSINES, NAMED, TAKEN, WEIGHED, Turns, cosines, rated
from tokenrt.passes.ops.contract import Array, Operator


def reference(
    metric: Array,
    importance: Array,
    keep: Sequence[int],
    protect: Sequence[int],
    order: int,
    power: float,
    mix: float,
) -> Array:
    """Choose K - P tokens one by one, each time the token i of largest gain a_i^power n_i + mix a_i.

    a_i is the importance and n_i the sum over all tokens j of max(0, cos(i,j) - c_j), where c_j is the largest cosine of j
    to a chosen token, at least 0. Similarities (1 + cos) / 2 come from a metric of length one with a 1 appended. The first
    P tokens are protected: always kept, always first, compared with nobody. Ties: the larger gain, then the smaller
    position; without importance two tokens that have only each other left to cover tie. A cosine that is NaN or of a zero
    vector counts as 0; an importance that is negative or NaN counts as 0, one above 1e9 as 1e9.

    Shapes: metric [B,N,D] float32 (magnitudes below 1e18), importance [B,N] float32 -> index [B,K] int64.
    Attributes: keep K (protected included, P < K <= N), protect P, order of the others: 0 ascending position, 1 as chosen;
    power, 0 to 4, and mix, 0 or more.
    Source: Cornuejols, Fisher and Nemhauser, Location of bank accounts to optimize float, 1977 (the greedy rule).
    """
    first, count = protect[0], keep[0] - protect[0]
    similar, a = cosines(metric, first), rated(importance, first)
    cover, turns = np.zeros(a.shape), Turns(a.shape)
    for _ in range(count):
        gain = a**power * np.maximum(similar - cover[:, None], 0).sum(axis=2) + mix * a
        cover = np.maximum(cover, similar[turns.take(gain)])
    return turns.arranged(first, order)


# One choice a turn, N x N comparisons each. Protected tokens are similar to nobody, so they cover nothing.
BODY = (
    NAMED
    + COSINES
    + WEIGHED
    + """
    nobody = Or (undefined, is_protected)
    similar = Where (nobody, nothing, product)

    cover_end, key_end = Loop <body = choose (
        int64 turn, bool on, float[] cover, float[] key
    ) => (bool still, float[] cover_out, float[] key_out) {
        still = Identity (on)
        middle = Constant <value_ints = [1]> ()
        cover_row = Unsqueeze (cover, middle)
        difference = Sub (similar, cover_row)
        excess = Max (difference, nothing)
        novelty = ReduceSum <keepdims = 0> (excess, last)
        weighed = Mul (weight, novelty)
        gain = Add (weighed, bonus)
        is_taken = Greater (key, unchosen)
        open_gain = Where (is_taken, lowest, gain)
        chosen = ArgMax <axis = 1, keepdims = 1> (open_gain)
        row = GatherND <batch_dims = 1> (similar, chosen)
        cover_out = Max (cover, row)
"""
    + TAKEN
    + """
    }> (turns, yes, no_weight, own_key)
"""
    + CHOSEN
)

OPERATOR = Operator(
    name="TokenCoverSelect",
    inputs=("metric", "importance"),
    outputs=("index",),
    types=("int64",),
    attributes={
        "keep": "ints",
        "protect": "ints",
        "order": "int",
        "power": "float",
        "mix": "float",
    },
    body=BODY,
    reference=reference,
    widens=("metric",),
)
