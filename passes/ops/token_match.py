"""TokenMatch: pair each source with its most similar destination, and choose the R best pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops._ranks import PLACED, counted
from tokenrt.passes.ops.contract import Array, Attributes, Gpu, Operator, Shape

LEAST_SQUARE = 1e-38
"""Floor of the squared norm, so that a zero vector stays zero: 0/0 -> 0."""

UNKNOWN = 0.0
"""What a NaN similarity counts as: resembling nothing."""

SOURCES_BY_POSITION, SOURCES_BY_VALUE = 0, 1


def reference(
    metric: Array,
    sources: Sequence[int],
    destinations: Sequence[int],
    others: Sequence[int],
    keep: Sequence[int],
    remove: Sequence[int],
    order: int,
) -> tuple[Array, Array, Array, Array]:
    """Match sources with destinations by cosine similarity and merge away the R most similar sources.

    Each source takes its most similar destination; the R sources with the largest similarity leave. Ties: the
    larger similarity wins, then the smaller index, among destinations and among sources. A zero vector has
    similarity 0 with everything; a NaN similarity counts as 0 too.

    Shapes: metric [B,N,D] float32 (magnitudes below 1e18) -> value [B,S] float32: each source's best
    similarity; keep [B,K] int64: positions that survive, in output order: the others, the unmerged sources,
    the destinations; source [B,R] int64: positions that leave, by descending similarity; destination [B,R]
    int64: the output slot (0 .. K-1) each of them goes to.
    Attributes: sources, destinations, others: lists that together name every position 0 .. N-1 once (at least
    one destination); keep K and remove R, N = K + R, 1 <= R <= S; order of the unmerged sources: 0 as listed,
    1 by descending similarity.
    Source: Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023, section 3 (bipartite soft matching).
    """
    listed = np.array([*others, *sources, *destinations], dtype=np.int64)
    kept, removed = keep[0], remove[0]
    x = np.asarray(metric, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        unit = x / np.sqrt(np.maximum(np.sum(x * x, axis=2, keepdims=True), LEAST_SQUARE))
        similarity = unit[:, list(sources)] @ unit[:, list(destinations)].transpose(0, 2, 1)
    similarity = np.where(np.isnan(similarity), UNKNOWN, similarity)
    nearest = np.argmax(similarity, axis=2)
    value = np.max(similarity, axis=2)
    ranked = np.argsort(-value, axis=1, kind="stable")
    top, rest = ranked[:, :removed], ranked[:, removed:]
    if order == SOURCES_BY_POSITION:
        rest = np.sort(rest, axis=1)
    batch = len(x)
    head = np.broadcast_to(np.arange(len(others)), (batch, len(others)))
    tail = np.broadcast_to(np.arange(len(others) + len(sources), len(listed)), (batch, len(destinations)))
    survivors = listed[np.concatenate([head, rest + len(others), tail], axis=1)]
    source = np.asarray(sources, dtype=np.int64)[top]
    destination = np.take_along_axis(nearest, top, axis=1) + kept - len(destinations)
    return value, survivors, source, destination.astype(np.int64)


# No cosine is below -2, so ThresholdedRelu turns NaN into 0 and nothing else, in one pass. GlobalMaxPool over
# [B,S,T] is the one maximum whose signature never changed (ReduceMax did, in 18); the arg-maximum is then taken
# of the R chosen rows only. `keep` is one sort over the list (others, sources, destinations): fixed keys hold the
# others above and the destinations below every source, and the sources that leave get the lowest key of all, so
# no tensor is empty when every source leaves.
BODY = """
    others = Constant <value_ints: ints = @others> ()
    sources = Constant <value_ints: ints = @sources> ()
    destinations = Constant <value_ints: ints = @destinations> ()
    kept = Constant <value_ints: ints = @keep> ()
    removed = Constant <value_ints: ints = @remove> ()
    order = Constant <value_int: int = @order> ()
    last = Constant <value_ints = [-1]> ()

    metric_f = Cast <to = 1> (metric)
    unit = LpNormalization <axis = 2, p = 2> (metric_f)
    left = Gather <axis = 1> (unit, sources)
    right = Gather <axis = 1> (unit, destinations)
    right_t = Transpose <perm = [0, 2, 1]> (right)
    product = MatMul (left, right_t)
    similarity = ThresholdedRelu <alpha = -2.0> (product)
    best = GlobalMaxPool (similarity)
    value = Squeeze (best, last)
    top_value, top = TopK <axis = 1> (value, removed)
    top_rows = Unsqueeze (top, last)
    candidates = GatherND <batch_dims = 1> (similarity, top_rows)
    partner = ArgMax <axis = 2, keepdims = 0> (candidates)

    listed = Concat <axis = 0> (others, sources, destinations)
    n_listed = Shape (listed)
    n_others = Shape (others)
    n_sources = Shape (sources)
    n_destinations = Shape (destinations)
    first_destination = Add (n_others, n_sources)
    first_slot = Sub (kept, n_destinations)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    three = Constant <value_int = 3> ()
    n_listed_scalar = Squeeze (n_listed)
    n_sources_scalar = Squeeze (n_sources)
    entry = Range (zero, n_listed_scalar, one)
    is_other = Less (entry, n_others)
    is_destination = GreaterOrEqual (entry, first_destination)
    is_fixed = Or (is_other, is_destination)
    from_zero = Sub (n_others, entry)
    high = Add (from_zero, three)
    low = Sub (from_zero, three)
    fixed_key = Where (is_other, high, low)
    fixed = Cast <to = 1> (fixed_key)
    source_entry = Range (zero, n_sources_scalar, one)
    source_fall = Neg (source_entry)
    source_key = Cast <to = 1> (source_fall)
    by_value = Cast <to = 9> (order)
    depth = Constant <value_float = 1e9> ()
    from_first = Neg (from_zero)
    any_source = Where (is_fixed, zero, from_first)
    same_length = Mul (listed, zero)
    source_of = Add (any_source, same_length)

    own = Where (by_value, value, source_key)
    gone = Sub (top_value, depth)
    ranked = ScatterElements <axis = 1> (own, top, gone)
    spread = Gather <axis = 1> (ranked, source_of)
    key = Where (is_fixed, fixed, spread)
    key_sorted, survivors = TopK <axis = 1> (key, kept)
    keep = Gather <axis = 0> (listed, survivors)
    source = Gather <axis = 0> (sources, top)
    destination = Add (partner, first_slot)
