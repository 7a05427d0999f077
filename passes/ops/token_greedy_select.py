"""TokenGreedySelect: choose K tokens one after the other, each time the one with the most to add to those chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops._turns import CHOSEN, RATED
from tokenrt.passes.ops.contract import Array, Operator
from tokenrt.passes.ops.token_select import BY_POSITION

MAX_MIN, MAX_SUM = 0, 1
"""Objectives: the least distance to a chosen token, or the sum of the distances to all of them."""

FROM_NOTHING, MOST_IMPORTANT, MOST_ISOLATED = 0, 1, 2
"""How the first token is chosen."""

LEAST_SQUARE = 1e-38
"""Floor of the squared norm, so that a zero vector stays zero: 0/0 -> 0."""

MOST = 1e9
"""The largest importance: its powers stay finite in float32."""

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
    x = np.asarray(metric, dtype=np.float64)[:, first:]
    with np.errstate(all="ignore"):
        unit = x / np.sqrt(np.maximum(np.sum(x * x, axis=2, keepdims=True), LEAST_SQUARE))
        similar = unit @ unit.transpose(0, 2, 1)
    similar = np.where(np.isnan(similar), 0, similar)
    a = np.asarray(importance, dtype=np.float64)[:, first:]
    a = np.clip(np.where(np.isnan(a), 0, a), 0, MOST)
    weight, bonus = a**power, mix * a
    base = 0.0 if objective == MAX_SUM else 1.0
    if seed == MOST_ISOLATED:
        others = np.where(np.eye(x.shape[1], dtype=bool), BELOW, similar)
        gain = weight * (1 - others.max(axis=2)) + bonus
    else:
        gain = a.copy() if seed == MOST_IMPORTANT else weight * base + bonus
    state = np.full(a.shape, 0.0 if objective == MAX_SUM else BELOW)
    images, chosen, taken = np.arange(len(x)), [], np.zeros(a.shape, bool)
    for _ in range(count):
        best = np.argmax(np.where(taken, -np.inf, gain), axis=1)
        chosen.append(best)
        taken[images, best] = True
        row = similar[images, best]
        state = state + row if objective == MAX_SUM else np.maximum(state, row)
        gain = weight * (base - state) + bonus
    index = np.stack(chosen, axis=1) + first
    if order == BY_POSITION:
        index = np.sort(index, axis=1)
    head = np.broadcast_to(np.arange(first), (len(x), first))
    return np.concatenate([head, index], axis=1).astype(np.int64)


# One choice a turn. `key` remembers the choices: protected tokens have the largest keys, in order, a token chosen at
# turn t has -t, all others are below. A Loop's outputs have no known shape; the keys take theirs from `every`.
BODY = (
    """
    keep = Constant <value_ints: ints = @keep> ()
    protect = Constant <value_ints: ints = @protect> ()
    order = Constant <value_int: int = @order> ()
    objective = Constant <value_int: int = @objective> ()
    power = Constant <value_float: float = @power> ()
    mix = Constant <value_float: float = @mix> ()
    seed = Constant <value_int: int = @seed> ()
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value_float = 0.0> ()
    whole = Constant <value_float = 1.0> ()
    below = Constant <value_float = -2.0> ()
    most = Constant <value_float = 1e9> ()
    lowest = Constant <value_float = -3e38> ()
    unchosen = Constant <value_float = -1e9> ()

    shape = Shape (metric)
    tokens = Gather (shape, one)
    place = Range (zero, tokens, one)
    place_column = Unsqueeze (place, last)
    is_protected = Less (place, protect)
    free = Sub (keep, protect)
    turns = Squeeze (free)
    yes = Cast <to = 9> (one)
    is_sum = Equal (objective, one)
    base = Where (is_sum, nothing, whole)

    metric_f = Cast <to = 1> (metric)
    unit = LpNormalization <axis = 2, p = 2> (metric_f)
    unit_t = Transpose <perm = [0, 2, 1]> (unit)
    product = MatMul (unit, unit_t)
    undefined = IsNaN (product)
    similar = Where (undefined, nothing, product)
"""
    + RATED
    + """

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
    no_weight = Mul (rated, nothing)
    own_state = Add (no_weight, empty)
    low_or_high = Where (is_protected, most, unchosen)
    own_key = Add (no_weight, low_or_high)

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
        here = Equal (place, chosen)
        turn_f = Cast <to = 1> (turn)
        turn_key = Neg (turn_f)
        key_out = Where (here, turn_key, key)
        is_taken = Greater (key_out, unchosen)
        gain_out = Where (is_taken, lowest, more)
    }> (turns, yes, own_gain, own_state, own_key)

    no_place = Cast <to = 7> (no_weight)
    every = Add (no_place, place)
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
