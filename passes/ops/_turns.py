"""What operators share that choose one token a turn: parts of their references and of their bodies.

In a body a token chosen at turn t has the key -t, a protected one the largest, all others less than any turn's. The parts read
the attributes keep, protect, order, power and mix, the inputs metric and importance, and what the parts before have named.
"""

from __future__ import annotations

import numpy as np

from tokenrt.passes.ops.contract import Array
from tokenrt.passes.ops.token_select import BY_POSITION, ORDERED

LEAST_SQUARE = 1e-38
"""Floor of the squared norm, so that a zero vector stays zero: 0/0 -> 0."""

MOST = 1e9
"""The largest importance: its powers stay finite in float32."""


def cosines(metric: Array, first: int) -> Array:
    """Of all pairs of tokens behind the first: metric [B,N,D] -> [B,T,T], T = N - first; 0 for NaN and for zero vectors."""
    x = np.asarray(metric, dtype=np.float64)[:, first:]
    with np.errstate(all="ignore"):
        unit = x / np.sqrt(np.maximum(np.sum(x * x, axis=2, keepdims=True), LEAST_SQUARE))
        similar = unit @ unit.transpose(0, 2, 1)
    return np.where(np.isnan(similar), 0, similar)


def rated(importance: Array, first: int) -> Array:
    """Importance [B,N] of the tokens behind the first, from 0 to `MOST`, NaN 0: [B,T]."""
    a = np.asarray(importance, dtype=np.float64)[:, first:]
    return np.clip(np.where(np.isnan(a), 0, a), 0, MOST)


class Turns:
    """Tokens [B,T] of which each turn takes one an image."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.images, self.taken = np.arange(tokens[0]), np.zeros(tokens, bool)
        self.chosen: list[Array] = []

    def take(self, gain: Array) -> tuple[Array, Array]:
        """Choose what has the largest gain [B,T] of all not chosen before, at ties the first: which rows of [B,T,...] that is."""
        best = np.argmax(np.where(self.taken, -np.inf, gain), axis=1)
        self.chosen.append(best)
        self.taken[self.images, best] = True
        return self.images, best

    def arranged(self, first: int, order: int) -> Array:
        """The protected tokens, then those chosen, as chosen or by position: [B,K] int64."""
        index = np.stack(self.chosen, axis=1) + first
        if order == BY_POSITION:
            index = np.sort(index, axis=1)
        head = np.broadcast_to(np.arange(first), (len(index), first))
        return np.concatenate([head, index], axis=1).astype(np.int64)


NAMED = """
    keep = Constant <value_ints: ints = @keep> ()
    protect = Constant <value_ints: ints = @protect> ()
    order = Constant <value_int: int = @order> ()
    mix = Constant <value_float: float = @mix> ()
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value_float = 0.0> ()
    whole = Constant <value_float = 1.0> ()
    most = Constant <value_float = 1e9> ()
    lowest = Constant <value_float = -3e38> ()
    unchosen = Constant <value_float = -1e9> ()

    shape = Shape (metric)
    tokens = Gather (shape, one)
    place = Range (zero, tokens, one)
    is_protected = Less (place, protect)
    free = Sub (keep, protect)
    turns = Squeeze (free)
    yes = Cast <to = 9> (one)
    low_or_high = Where (is_protected, most, unchosen)

    missing = IsNaN (importance)
    known = Where (missing, nothing, importance)
    positive = Max (known, nothing)
    rated = Min (positive, most)
    no_weight = Mul (rated, nothing)
    own_key = Add (no_weight, low_or_high)
"""
"""Attributes and constants; place [N], turns; importance -> rated [B,N], 0 to `most`; own_key [B,N], before the first turn."""

COSINES = """
    metric_f = Cast <to = 1> (metric)
    unit = LpNormalization <axis = 2, p = 2> (metric_f)
    unit_t = Transpose <perm = [0, 2, 1]> (unit)
    product = MatMul (unit, unit_t)
    undefined = IsNaN (product)
"""
"""metric -> product [B,N,N] and where it is no number."""

WEIGHED = """
    power = Constant <value_float: float = @power> ()
    is_flat = Equal (power, nothing)
    raised = Pow (rated, power)
    weight = Where (is_flat, whole, raised)
    bonus = Mul (rated, mix)
"""
"""rated -> weight, its power; bonus, what it adds to a gain."""

TAKEN = """
        here = Equal (place, chosen)
        turn_f = Cast <to = 1> (turn)
        turn_key = Neg (turn_f)
        key_out = Where (here, turn_key, key)
"""
"""In the body of the loop: chosen [B,1] of this turn -> key_out."""

CHOSEN = (
    """
    no_place = Cast <to = 7> (no_weight)
    every = Add (no_place, place)
    keys = GatherElements <axis = 1> (key_end, every)
    key_sorted, best = TopK <axis = 1> (keys, keep)
"""
    + ORDERED
)
"""key_end [B,N] -> index [B,K]: protected first, then by turn or by position. A Loop's outputs have no known shape; the keys
take theirs from `every`."""
