"""TokenSelect: the positions of the K best tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops._ranks import PLACED, counted
from tokenrt.passes.ops.contract import Array, Attributes, Gpu, Operator, Shape

BY_POSITION, BY_SCORE = 0, 1
LARGEST = float(np.finfo(np.float32).max)


def reference(score: Array, keep: Sequence[int], protect: Sequence[int], order: int) -> Array:
    """Select K of N tokens by score; the first P are protected: always kept, always first.

    The larger score wins; among equal scores the smaller position. NaN counts as minus infinity; infinities
    are legal (plus infinity equals the largest float32), and no score displaces a protected token, whose own
    score is never read.

    Shapes: score [B,N] float32 -> index [B,K] int64.
    Attributes: keep K (protected included, P < K <= N), protect P, order of the unprotected ones: 0 ascending
    position, 1 descending score.
    """
    count, first = keep[0], protect[0]
    free = np.asarray(score)[:, first:]
    rated = np.minimum(np.where(np.isnan(free), -np.inf, free), LARGEST)
    best = np.argsort(-rated, axis=1, kind="stable")[:, : count - first]
    if order == BY_POSITION:
        best = np.sort(best, axis=1)
    head = np.broadcast_to(np.arange(first), (len(free), first))
    return np.concatenate([head, best + first], axis=1).astype(np.int64)


# The keys of protected positions, position - 1e6, put them first and in order. Ranks are counted along `best`, whose shape
# is known: a Range over the slots has none, and broadcasting against it would lose the shape where K is 1.
ORDERED = """
    by_rank = Cast <to = 9> (order)
    best_f = Cast <to = 1> (best)
    no_best = Mul (best_f, nothing)
    step = Add (no_best, whole)
    rank = CumSum (step, one)
    own_order = Where (by_rank, rank, best_f)
    leads = Less (best, protect)
    depth = Constant <value_float = 1e6> ()
    first_order = Sub (best_f, depth)
    sort_key = Where (leads, first_order, own_order)
    order_sorted, permutation = TopK <axis = 1, largest = 0> (sort_key, keep)
    index = GatherElements <axis = 1> (best, permutation)
"""
"""best [B,K], by rank -> index [B,K]: protected first, the others in `order`; reads what else the body has named."""

# Protected positions are rated infinite and all others at most the largest float, so they win without a tie.
RATED = """
    keep = Constant <value_ints: ints = @keep> ()
    protect = Constant <value_ints: ints = @protect> ()
    order = Constant <value_int: int = @order> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    lowest = Constant <value = float {-inf}> ()
    highest = Constant <value = float {inf}> ()
    largest = Constant <value = float {3.4028234663852886e38}> ()

    missing = IsNaN (score)
    clean = Where (missing, lowest, score)
    bounded = Min (clean, largest)
    shape = Shape (score)
    tokens = Gather (shape, one)
    position = Range (zero, tokens, one)
    is_first = Less (position, protect)
    rated = Where (is_first, highest, bounded)
"""

BODY = (
    RATED
    + """
    nothing = Constant <value_float = 0.0> ()
    whole = Constant <value_float = 1.0> ()
    value, best = TopK <axis = 1> (rated, keep)
"""
    + ORDERED
)

# Ranks are counted instead of sorted, and positions are sums over one-hot rows: exact in float32 up to 2^24.
GPU = (
    RATED
    + """
    start = Constant <value_ints = [0]> ()
    middle = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
    none = Constant <value_float = -1.0> ()
    position_columns = Unsqueeze (position, last)
    first_is_earlier = Less (position, position_columns)
    rated_columns = Unsqueeze (rated, last)
    rated_rows = Unsqueeze (rated, middle)
"""
    + counted("rated_rows", "rated_columns")
    + """
    keep_f = Cast <to = 1> (keep)
    stays = Less (rank, keep_f)
"""
    + PLACED
    + """
    by_score = Cast <to = 9> (order)
    among = Where (by_score, rank, by_position)
    slot = Where (stays, among, none)
    slot_rows = Unsqueeze (slot, middle)
    position_f = Cast <to = 1> (position)
    slots_flat = Slice (position_f, start, keep)
    slots = Unsqueeze (slots_flat, last)
    is_slot = Equal (slot_rows, slots)
    in_slot = Cast <to = 1> (is_slot)
    parts = Mul (in_slot, position_f)
    index_f = ReduceSum <keepdims = 0> (parts, last)
    index = Cast <to = 7> (index_f)
"""
)


def work(attributes: Attributes, shapes: Sequence[Shape]) -> float:
    """All tokens are compared with all three times, and each looks for its slot."""
    ((tokens,),) = shapes
    return tokens * (3 * tokens + float(attributes["keep"][0]))


OPERATOR = Operator(
    name="TokenSelect",
    inputs=("score",),
    outputs=("index",),
    types=("int64",),
    attributes={"keep": "ints", "protect": "ints", "order": "int"},
    body=BODY,
    gpu=Gpu(lambda *_: GPU, work),
    reference=reference,
)
