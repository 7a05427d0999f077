"""TokenScore: the attention each token receives from some rows of queries."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tokenrt.passes.ops.contract import Array, Attributes, Gpu, Operator, Shape


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

# One launch for the products of a few rows, where a matrix product of one row is padded, run and cut. A sum over few heads and
# rows is written out, term by term: so it is no reduction of its own, and fuses with what reads the score.
GPU = """
    first = Constant <value_ints: ints = @first_row> ()
    end = Constant <value_ints: ints = @end_row> ()
    scale = Constant <value_float: float = @scale> ()
    row_axis = Constant <value_ints = [2]> ()
    between = Constant <value_ints = [3]> ()
    last = Constant <value_ints = [-1]> ()
    heads_axis = Constant <value_ints = [1]> ()

    asking = Slice (queries, first, end, row_axis)
    asking_f = Cast <to = 1> (asking)
    keys_f = Cast <to = 1> (keys)
    asking_rows = Unsqueeze (asking_f, between)
    keys_rows = Unsqueeze (keys_f, row_axis)
    parts = Mul (asking_rows, keys_rows)
    product = ReduceSum <keepdims = 0> (parts, last)
    scaled = Mul (product, scale)
    logits = Add (scaled, bias)
    attention = Softmax <axis = -1> (logits)
    shape = Shape (asking)
    heads = Gather (shape, heads_axis)
    rows = Gather (shape, row_axis)
    count_int = Mul (heads, rows)
    count = Cast <to = 1> (count_int)
"""

SCORE = """
    score = Div (sum, count)
"""

SUM = """
    head_axes = Constant <value_ints = [1, 2]> ()
    sum = ReduceSum <keepdims = 0> (attention, head_axes)
"""

MOST_ROWS = 4
"""Rows for which the products are no work for tensor cores."""

MOST_TERMS = 32
"""Heads and rows whose sum is written out."""


def gpu_body(attributes: Attributes, shapes: Sequence[Shape]) -> str:
    (heads, *_), rows = shapes[1], attributes["end_row"][0] - attributes["first_row"][0]
    return GPU + (_written_out(heads * rows) if heads * rows <= MOST_TERMS else SUM) + SCORE


def _written_out(terms: int) -> str:
    text = f"""
    terms_shape = Constant <value_ints = [0, {terms}, -1]> ()
    terms = Reshape (attention, terms_shape)
"""
    for term in range(terms):
        so_far = f"Add (sum_{term - 1}, term_{term})" if term else "Identity (term_0)"
        text += f"""
    from_{term} = Constant <value_ints = [{term}]> ()
    to_{term} = Constant <value_ints = [{term + 1}]> ()
    term_{term} = Slice (terms, from_{term}, to_{term}, heads_axis)
    sum_{term} = {so_far}
"""
    return f"{text}    sum = Squeeze (sum_{terms - 1}, heads_axis)\n"


def work(attributes: Attributes, shapes: Sequence[Shape]) -> float:
    """Products of few rows; those of more are for tensor cores, which are not in this body."""
    (heads, tokens, width), rows = shapes[1], attributes["end_row"][0] - attributes["first_row"][0]
    return float(rows * heads * tokens * width) if rows <= MOST_ROWS else math.inf


OPERATOR = Operator(
    name="TokenScore",
    inputs=("queries", "keys", "bias"),
    outputs=("score",),
    types=("float32",),
    attributes={"scale": "float", "first_row": "ints", "end_row": "ints"},
    body=BODY,
    gpu=Gpu(gpu_body, work),
    reference=reference,
    widens=("queries", "keys"),
)
