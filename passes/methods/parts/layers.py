"""The layers small trained networks on tokens are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenrt.passes.methods.contract import Ops, Value
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
