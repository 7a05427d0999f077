"""TokenPeaks: K tokens that are dense and far from denser ones, and the nearest of them for each token (DPC-KNN)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops._distances import squared_distances
from tokenrt.passes.ops.contract import Array, Operator


def reference(metric: Array, keep: Sequence[int], neighbours: Sequence[int]) -> tuple[Array, Array]:
    """Choose K centres by density times distance to the nearest denser token; each token joins the nearest centre.

    Density is exp(-m), m the mean squared Euclidean distance to the k nearest tokens, itself included. The densest
    token has the largest distance there is. Compared are the logarithms, so that nothing underflows. Ties: of equally
    dense tokens the smaller index is the denser, of equal scores the smaller index wins, of equally near centres the
    one with the better score. A distance that is infinite or NaN counts as 1e15.

    Shapes: metric [B,N,D] float32 -> center [B,K] int64 positions by descending score; assign [B,N] int64: the centre
    0 .. K-1 of each token, for a centre itself.
    Attributes: keep K, 1 <= K <= N; neighbours k, 1 <= k <= N.
    Source: Du et al., Study on Density Peaks Clustering Based on k-Nearest Neighbors, 2016; used so by Zeng et al.,
    TCFormer, CVPR 2022, equations 1 and 2, whose random noise of 1e-6 on the density is replaced by the index.
    """
    apart = squared_distances(metric)
    tokens, count = apart.shape[1], neighbours[0]
    sparse = np.sort(apart, axis=2)[:, :, :count].mean(axis=2)
    position = np.arange(tokens)
    same = (sparse[:, None] == sparse[:, :, None]) & (position[None] < position[:, None])
    denser = (sparse[:, None] < sparse[:, :, None]) | same
    gap = np.min(np.where(denser, apart, np.inf), axis=2)
    gap = np.where(denser.any(axis=2), gap, apart.max(axis=(1, 2))[:, None])
    with np.errstate(divide="ignore"):
        score = 0.5 * np.log(gap) - sparse
    center = np.argsort(-score, axis=1, kind="stable")[:, : keep[0]]
    assign = np.argmin(np.take_along_axis(apart, center[:, :, None], axis=1), axis=1)
    np.put_along_axis(assign, center, np.arange(keep[0])[None], axis=1)
    return center.astype(np.int64), assign.astype(np.int64)


# The squares are the diagonal of the Gram matrix itself, so equal tokens are at distance 0 to the bit. Minima are
# maxima of the negative: GlobalMaxPool is the one reduction of that kind whose signature never changed.
BODY = """
    keep = Constant <value_ints: ints = @keep> ()
    neighbours = Constant <value_ints: ints = @neighbours> ()
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    nothing = Constant <value_float = 0.0> ()
    twice = Constant <value_float = 2.0> ()
    half = Constant <value_float = 0.5> ()
    nearest_none = Constant <value_float = -1e30> ()

    shape = Shape (metric)
    tokens = Gather (shape, one)
    place = Range (zero, tokens, one)
    place_column = Unsqueeze (place, last)
    itself = Equal (place_column, place)
    earlier = Less (place, place_column)

    metric_f = Cast <to = 1> (metric)
    metric_t = Transpose <perm = [0, 2, 1]> (metric_f)
    gram = MatMul (metric_f, metric_t)
    diagonal = Where (itself, gram, nothing)
    square = ReduceSum <keepdims = 1> (diagonal, last)
    square_t = Transpose <perm = [0, 2, 1]> (square)
    squares = Add (square, square_t)
    product = Mul (gram, twice)
    difference = Sub (product, squares)
    not_above = Min (difference, nothing)
    measurable = Greater (difference, nearest_none)
    near = Where (measurable, not_above, nearest_none)

    closest, closest_at = TopK <axis = 2> (near, neighbours)
    closeness = ReduceSum <keepdims = 1> (closest, last)
    how_many = Cast <to = 1> (neighbours)
    dense = Div (closeness, how_many)
    dense_t = Transpose <perm = [0, 2, 1]> (dense)
    is_denser = Greater (dense_t, dense)
    is_equal = Equal (dense_t, dense)
    is_first = And (is_equal, earlier)
    precedes = Or (is_denser, is_first)
    lowest = Constant <value_float = -3e38> ()
    rivals = Where (precedes, near, lowest)
    rival = GlobalMaxPool (rivals)
    far = Neg (near)
    far_row = GlobalMaxPool (far)
    far_row_t = Transpose <perm = [0, 2, 1]> (far_row)
    farthest = GlobalMaxPool (far_row_t)
    has_rival = Greater (rival, lowest)
    rival_gap = Neg (rival)
    gap = Where (has_rival, rival_gap, farthest)
    log_gap = Log (gap)
    half_gap = Mul (log_gap, half)
    score = Add (half_gap, dense)
    score_row = Squeeze (score, last)
    score_sorted, center = TopK <axis = 1> (score_row, keep)

    center_rows = Unsqueeze (center, last)
    to_center = GatherND <batch_dims = 1> (near, center_rows)
    nearest = ArgMax <axis = 1, keepdims = 0> (to_center)
    no_slot = Mul (center, zero)
    count = Squeeze (keep)
    slot = Range (zero, count, one)
    slots = Add (no_slot, slot)
    assign = ScatterElements <axis = 1> (nearest, center, slots)
"""

OPERATOR = Operator(
    name="TokenPeaks",
    inputs=("metric",),
    outputs=("center", "assign"),
    types=("int64", "int64"),
    attributes={"keep": "ints", "neighbours": "ints"},
    body=BODY,
    reference=reference,
    widens=("metric",),
)
