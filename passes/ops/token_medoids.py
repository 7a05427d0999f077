"""TokenMedoids: the cheapest member of each of K clusters, found in a fixed number of rounds, and the nearest one."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.ops._distances import FARTHEST, squared_distances
from tokenrt.passes.ops.contract import Array, Operator

HEAVIEST = 1e9
"""The largest weight that counts."""


def reference(metric: Array, weight: Array, start: Array, rounds: int, power: int) -> tuple[Array, Array]:
    """Start at K tokens; each round, tokens join the nearest medoid, then the cheapest member becomes the medoid.

    The cost of a member is the sum of its distances to the members of its cluster, each times the other's weight.
    Ties: of equally near medoids the smaller slot wins, of equal costs the smaller position; a cluster without members
    keeps its medoid. A distance that is infinite or NaN puts a medoid 1e15 away and adds nothing to a cost; a token
    that is not finite itself costs 1e30, as much as a cost can be. Weights count from 0 to 1e9, NaN as 0; positions
    outside 0 .. N-1 count as the nearest of these.

    Shapes: metric [B,N,D] float32 (magnitudes below 1e15 / sqrt(D)), weight [B,N] float32, start [B,K] int64 -> center
    [B,K] int64: the position of each medoid; assign [B,N] int64: the nearest medoid 0 .. K-1 of each token.
    Attributes: rounds, 0 or more; power: 1 Euclidean distances, 2 squared ones.
    Source: Park and Jun, A Simple and Fast Algorithm for K-medoids Clustering, 2009, with weights as in Marin et al.,
    Token Pooling, WACV 2023.
    """
    apart = squared_distances(metric)
    known, sound = apart < FARTHEST, np.einsum("bii->bi", apart) < FARTHEST
    tokens, slots = apart.shape[1], np.arange(start.shape[1])
    counted = np.where(weight > 0, np.minimum(weight, HEAVIEST), 0)
    weighed = np.where(known, np.sqrt(apart) if power == 1 else apart, 0) * counted[:, None]
    center = np.clip(start, 0, tokens - 1).astype(np.int64)

    def nearest() -> Array:
        return np.asarray(np.argmin(np.take_along_axis(apart, center[:, :, None], axis=1), axis=1))

    for _ in range(rounds):
        assign = nearest()
        together = assign[:, :, None] == assign[:, None]
        cost = np.minimum(np.where(together, weighed, 0).sum(axis=2), FARTHEST)
        cost = np.where(sound, cost, FARTHEST)
        member = assign[:, None] == slots[None, :, None]
        best = np.argmin(np.where(member, cost[:, None], np.inf), axis=2)
        center = np.where(member.any(axis=2), best, center)
    return center, nearest()


# The upper half of the Gram matrix is mirrored, so that two members of a cluster are equally far from each other to the
# bit. A Loop's outputs have no known shape: the final centres take theirs from `start`.
BODY = """
    rounds = Constant <value_int: int = @rounds> ()
    power = Constant <value_int: int = @power> ()
    last = Constant <value_ints = [-1]> ()
    middle = Constant <value_ints = [1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value_float = 0.0> ()
    twice = Constant <value_float = 2.0> ()
    heaviest = Constant <value_float = 1e9> ()
    farthest = Constant <value_float = 1e30> ()
    lowest = Constant <value_float = -3e38> ()

    shape = Shape (metric)
    tokens = Gather (shape, one)
    place = Range (zero, tokens, one)
    place_column = Unsqueeze (place, last)
    itself = Equal (place_column, place)
    above = Less (place_column, place)
    start_shape = Shape (start)
    count = Gather (start_shape, one)
    slot = Range (zero, count, one)
    slot_column = Unsqueeze (slot, last)
    yes = Cast <to = 9> (one)

    metric_f = Cast <to = 1> (metric)
    metric_t = Transpose <perm = [0, 2, 1]> (metric_f)
    product = MatMul (metric_f, metric_t)
    product_t = Transpose <perm = [0, 2, 1]> (product)
    gram = Where (above, product, product_t)
    diagonal = Where (itself, gram, nothing)
    square = ReduceSum <keepdims = 1> (diagonal, last)
    square_t = Transpose <perm = [0, 2, 1]> (square)
    squares = Add (square, square_t)
    products = Mul (gram, twice)
    difference = Sub (squares, products)
    not_below = Max (difference, nothing)
    known = Less (difference, farthest)
    apart = Where (known, not_below, farthest)
    root = Sqrt (apart)
    is_root = Equal (power, one)
    distance = Where (is_root, root, apart)

    positive = Greater (weight, nothing)
    not_more = Min (weight, heaviest)
    counted = Where (positive, not_more, nothing)
    counted_row = Unsqueeze (counted, middle)
    weighed = Mul (distance, counted_row)
    share = Where (known, weighed, nothing)
    sound = Less (square_t, farthest)
    last_place = Sub (tokens, one)
    not_before = Max (start, zero)
    first_center = Min (not_before, last_place)

    moved = Loop <body = move (int64 turn, bool on, int64[] center_in) => (bool still, int64[] center_out) {
        still = Identity (on)
        rows = Unsqueeze (center_in, last)
        to_center = GatherND <batch_dims = 1> (apart, rows)
        joined = ArgMin <axis = 1, keepdims = 1> (to_center)
        joined_column = Transpose <perm = [0, 2, 1]> (joined)
        together = Equal (joined_column, joined)
        shared = Where (together, share, nothing)
        sum = ReduceSum <keepdims = 1> (shared, last)
        sum_row = Transpose <perm = [0, 2, 1]> (sum)
        bounded = Min (sum_row, farthest)
        cost = Where (sound, bounded, farthest)
        gain = Neg (cost)
        member = Equal (joined, slot_column)
        rated = Where (member, gain, lowest)
        best = ArgMax <axis = 2, keepdims = 0> (rated)
        top = GlobalMaxPool (rated)
        top_row = Squeeze (top, last)
        occupied = Greater (top_row, lowest)
        center_out = Where (occupied, best, center_in)
    }> (rounds, yes, first_center)

    alike = Equal (start, start)
    ones = Cast <to = 7> (alike)
    numbers = CumSum (ones, one)
    every = Sub (numbers, one)
    center = GatherElements <axis = 1> (moved, every)
    center_rows = Unsqueeze (center, last)
    to_medoid = GatherND <batch_dims = 1> (apart, center_rows)
    assign = ArgMin <axis = 1, keepdims = 0> (to_medoid)
"""

OPERATOR = Operator(
    name="TokenMedoids",
    inputs=("metric", "weight", "start"),
    outputs=("center", "assign"),
    types=("int64", "int64"),
    attributes={"rounds": "int", "power": "int"},
    body=BODY,
    reference=reference,
    widens=("metric",),
)
