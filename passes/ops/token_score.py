"""TokenScore: the attention each token receives from some rows of queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops.contract import Array, Operator


def reference(
    queries: Array, keys: Array, bias: Array, scale: float, first_row: Sequence[int], end_row: Sequence[int]
) -> Array:
    """Average softmax attention over heads and over the rows first_row .. end_row - 1.

    Beside fused attention this recomputes only what a method reads: one row costs H x N x D, never an N x N
    matrix.

    Shapes: queries [B,H,N,D], keys [B,H,N,D] in the model's own type; bias float32, broadcastable to
    [B,H,R,N] (R rows read), added to the logits and already holding log sizes, a mask or a position bias (a
    constant 0 [1,1,1,1] for none) -> score [B,N] float32.
    Attributes: scale of the logits; rows (first_row, end_row): (0,1) class token, (N-1,N) last, (0,N) all.
    Source: Liang et al., EViT, ICLR 2022, section 3.1 (class attention averaged over heads).
    """
    q = np.asarray(queries, dtype=np.float64)[:, :, first_row[0] : end_row[0]]
    logits = scale * (q @ np.asarray(keys, dtype=np.float64).transpose(0, 1, 3, 2)) + bias
    weight = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    attention = weight / np.sum(weight, axis=-1, keepdims=True)
    return np.asarray(np.mean(attention, axis=(1, 2)))


# Every row of attention adds up to 1, so the total of the sums is the number of heads and rows, but for
# rounding.
BODY = """
    first = Constant <value_ints: ints = @first_row> ()
    end = Constant <value_ints: ints = @end_row> ()
    scale = Constant <value_float: float = @scale> ()
    row_axis = Constant <value_ints = [2]> ()
    head_axes = Constant <value_ints = [1, 2]> ()
    token_axis = Constant <value_ints = [1]> ()

    asking = Slice (queries, first, end, row_axis)
    asking_f = Cast <to = 1> (asking)
    keys_f = Cast <to = 1> (keys)
    scaled = Mul (asking_f, scale)
    keys_t = Transpose <perm = [0, 1, 3, 2]> (keys_f)
    product = MatMul (scaled, keys_t)
    logits = Add (product, bias)
    attention = Softmax <axis = -1> (logits)
    sum = ReduceSum <keepdims = 0> (attention, head_axes)
    total = ReduceSum <keepdims = 1> (sum, token_axis)
    count = Round (total)
    score = Div (sum, count)
"""

OPERATOR = Operator(
    name="TokenScore",
    inputs=("queries", "keys", "bias"),
    outputs=("score",),
    types=("float32",),
    attributes={"scale": "float", "first_row": "ints", "end_row": "ints"},
    body=BODY,
    reference=reference,
)
