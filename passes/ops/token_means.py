"""TokenMeans: the weighted means of K clusters, found in a fixed number of rounds, and the cluster of each token."""

from __future__ import annotations

import numpy as np

from tokenrt.passes.ops.contract import Array, Operator

LARGEST = 1e15
"""Magnitude from which on a number counts as 0, as one that is not finite."""

LIGHTEST, HEAVIEST = 1e-30, 1e9
"""Weights up to the first count as 0, those above the second as that."""


def reference(metric: Array, weight: Array, start: Array, rounds: int) -> tuple[Array, Array]:
    """Start at K tokens; each round, tokens join the nearest centre, then centres become the means of their clusters.

    Means are weighted, and distances Euclidean. Ties: of equally near centres the smaller slot wins; a cluster without
    weight keeps its centre. A mean is the old centre plus the mean way from it to the members, so that a centre on
    which all members lie does not move. Numbers that are NaN, infinite or of magnitude 1e15 and more count as 0.
    Weights count up to 1e9, and as 0 up to 1e-30 or where they are NaN; positions outside 0 .. N-1 count as the
    nearest of these.

    Shapes: metric [B,N,D] float32, weight [B,N] float32, start [B,K] int64 -> center [B,K,D] float32, in the order of
    `start`; assign [B,N] int64: the cluster 0 .. K-1 each token joined in the last round, of which the centres are the
    means.
    Attributes: rounds, 1 or more.
    Source: Lloyd, Least Squares Quantization in PCM, 1982, with weights as in Marin et al., Token Pooling, WACV 2023.
    """
    x = np.asarray(metric, dtype=np.float64)
    x = np.where(np.abs(x) < LARGEST, x, 0)
    counted = np.where(weight > LIGHTEST, np.minimum(weight, HEAVIEST), 0).astype(np.float64)
    slots = np.arange(start.shape[1])
    first = np.clip(start, 0, x.shape[1] - 1)
    center = np.take_along_axis(x, first[:, :, None], axis=1)
    for _ in range(rounds):
        half = 0.5 * np.sum(center * center, axis=2)
        assign = np.argmax(x @ center.transpose(0, 2, 1) - half[:, None], axis=2)
        way = x - np.take_along_axis(center, assign[:, :, None], axis=1)
        mass = np.where(assign[:, None] == slots[None, :, None], counted[:, None], 0)
        share = mass / np.maximum(mass.sum(axis=2, keepdims=True), LIGHTEST)
        center = center + share @ way
    return center, assign.astype(np.int64)


# The nearest centre c of x is the one with the largest x c - c c / 2. A Loop's outputs have no known shape: put
# over what the Loop started from, image by image, they have its own.
BODY = """
    rounds = Constant <value_int: int = @rounds> ()
    last = Constant <value_ints = [-1]> ()
    middle = Constant <value_ints = [1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value_float = 0.0> ()
    half = Constant <value_float = 0.5> ()
    largest = Constant <value_float = 1e15> ()
    lightest = Constant <value_float = 1e-30> ()
    heaviest = Constant <value_float = 1e9> ()

    shape = Shape (metric)
    tokens = Gather (shape, one)
    last_place = Sub (tokens, one)
    start_shape = Shape (start)
    count = Gather (start_shape, one)
    slot = Range (zero, count, one)
    slot_column = Unsqueeze (slot, last)
    yes = Cast <to = 9> (one)

    metric_f = Cast <to = 1> (metric)
    magnitude = Abs (metric_f)
    is_sound = Less (magnitude, largest)
    points = Where (is_sound, metric_f, nothing)
    is_heavy = Greater (weight, lightest)
    not_more = Min (weight, heaviest)
    counted = Where (is_heavy, not_more, nothing)
    counted_row = Unsqueeze (counted, middle)

    not_before = Max (start, zero)
    first_place = Min (not_before, last_place)
    first_rows = Unsqueeze (first_place, last)
    first_center = GatherND <batch_dims = 1> (points, first_rows)
    no_weight = Mul (counted_row, nothing)
    nowhere = Cast <to = 7> (no_weight)

    moved, joined = Loop <body = move (int64 turn, bool on, float[] center_in, int64[] joined_in) => (
        bool still, float[] center_out, int64[] joined_out
    ) {
        still = Identity (on)
        center_t = Transpose <perm = [0, 2, 1]> (center_in)
        product = MatMul (points, center_t)
        square = Mul (center_in, center_in)
        length = ReduceSum <keepdims = 1> (square, last)
        half_length = Mul (length, half)
        half_row = Transpose <perm = [0, 2, 1]> (half_length)
        nearness = Sub (product, half_row)
        slot_of = ArgMax <axis = 2, keepdims = 1> (nearness)
        own = GatherND <batch_dims = 1> (center_in, slot_of)
        way = Sub (points, own)
        joined_out = Transpose <perm = [0, 2, 1]> (slot_of)
        member = Equal (joined_out, slot_column)
        mass = Where (member, counted_row, nothing)
        total = ReduceSum <keepdims = 1> (mass, last)
        divisor = Max (total, lightest)
        share = Div (mass, divisor)
        step = MatMul (share, way)
        center_out = Add (center_in, step)
    }> (rounds, yes, first_center, nowhere)

    batch = Gather (shape, zero)
    image = Range (zero, batch, one)
    images = Unsqueeze (image, last)
    center = ScatterND (first_center, images, moved)
    assign_row = ScatterND (nowhere, images, joined)
    assign = Squeeze (assign_row, middle)
"""

OPERATOR = Operator(
    name="TokenMeans",
    inputs=("metric", "weight", "start"),
    outputs=("center", "assign"),
    types=("float32", "int64"),
    attributes={"rounds": "int"},
    body=BODY,
    reference=reference,
    widens=("metric",),
)
