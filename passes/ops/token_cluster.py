"""TokenCluster: merge the most similar clusters until K are left (agglomerative clustering)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops.contract import Array, Operator

SINGLE, COMPLETE, AVERAGE = 0, 1, 2

LEAST_SQUARE = 1e-38
"""Floor of the squared norm, so that a zero vector stays zero: 0/0 -> 0."""

UNKNOWN = -2.0
"""What a NaN similarity counts as: below every cosine, so that such a token stays alone as long as it can."""

APART = -1e9
"""Similarity of a cluster with itself and with one that is gone: below every other, and finite."""


def reference(metric: Array, keep: Sequence[int], remove: Sequence[int], linkage: int) -> tuple[Array, Array]:
    """Start with each token alone and merge the two most similar clusters R times.

    Similarity of tokens is the cosine, of clusters the largest (single), the smallest (complete) or the mean
    (average) over their pairs of tokens; 1 minus it is the usual distance. Ties: the larger similarity wins,
    then the pair with the smaller first position, then the smaller second, a cluster standing at its first
    token. A zero vector has similarity 0 with everything; a NaN similarity counts as -2.

    Shapes: metric [B,N,D] float32 (magnitudes below 1e18) -> center [B,K] int64: the position of each
    cluster's first token, ascending; assign [B,N] int64: the cluster 0 .. K-1 of each token.
    Attributes: keep K and remove R, N = K + R, R >= 1; linkage: 0 single, 1 complete, 2 average.
    Source: Haurum et al., Agglomerative Token Clustering, ECCV 2024; updates after Lance and Williams, 1967.
    """
    x = np.asarray(metric, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        unit = x / np.sqrt(np.maximum(np.sum(x * x, axis=2, keepdims=True), LEAST_SQUARE))
        product = unit @ unit.transpose(0, 2, 1)
    leader = np.stack([_leaders(image, remove[0], linkage) for image in product])
    first = leader == np.arange(x.shape[1])
    slot = np.cumsum(first, axis=1) - 1
    center = np.stack([np.flatnonzero(image) for image in first])
    return center.astype(np.int64), np.take_along_axis(slot, leader, axis=1).astype(np.int64)


def _leaders(product: Array, steps: int, linkage: int) -> Array:
    """Return the first token of each token's cluster [N]."""
    tokens = len(product)
    like = np.where(np.isnan(product), UNKNOWN, product)
    like = np.triu(like, 1) + np.triu(like, 1).T
    np.fill_diagonal(like, APART)
    leader, members = np.arange(tokens), np.ones(tokens)
    for _ in range(steps):
        i, j = divmod(int(np.argmax(like)), tokens)
        row = {
            SINGLE: np.maximum(like[i], like[j]),
            COMPLETE: np.minimum(like[i], like[j]),
            AVERAGE: like[i] + (like[j] - like[i]) * (members[j] / (members[i] + members[j])),
        }[linkage]
        row[[i, j]] = APART
        like[i], like[:, i] = row, row
        like[j], like[:, j] = APART, APART
        leader[leader == j] = i
        members[i] += members[j]
    return leader


