"""The layers small trained networks on tokens are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tokenrt.passes.methods.contract import Ops, Value
from tokenrt.passes.methods.parts import steps
from tokenrt.passes.ops.contract import Array


def linear(op: Ops, rows: Value, weight: Array, bias: Array | None) -> Value:
    """Rows [..,I] times weight [O,I] transposed, as torch stores it, plus bias [O]."""
    product = op("MatMul", rows, np.ascontiguousarray(weight.T))
    return product if bias is None else op("Add", product, bias)


def gelu(op: Ops, x: Value) -> Value:
    """Exact GELU: x * Phi(x)."""
    return op("Mul", op("Mul", x, 0.5), op("Add", op("Erf", op("Mul", x, 0.5**0.5)), 1.0))


def layer_norm(
    op: Ops, x: Value, weight: Array, bias: Array | None, epsilon: float = 1e-5, axes: Sequence[int] = (-1,)
) -> Value:
    """Mean 0 and variance 1 over `axes`, times weight, plus bias."""
    centred = op("Sub", x, op("ReduceMean", x, axes=list(axes), keepdims=1))
    variance = op("ReduceMean", op("Mul", centred, centred), axes=list(axes), keepdims=1)
    unit = op("Mul", op("Div", centred, op("Sqrt", op("Add", variance, epsilon))), weight)
    return unit if bias is None else op("Add", unit, bias)


def attention(
    op: Ops, rows: Value, other: Value, weights: Mapping[str, Array], heads: int, shown: Value | None = None
) -> Value:
    """Multi-head attention of rows [B,N,C] to other [B,T,C], weights as torch names them; shown [B,1,T] bool, else all."""
    width = weights["in_proj_weight"].shape[1]
    split = np.array([0, 0, heads, width // heads])

    def projected(data: Value, part: int, perm: Sequence[int]) -> Value:
        span = slice(part * width, (part + 1) * width)
        flat = linear(op, data, weights["in_proj_weight"][span], weights["in_proj_bias"][span])
        return op("Transpose", op("Reshape", flat, split), perm=list(perm))

    queries, keys = projected(rows, 0, (0, 2, 1, 3)), projected(other, 1, (0, 2, 3, 1))
    logits = op("Mul", op("MatMul", queries, keys), (width // heads) ** -0.5)
    if shown is not None:
        logits = op("Where", op("Unsqueeze", shown, np.array([1])), logits, steps.LOWEST)
    read = op("MatMul", op("Softmax", logits, axis=-1), projected(other, 2, (0, 2, 1, 3)))
    joined = op("Reshape", op("Transpose", read, perm=[0, 2, 1, 3]), np.array([0, 0, width]))
    return linear(op, joined, weights["out_proj.weight"], weights["out_proj.bias"])


def encoder(
    op: Ops, rows: Value, weights: Mapping[str, Array], heads: int, shown: Value | None = None
) -> Value:
    """One layer of a transformer encoder, norm first, GELU inside: rows [B,N,C], weights as torch names them."""
    own = {name.removeprefix("self_attn."): value for name, value in weights.items()}
    normed = layer_norm(op, rows, weights["norm1.weight"], weights["norm1.bias"])
    rows = op("Add", rows, attention(op, normed, normed, own, heads, shown))
    normed = layer_norm(op, rows, weights["norm2.weight"], weights["norm2.bias"])
    hidden = gelu(op, linear(op, normed, weights["linear1.weight"], weights["linear1.bias"]))
    return op("Add", rows, linear(op, hidden, weights["linear2.weight"], weights["linear2.bias"]))