"""

# On a GPU each sort, scatter and gather is a launch, and comparing all with all is none: it fuses with what it reads. Ranks are
# counted and positions are sums over one-hot rows, exact in float32 up to 2^24. Products of pairs are summed where they are made,
# which fuses with the gathers in front, and lengths are divided out behind, so that nothing is normalised first.
GPU = (
    """
    others = Constant <value_ints: ints = @others> ()
    sources = Constant <value_ints: ints = @sources> ()
    destinations = Constant <value_ints: ints = @destinations> ()
    kept = Constant <value_ints: ints = @keep> ()
    removed = Constant <value_ints: ints = @remove> ()
    order = Constant <value_int: int = @order> ()
    last = Constant <value_ints = [-1]> ()
    middle = Constant <value_ints = [1]> ()
    second = Constant <value_ints = [2]> ()
    start = Constant <value_ints = [0]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    least = Constant <value_float = 1e-38> ()
    nothing = Constant <value_float = 0.0> ()
    far = Constant <value_float = -1e9> ()

    listed = Concat <axis = 0> (others, sources, destinations)
    n_listed = Shape (listed)
    n_others = Shape (others)
    n_sources = Shape (sources)
    n_destinations = Shape (destinations)
    n_listed_scalar = Squeeze (n_listed)
    n_sources_scalar = Squeeze (n_sources)
    n_destinations_scalar = Squeeze (n_destinations)
    entry = Range (zero, n_listed_scalar, one)
    source_entry = Range (zero, n_sources_scalar, one)
    destination_entry = Range (zero, n_destinations_scalar, one)
    sources_f = Cast <to = 1> (sources)
    destination_place = Cast <to = 1> (destination_entry)
    place_fall = Neg (destination_place)
    source_columns = Unsqueeze (source_entry, last)
    first_is_earlier = Less (source_entry, source_columns)

    metric_f = Cast <to = 1> (metric)
    left = Gather <axis = 1> (metric_f, sources)
    right = Gather <axis = 1> (metric_f, destinations)
    left_rows = Unsqueeze (left, second)
    right_rows = Unsqueeze (right, middle)
    parts = Mul (left_rows, right_rows)
    product = ReduceSum <keepdims = 0> (parts, last)
    squares = Mul (metric_f, metric_f)
    total = ReduceSum <keepdims = 0> (squares, last)
    bounded = Max (total, least)
    length = Sqrt (bounded)
    left_flat = Gather <axis = 1> (length, sources)
    left_length = Unsqueeze (left_flat, last)
    right_flat = Gather <axis = 1> (length, destinations)
    right_length = Unsqueeze (right_flat, middle)
    half_way = Div (product, left_length)
    cosine = Div (half_way, right_length)
    similarity = ThresholdedRelu <alpha = -2.0> (cosine)
    best = GlobalMaxPool (similarity)
    value = Squeeze (best, last)
    is_best = Equal (similarity, best)
    falling = Where (is_best, place_fall, far)
    highest = GlobalMaxPool (falling)
    nearest_own = Neg (highest)
    nearest = Transpose <perm = [0, 2, 1]> (nearest_own)

    best_t = Transpose <perm = [0, 2, 1]> (best)