# One merge a turn: the matrix of similarities stays symmetric, so the first row that holds its maximum and the first
# column in that row are the pair (i, j), i < j. Row and column i get the new similarities, row and column j go out of
# reach. The mean is written so that equal similarities stay equal to the bit, and ties ties. A Loop's outputs have no
# known shape; what leaves the body takes its shape from the metric and from `keep`.
BODY = """
    keep = Constant <value_ints: ints = @keep> ()
    remove = Constant <value_ints: ints = @remove> ()
    linkage = Constant <value_int: int = @linkage> ()
    last = Constant <value_ints = [-1]> ()
    middle = Constant <value_ints = [1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    alone = Constant <value_float = 1.0> ()
    unknown = Constant <value_float = -2.0> ()
    apart = Constant <value_float = -1e9> ()

    shape = Shape (metric)
    tokens = Gather (shape, one)
    place = Range (zero, tokens, one)
    place_column = Unsqueeze (place, last)
    steps = Squeeze (remove)
    yes = Cast <to = 9> (one)
    is_single = Equal (linkage, zero)
    is_complete = Equal (linkage, one)

    metric_f = Cast <to = 1> (metric)
    unit = LpNormalization <axis = 2, p = 2> (metric_f)
    unit_t = Transpose <perm = [0, 2, 1]> (unit)
    product = MatMul (unit, unit_t)
    undefined = IsNaN (product)
    defined = Where (undefined, unknown, product)
    mirrored = Transpose <perm = [0, 2, 1]> (defined)
    above = Less (place_column, place)
    itself = Equal (place_column, place)
    both = Where (above, defined, mirrored)
    alike = Where (itself, apart, both)

    start = Constant <value_ints = [0]> ()
    end = Constant <value_ints = [1]> ()
    width_axis = Constant <value_ints = [2]> ()
    first_number = Slice (metric_f, start, end, width_axis)
    number_row = Transpose <perm = [0, 2, 1]> (first_number)
    either_way = Equal (number_row, number_row)
    own_leader = Where (either_way, place, place)
    own_members = Where (either_way, alone, alone)
    like_end, leader, members_end = Loop <body = merge (
        int64 turn, bool on, float[] like, int64[] leader_in, float[] members
    ) => (bool still, float[] like_out, int64[] leader_out, float[] members_out) {
        still = Identity (on)
        best = GlobalMaxPool (like)
        i = ArgMax <axis = 1, keepdims = 1> (best)
        row_i = GatherND <batch_dims = 1> (like, i)
        j = ArgMax <axis = 2, keepdims = 1> (row_i)
        row_j = GatherND <batch_dims = 1> (like, j)
        count_i = GatherElements <axis = 2> (members, i)
        count_j = GatherElements <axis = 2> (members, j)
        count = Add (count_i, count_j)
        share_j = Div (count_j, count)
        difference = Sub (row_j, row_i)
        part_j = Mul (difference, share_j)
        mean = Add (row_i, part_j)
        most = Max (row_i, row_j)
        least = Min (row_i, row_j)
        unless_single = Where (is_complete, least, mean)
        linked = Where (is_single, most, unless_single)
        is_i = Equal (place, i)
        is_j = Equal (place, j)
        is_either = Or (is_i, is_j)
        row = Where (is_either, apart, linked)
        closed = Min (row, apart)
        rows = Concat <axis = 1> (row, closed)
        columns = Transpose <perm = [0, 2, 1]> (rows)
        pair = Concat <axis = 1> (i, j)
        no_place = Mul (place, zero)
        at_rows = Add (pair, no_place)
        at_columns = Transpose <perm = [0, 2, 1]> (at_rows)
        half = ScatterElements <axis = 1> (like, at_rows, rows)
        like_out = ScatterElements <axis = 2> (half, at_columns, columns)
        follows_j = Equal (leader_in, j)
        leader_out = Where (follows_j, i, leader_in)
        members_out = Where (is_i, count, members)
    }> (steps, yes, alike, own_leader, own_members)

    every = Squeeze (own_leader, middle)
    leader_row = Squeeze (leader, middle)
    leaders = GatherElements <axis = 1> (leader_row, every)
    is_first = Equal (leaders, place)
    counted = Cast <to = 7> (is_first)
    running = CumSum (counted, one)
    slot = Sub (running, one)
    assign = GatherElements <axis = 1> (slot, leaders)
    early = Neg (place)
    late = Sub (early, tokens)
    order = Where (is_first, early, late)
    order_f = Cast <to = 1> (order)
    order_sorted, center = TopK <axis = 1> (order_f, keep)
"""

OPERATOR = Operator(
    name="TokenCluster",
    inputs=("metric",),
    outputs=("center", "assign"),
    types=("int64", "int64"),
    attributes={"keep": "ints", "remove": "ints", "linkage": "int"},
    body=BODY,
    reference=reference,
    widens=("metric",),
)
