"""TokenCombine: merge tokens into their survivors by size-weighted mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops.contract import Array, Attributes, Gpu, Operator, Shape

LEAST_SIZE = 1e-30
"""Floor of the divisor: tokens of size 0 (padding) never make NaN."""


def reference(
    tokens: Array, size: Array, keep: Array, source: Array, destination: Array, type: int = 1
) -> tuple[Array, Array]:
    """Replace each survivor by the size-weighted mean of itself and the tokens sent to its slot.

    The mean is computed in float32, in a fixed order, and rounded back to the type of `tokens`. A survivor
    that receives nothing is passed on bit for bit, also when its size is 0 (padding), and merging equal
    tokens gives the same token bit for bit; the sizes always add up to what they were. Tokens are finite: one
    that is not and leaves may spoil every survivor that receives something, never another.

    Shapes: tokens [B,N,C], size [B,N,1] float32 (>= 0), keep [B,K] int64 positions, source [B,R] int64
    positions, destination [B,R] int64 slots 0 .. K-1 -> merged [B,K,C] in the type of `tokens`, total [B,K,1]
    float32.
    Attributes: type, the ONNX number of the type of `tokens` (1 float32, 10 float16, 16 bfloat16): CastLike,
    which would find it alone, only exists from opset 15.
    Source: Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023, section 3 (weighted average by size).
    """
    x, s = np.asarray(tokens, dtype=np.float64), np.asarray(size, dtype=np.float64)
    kept = np.take_along_axis(x, keep[:, :, None], axis=1)
    kept_size = np.take_along_axis(s, keep[:, :, None], axis=1)
    moved = np.take_along_axis(x, source[:, :, None], axis=1)
    moved_size = np.take_along_axis(s, source[:, :, None], axis=1)
    goes = destination[:, None, :] == np.arange(keep.shape[1])[None, :, None]
    weight = goes * moved_size.transpose(0, 2, 1)
    total = kept_size + np.sum(weight, axis=2, keepdims=True)
    mean = (kept * kept_size + weight @ moved) / np.maximum(total, LEAST_SIZE)
    unchanged = total == kept_size
    return np.where(unchanged, kept, mean), total


# Only the R rows that change are computed, once per source, and stand behind the N tokens; one gather then takes every
# output from where it lies: a survivor that receives something from the first of its sources, which have equal rows.
# (A scatter would copy the survivors once more, on one thread in ONNX Runtime, and TensorRT refuses one of more entries
# than there are.) Adding share * (source - survivor) instead of dividing a sum keeps equal tokens equal bit for bit.
BODY = """
    last = Constant <value_ints = [-1]> ()
    middle = Constant <value_ints = [1]> ()
    one = Constant <value_int = 1> ()
    least = Constant <value_float = 1e-30> ()

    near_place = GatherElements <axis = 1> (keep, destination)
    near_rows = Unsqueeze (near_place, last)
    source_rows = Unsqueeze (source, last)
    moved_own = GatherND <batch_dims = 1> (tokens, source_rows)
    near_own = GatherND <batch_dims = 1> (tokens, near_rows)
    moved = Cast <to = 1> (moved_own)
    near = Cast <to = 1> (near_own)
    moved_size = GatherND <batch_dims = 1> (size, source_rows)
    near_size = GatherND <batch_dims = 1> (size, near_rows)

    slot_rows = Unsqueeze (destination, last)
    slot_columns = Unsqueeze (destination, middle)
    together = Equal (slot_rows, slot_columns)
    together_f = Cast <to = 1> (together)
    moved_size_t = Transpose <perm = [0, 2, 1]> (moved_size)
    weight = Mul (together_f, moved_size_t)
    received = ReduceSum <keepdims = 1> (weight, last)
    grown_size = Add (near_size, received)
    divisor = Max (grown_size, least)
    share = Div (weight, divisor)
    apart = Sub (moved, near)
    shift = MatMul (share, apart)
    grown = Add (near, shift)
    grown_own = Cast <to: int = @type> (grown)

    shape = Shape (tokens)
    first_grown = Gather (shape, one)
    keep_rows = Unsqueeze (keep, last)
    near_columns = Unsqueeze (near_place, middle)
    meets = Equal (keep_rows, near_columns)
    meets_f = Cast <to = 1> (meets)
    first = ArgMax <axis = 2, keepdims = 0> (meets_f)
    met = GatherElements <axis = 1> (near_place, first)
    receives = Equal (keep, met)
    grown_place = Add (first, first_grown)
    place = Where (receives, grown_place, keep)
    rows = Unsqueeze (place, last)
    all_tokens = Concat <axis = 1> (tokens, grown_own)
    all_sizes = Concat <axis = 1> (size, grown_size)
    merged = GatherND <batch_dims = 1> (all_tokens, rows)
    total = GatherND <batch_dims = 1> (all_sizes, rows)
"""

# Every survivor gains its share of each source that goes to it, which is nothing for most: a product with one row a slot, in
# place of finding the first source of each slot and gathering once more.
GPU = """
    last = Constant <value_ints = [-1]> ()
    middle = Constant <value_ints = [1]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    least = Constant <value_float = 1e-30> ()

    near_place = GatherElements <axis = 1> (keep, destination)
    near_rows = Unsqueeze (near_place, last)
    source_rows = Unsqueeze (source, last)
    keep_rows = Unsqueeze (keep, last)
    moved_own = GatherND <batch_dims = 1> (tokens, source_rows)
    near_own = GatherND <batch_dims = 1> (tokens, near_rows)
    moved = Cast <to = 1> (moved_own)
    near = Cast <to = 1> (near_own)
    apart = Sub (moved, near)

    moved_size = GatherND <batch_dims = 1> (size, source_rows)
    kept_size = GatherND <batch_dims = 1> (size, keep_rows)
    moved_size_t = Transpose <perm = [0, 2, 1]> (moved_size)
    shape = Shape (keep)
    n_slots = Gather (shape, one)
    slot_entry = Range (zero, n_slots, one)
    slots = Unsqueeze (slot_entry, last)
    slot_columns = Unsqueeze (destination, middle)
    goes = Equal (slots, slot_columns)
    goes_f = Cast <to = 1> (goes)
    weight = Mul (goes_f, moved_size_t)
    received = ReduceSum <keepdims = 1> (weight, last)
    total = Add (kept_size, received)
    divisor = Max (total, least)
    share = Div (weight, divisor)

    kept_own = GatherND <batch_dims = 1> (tokens, keep_rows)
    kept = Cast <to = 1> (kept_own)
    share_columns = Unsqueeze (share, last)
    apart_rows = Unsqueeze (apart, middle)
    parts = Mul (share_columns, apart_rows)
    second = Constant <value_ints = [2]> ()
    shift = ReduceSum <keepdims = 0> (parts, second)
    grown = Add (kept, shift)
    grown_own = Cast <to: int = @type> (grown)
    unchanged = Equal (total, kept_size)
    merged = Where (unchanged, kept_own, grown_own)
"""


def work(attributes: Attributes, shapes: Sequence[Shape]) -> float:
    """Every survivor asks every source for its share."""
    (_, width), _, (kept,), (removed,), _ = shapes
    return kept * removed * (width + 1)


OPERATOR = Operator(
    name="TokenCombine",
    inputs=("tokens", "size", "keep", "source", "destination"),
    outputs=("merged", "total"),
    types=("tokens", "float32"),
    attributes={"type": "int"},
    body=BODY,
    gpu=Gpu(lambda *_: GPU, work),
    reference=reference,
)
