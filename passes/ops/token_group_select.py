"""TokenGroupSelect: the positions of the best tokens of each group, such as a crop or a frame, each with its quota."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops import token_select
from tokenrt.passes.ops.contract import Array, Operator


def reference(
    score: Array, keep: Sequence[int], protect: Sequence[int], lengths: Sequence[int], quotas: Sequence[int]
) -> Array:
    """Select the `quotas[g]` best tokens of group g, for every group; the first P tokens are protected.

    Groups are stretches of `lengths[g]` tokens, one behind the other, after the protected ones. In each the larger score
    wins, among equal scores the smaller position; NaN counts as minus infinity, plus infinity as the largest float32. A
    protected token's score is never read.

    Shapes: score [B,N] float32 -> index [B,K] int64, ascending.
    Attributes: keep K = P + the sum of the quotas, protect P; lengths, which add up to N - P, and quotas, one a group, 0
    to its length.
    """
    first, parts = protect[0], [np.broadcast_to(np.arange(protect[0]), (len(score), protect[0]))]
    for length, quota in zip(lengths, quotas, strict=True):
        if quota:
            group = np.asarray(score)[:, first : first + length]
            parts.append(token_select.reference(group, [quota], [0], token_select.BY_POSITION) + first)
        first += length
    return np.concatenate(parts, axis=1).astype(np.int64)


# A token is chosen when fewer of its group stand before it than the quota says: N x N comparisons. Protected tokens are
# nobody's rivals.
BODY = """
    keep = Constant <value_ints: ints = @keep> ()
    protect = Constant <value_ints: ints = @protect> ()
    lengths = Constant <value_ints: ints = @lengths> ()
    quotas = Constant <value_ints: ints = @quotas> ()
    last = Constant <value_ints = [-1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    lowest = Constant <value = float {-inf}> ()
    largest = Constant <value = float {3.4028234663852886e38}> ()
    unchosen = Constant <value_float = -1e6> ()

    missing = IsNaN (score)
    clean = Where (missing, lowest, score)
    rated = Min (clean, largest)
    shape = Shape (score)
    tokens = Gather (shape, one)
    place = Range (zero, tokens, one)
    place_column = Unsqueeze (place, last)
    running = CumSum (lengths, zero)
    ends = Add (running, protect)
    is_past = GreaterOrEqual (place_column, ends)
    passed = Cast <to = 7> (is_past)
    group = ReduceSum <keepdims = 0> (passed, last)
    group_column = Unsqueeze (group, last)
    quota = Gather (quotas, group)
    quota_f = Cast <to = 1> (quota)
    is_protected = Less (place, protect)
    is_rival = Not (is_protected)
    is_alike = Equal (group_column, group)
    is_own = And (is_alike, is_rival)
    is_earlier = Less (place, place_column)

    rated_column = Unsqueeze (rated, last)
    rated_row = Transpose <perm = [0, 2, 1]> (rated_column)
    is_better = Greater (rated_row, rated_column)
    is_equal = Equal (rated_row, rated_column)
    is_first = And (is_equal, is_earlier)
    is_ahead = Or (is_better, is_first)
    counts = And (is_ahead, is_own)
    counted = Cast <to = 1> (counts)
    before = ReduceSum <keepdims = 0> (counted, last)
    is_within = Less (before, quota_f)
    is_chosen = Or (is_within, is_protected)
    early = Neg (place)
    early_f = Cast <to = 1> (early)
    late = Add (early_f, unchosen)
    key = Where (is_chosen, early_f, late)
    key_sorted, index = TopK <axis = 1> (key, keep)
"""

OPERATOR = Operator(
    name="TokenGroupSelect",
    inputs=("score",),
    outputs=("index",),
    types=("int64",),
    attributes={"keep": "ints", "protect": "ints", "lengths": "ints", "quotas": "ints"},
    body=BODY,
    reference=reference,
)
