"""TokenDeterminantSelect: choose K tokens one after the other so that the determinant of their kernel is large."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops._turns import CHOSEN, COSINES, NAMED, TAKEN, Turns, cosines, rated
from tokenrt.passes.ops.contract import Array, Operator

NOTHING = 1e-5
"""The share of its own entry that rounding may leave of a token; what it has left must be more, or counts as none."""


def reference(
    metric: Array,
    importance: Array,
    keep: Sequence[int],
    protect: Sequence[int],
    order: int,
    mix: float,
    epsilon: float,
) -> Array:
    """Choose K - P tokens one by one, each time the one that adds most to the determinant of the kernel L of those chosen.

    L_ij = cos(i,j) (mix + a_i a_j) with the importance a_i: greedy inference for a determinantal point process, which is a
    Cholesky factorisation of L with the largest pivot next. A token has its own entry d_i = L_ii left at first. The one that has
    most left, j, explains c_i = (L_ji - what the tokens before explain of it) / sqrt(d_j + epsilon) of token i, which has
    d_i - c_i^2 left then. Up to 1e-5 of its own entry is rounding, and up to epsilon a turn is what damping does not explain:
    both count as nothing left. After as many tokens as L has rank nothing is left of the others, and the first of them follow.
    The first P tokens are protected: always kept, always first, compared with nobody. Ties: what has more left, then the smaller
    position. A cosine that is NaN or of a zero vector counts as 0, that of any other token to itself as 1; an importance that
    is negative or NaN counts as 0, one above 1e9 as 1e9.

    Shapes: metric [B,N,D] float32 (magnitudes below 1e18), importance [B,N] float32 -> index [B,K] int64.
    Attributes: keep K (protected included, P < K <= N), protect P, order of the others: 0 ascending position, 1 as chosen;
    mix, 0 or more; epsilon, 0 or more, which damps pivots.
    Source: Chen, Zhang and Zhou, Fast greedy MAP inference for determinantal point process, NeurIPS 2018 (algorithm 1).
    """
    first, count = protect[0], keep[0] - protect[0]
    similar, a = cosines(metric, first), rated(importance, first)
    kernel = similar * (mix + a[:, :, None] * a[:, None])
    own = np.where(np.diagonal(similar, axis1=1, axis2=2) > 0.5, mix + a * a, 0)
    left, turns = own.copy(), Turns(a.shape)
    explained = np.zeros((len(a), count, a.shape[1]))
    least = NOTHING * own + count * epsilon
    for turn in range(count):
        rest = np.where(left > least, left, 0)
        best = turns.take(rest)
        before = explained[:, :turn]
        told = np.einsum("bt,btn->bn", before.swapaxes(1, 2)[best], before)
        pivot = rest[best][:, None]
        scale = np.where(pivot > 0, np.sqrt(pivot + epsilon), np.inf)
        explained[:, turn] = (kernel[best] - told) / scale
        left = left - explained[:, turn] ** 2
    return turns.arranged(first, order)


# One choice a turn: a row of the kernel, and what the turns before explain of it, T x N products.
BODY = (
    NAMED
    + COSINES
    + """
    epsilon = Constant <value_float: float = @epsilon> ()
    share = Constant <value_float = 1e-5> ()
    middle = Constant <value_ints = [1]> ()
    nobody = Or (undefined, is_protected)
    similar = Where (nobody, nothing, product)
    rated_column = Unsqueeze (rated, last)
    rated_row = Unsqueeze (rated, middle)
    pairs = Mul (rated_column, rated_row)
    mixed = Add (pairs, mix)
    kernel = Mul (similar, mixed)
    squares = Mul (metric_f, metric_f)
    square_length = ReduceSum <keepdims = 0> (squares, last)
    has_length = Greater (square_length, nothing)
    largest = Neg (lowest)
    has_end = Less (square_length, largest)
    is_vector = And (has_length, has_end)
    rated_square = Mul (rated, rated)
    entry = Add (rated_square, mix)
    own = Where (is_vector, entry, nothing)
    rounding = Mul (own, share)
    turns_f = Cast <to = 1> (turns)
    undamped = Mul (turns_f, epsilon)
    least = Add (rounding, undamped)
    own_turn = Range (zero, turns, one)
    turn_column = Unsqueeze (own_turn, last)
    no_turn = Mul (turn_column, zero)
    no_turn_f = Cast <to = 1> (no_turn)
    no_weight_row = Unsqueeze (no_weight, middle)
    own_explained = Add (no_weight_row, no_turn_f)

    left_end, explained_end, key_end = Loop <body = choose (
        int64 turn, bool on, float[] left, float[] explained, float[] key
    ) => (bool still, float[] left_out, float[] explained_out, float[] key_out) {
        still = Identity (on)
        is_taken = Greater (key, unchosen)
        is_more = Greater (left, least)
        rest = Where (is_more, left, nothing)
        gain = Where (is_taken, lowest, rest)
        chosen = ArgMax <axis = 1, keepdims = 1> (gain)
        pivot = GatherElements <axis = 1> (gain, chosen)
        row = GatherND <batch_dims = 1> (kernel, chosen)
        chosen_row = Unsqueeze (chosen, middle)
        everywhere = Add (no_turn, chosen_row)
        own_column = GatherElements <axis = 2> (explained, everywhere)
        own_row = Transpose <perm = [0, 2, 1]> (own_column)
        told_row = MatMul (own_row, explained)
        told = Squeeze (told_row, middle)
        new = Sub (row, told)
        damped = Add (pivot, epsilon)
        scale = Sqrt (damped)
        scaled = Div (new, scale)
        has_left = Greater (pivot, nothing)
        part = Where (has_left, scaled, nothing)
        part_row = Unsqueeze (part, middle)
        is_turn = Equal (turn_column, turn)
        explained_out = Where (is_turn, part_row, explained)
        square = Mul (part, part)
        left_out = Sub (left, square)
"""
    + TAKEN
    + """
    }> (turns, yes, own, own_explained, own_key)
"""
    + CHOSEN
)
OPERATOR = Operator(
    name="TokenDeterminantSelect",
    inputs=("metric", "importance"),
    outputs=("index",),
    types=("int64",),
    attributes={"keep": "ints", "protect": "ints", "order": "int", "mix": "float", "epsilon": "float"},
    body=BODY,
    reference=reference,
    widens=("metric",),
)
