"""TokenGreedySelect: choose K tokens one after the other, each time the one with the most to add to those chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops._turns import CHOSEN, COSINES, NAMED, TAKEN, WEIGHED, Turns, cosines, rated
from tokenrt.passes.ops.contract import Array, Operator

MAX_MIN, MAX_SUM = 0, 1
"""Objectives: the least distance to a chosen token, or the sum of the distances to all of them."""

FROM_NOTHING, MOST_IMPORTANT, MOST_ISOLATED = 0, 1, 2
"""How the first token is chosen."""

BELOW = -2.0
"""Below every cosine: the similarity to a set that is empty."""


def reference(
    metric: Array,
    importance: Array,
    keep: Sequence[int],
    protect: Sequence[int],
    order: int,
    objective: int,
    power: float,
    mix: float,
    seed: int,
) -> Array:
    """Choose K - P tokens one by one, each time the token i of largest gain a_i^power n_i + mix a_i.

    a_i is the importance and n_i what token i has that the chosen ones S have not: 1 - max_S cos(i,s) for max-min, minus
    the sum of cos(i,s) over S for max-sum. That covers farthest points (power 0, mix 0), farthest points weighted by
    importance (power 1) and maximal marginal relevance l a_i - (1-l) max_S cos(i,s), which is mix l/(1-l). The first
    token is, by `seed`: 0 the one of largest gain over nothing, where n_i is 1 for max-min and 0 for max-sum; 1 the most
    important; 2 the one of largest gain over all others, where n_i is 1 - max cos(i,j) over all other tokens j.
    The first P tokens are protected: always kept, always first, compared with nobody. Ties: the larger gain, then the
    smaller position. A cosine that is NaN or of a zero vector counts as 0; an importance that is negative or NaN counts
    as 0, one above 1e9 as 1e9.

    Shapes: metric [B,N,D] float32 (magnitudes below 1e18), importance [B,N] float32 -> index [B,K] int64.
    Attributes: keep K (protected included, P < K <= N), protect P, order of the others: 0 ascending position, 1 as chosen;
    objective: 0 max-min, 1 max-sum; power and mix, 0 or more; seed.
    Source: Gonzalez, Clustering to minimize the maximum intercluster distance, 1985 (farthest points); Carbonell and
    Goldstein, The use of MMR, SIGIR 1998; Alvar et al., DivPrune, CVPR 2025.
    """
    first, count = protect[0], keep[0] - protect[0]
    similar, a = cosines(metric, first), rated(importance, first)
    weight, bonus = a**power, mix * a
    base = 0.0 if objective == MAX_SUM else 1.0
    if seed == MOST_ISOLATED:
        others = np.where(np.eye(a.shape[1], dtype=bool), BELOW, similar)
        gain = weight * (1 - others.max(axis=2)) + bonus
    else:
        gain = a.copy() if seed == MOST_IMPORTANT else weight * base + bonus
    state = np.full(a.shape, 0.0 if objective == MAX_SUM else BELOW)
    turns = Turns(a.shape)
    for _ in range(count):
        row = similar[turns.take(gain)]
        state = state + row if objective == MAX_SUM else np.maximum(state, row)
        gain = weight * (base - state) + bonus
    return turns.arranged(first, order)


# One choice a turn: a row of the cosines, and the state of every token.
BODY = (
    NAMED
    + COSINES
    + WEIGHED
    + """
    objective = Constant <value_int: int = @objective> ()
    seed = Constant <value_int: int = @seed> ()
    below = Constant <value_float = -2.0> ()
    place_column = Unsqueeze (place, last)
    is_sum = Equal (objective, one)
    base = Where (is_sum, nothing, whole)
    similar = Where (undefined, nothing, product)

    itself = Equal (place_column, place)
    no_other = Or (itself, is_protected)
    others = Where (no_other, below, similar)
    nearest = GlobalMaxPool (others)
    nearest_row = Squeeze (nearest, last)
    isolation = Sub (whole, nearest_row)
    is_isolated = Cast <to = 9> (seed)
    over_others = Mul (weight, isolation)
    over_nothing = Mul (weight, base)
    is_important = Equal (seed, one)
    over = Where (is_isolated, over_others, over_nothing)
    gain_or_more = Add (over, bonus)
    first_gain = Where (is_important, rated, gain_or_more)
    own_gain = Where (is_protected, lowest, first_gain)
    empty = Where (is_sum, nothing, below)
    own_state = Add (no_weight, empty)

    gain_end, state_end, key_end = Loop <body = choose (
        int64 turn, bool on, float[] gain, float[] state, float[] key
    ) => (bool still, float[] gain_out, float[] state_out, float[] key_out) {
        still = Identity (on)
        chosen = ArgMax <axis = 1, keepdims = 1> (gain)
        row = GatherND <batch_dims = 1> (similar, chosen)
        nearer = Max (state, row)
        together = Add (state, row)
        state_out = Where (is_sum, together, nearer)
        novelty = Sub (base, state_out)
        weighed = Mul (weight, novelty)
        more = Add (weighed, bonus)
"""
    + TAKEN
    + """
        is_taken = Greater (key_out, unchosen)
        gain_out = Where (is_taken, lowest, more)
    }> (turns, yes, own_gain, own_state, own_key)
"""
    + CHOSEN
)

OPERATOR = Operator(
    name="TokenGreedySelect",
    inputs=("metric", "importance"),
    outputs=("index",),
    types=("int64",),
    attributes={
        "keep": "ints",
        "protect": "ints",
        "order": "int",
        "objective": "int",
        "power": "float",
        "mix": "float",
        "seed": "int",
    },
    body=BODY,
    reference=reference,
    widens=("metric",),
)