"""
    + counted("best_t", "best")
    + """

    removed_f = Cast <to = 1> (removed)
    kept_f = Cast <to = 1> (kept)
    n_others_f = Cast <to = 1> (n_others)
    leaves = Less (rank, removed_f)
    stays = Not (leaves)
"""
    + PLACED
    + """
    by_rank = Sub (rank, removed_f)
    by_value = Cast <to = 9> (order)
    among = Where (by_value, by_rank, by_position)
    stay_slot = Add (among, n_others_f)
    leave_slot = Add (rank, kept_f)
    slot = Where (leaves, leave_slot, stay_slot)
    slot_t = Unsqueeze (slot, middle)

    entry_f = Cast <to = 1> (entry)
    entry_rows = Unsqueeze (entry_f, last)
    is_slot = Equal (slot_t, entry_rows)
    in_slot = Cast <to = 1> (is_slot)
    source_parts = Mul (in_slot, sources_f)
    source_sum = ReduceSum <keepdims = 0> (source_parts, last)
    nearest_parts = Mul (in_slot, nearest)
    nearest_sum = ReduceSum <keepdims = 0> (nearest_parts, last)

    first_slot = Sub (kept, n_destinations)
    shifted = Add (entry, removed)
    in_listed = Less (shifted, n_listed)
    is_destination_or_later = GreaterOrEqual (entry, first_slot)
    is_destination = And (is_destination_or_later, in_listed)
    fixed_entry = Where (is_destination, shifted, entry)
    fixed = Gather <axis = 0> (listed, fixed_entry)
    is_other = Less (entry, n_others)
    is_fixed = Or (is_other, is_destination)
    fixed_f = Cast <to = 1> (fixed)
    base = Where (is_fixed, fixed_f, nothing)
    slot_sum = Add (source_sum, base)
    keep_f = Slice (slot_sum, start, kept, middle)
    keep = Cast <to = 7> (keep_f)
    source_f = Slice (source_sum, kept, n_listed, middle)
    source = Cast <to = 7> (source_f)
    first_slot_f = Cast <to = 1> (first_slot)
    nearest_slot = Add (nearest_sum, first_slot_f)
    destination_f = Slice (nearest_slot, kept, n_listed, middle)
    destination = Cast <to = 7> (destination_f)
"""
)


def work(attributes: Attributes, shapes: Sequence[Shape]) -> float:
    """All products of a source and a destination, and every source compared with every other three times."""
    ((tokens, width),) = shapes
    sources = len(attributes["sources"])
    return sources * (len(attributes["destinations"]) * width + 2 * sources + tokens)


OPERATOR = Operator(
    name="TokenMatch",
    inputs=("metric",),
    outputs=("value", "keep", "source", "destination"),
    types=("float32", "int64", "int64", "int64"),
    attributes={
        "sources": "ints",
        "destinations": "ints",
        "others": "ints",
        "keep": "ints",
        "remove": "ints",
        "order": "int",
    },
    body=BODY,
    gpu=Gpu(lambda *_: GPU, work),
    reference=reference,
    widens=("metric",),
)
