"""NumPy meaning of the standard ONNX operators that methods use, in float64, as of opset 13.

So ReduceMax, ReduceMean, ReduceMin and ReduceProd take `axes` as an attribute; the graph backend gives them as an input
where the model's operator set wants that (18).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from tokenrt.passes.ops.contract import Array

ONNX_TYPES: Mapping[int, str] = MappingProxyType(
    {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64", 16: "bfloat16"}
)
"""ONNX's number of an element type -> its name in NumPy's spelling."""


def _axes(axes: Array | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(axis) for axis in np.ravel(axes))


def _cast(x: Array, to: int) -> Array:
    name = ONNX_TYPES[to]
    return x.astype(np.float64 if "float" in name else name)


def _cast_like(x: Array, like: Array) -> Array:
    return x.astype(like.dtype)


def _gather(data: Array, index: Array, axis: int = 0) -> Array:
    return np.take(data, index, axis=axis)


def _gather_nd(data: Array, index: Array, batch_dims: int = 0) -> Array:
    if batch_dims == 0:
        return np.asarray(data[tuple(np.moveaxis(index, -1, 0))])
    return np.stack([_gather_nd(part, rows, batch_dims - 1) for part, rows in zip(data, index, strict=True)])


def _scatter_elements(data: Array, index: Array, updates: Array, axis: int = 0) -> Array:
    result = np.array(data)
    np.put_along_axis(result, index, updates, axis=axis)
    return result


def _slice(
    data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None
) -> Array:
    which = _axes(axes) or tuple(range(len(starts)))
    stride = [1] * len(which) if steps is None else [int(step) for step in steps]
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(which, starts, ends, stride, strict=True):
        cut[axis] = slice(int(start), int(end), step)
    return data[tuple(cut)]


def _squeeze(data: Array, axes: Array | None = None) -> Array:
    return np.squeeze(data, axis=_axes(axes))


def _unsqueeze(data: Array, axes: Array) -> Array:
    return np.asarray(np.expand_dims(data, _axes(axes) or ()))


def _expand(data: Array, shape: Array) -> Array:
    return np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(int(size) for size in shape)))


def _reshape(data: Array, shape: Array) -> Array:
    return np.reshape(data, [data.shape[i] if size == 0 else int(size) for i, size in enumerate(shape)])


def _concat(*parts: Array, axis: int) -> Array:
    return np.concatenate(parts, axis=axis)


def _transpose(data: Array, perm: Sequence[int] | None = None) -> Array:
    return np.transpose(data, perm)


def _reduce_sum(data: Array, axes: Array | None = None, keepdims: int = 1) -> Array:
    return np.asarray(np.sum(data, axis=_axes(axes), keepdims=bool(keepdims)))


def _reduce(how: Callable[..., Any]) -> Callable[..., Array]:
    def reduce(data: Array, axes: Sequence[int] | None = None, keepdims: int = 1) -> Array:
        return np.asarray(how(data, axis=None if axes is None else tuple(axes), keepdims=bool(keepdims)))

    return reduce


def _cum_sum(data: Array, axis: Array) -> Array:
    return np.cumsum(data, axis=int(axis))


def _arg_max(data: Array, axis: int = 0, keepdims: int = 1) -> Array:
    return np.asarray(np.argmax(data, axis=axis, keepdims=bool(keepdims)))


def _arg_min(data: Array, axis: int = 0, keepdims: int = 1) -> Array:
    return np.asarray(np.argmin(data, axis=axis, keepdims=bool(keepdims)))


def _div(left: Array, right: Array) -> Array:
    """Whole numbers are divided towards zero."""
    if left.dtype.kind == right.dtype.kind == "i":
        return np.abs(left) // np.abs(right) * np.sign(left) * np.sign(right)
    return np.divide(left, right)


def _elu(data: Array, alpha: float = 1.0) -> Array:
    return np.where(data > 0, data, alpha * np.expm1(np.minimum(data, 0)))


def _sigmoid(data: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * data)))


def _erf(data: Array) -> Any:
    from math import erf

    return np.vectorize(erf, otypes=[data.dtype])(data)


def _top_k(data: Array, k: Array, axis: int = -1, largest: int = 1) -> tuple[Array, Array]:
    """Sorted; the lower index comes first among equals, and NaN counts as the largest, as in ONNX Runtime."""
    order = np.argsort(-data if largest else data, axis=axis, kind="stable")
    if largest and data.dtype.kind == "f":
        order = np.argsort(np.where(np.isnan(data), -np.inf, -data), axis=axis, kind="stable")
    index = np.take(order, np.arange(int(np.ravel(k)[0])), axis=axis)
    return np.take_along_axis(data, index, axis=axis), index.astype(np.int64)


def _softmax(data: Array, axis: int = -1) -> Array:
    weight = np.exp(data - np.max(data, axis=axis, keepdims=True))
    return np.asarray(weight / np.sum(weight, axis=axis, keepdims=True))


def _lp_normalization(data: Array, axis: int = -1, p: int = 2) -> Array:
    """Length one along `axis`; a zero vector stays zero, as in ONNX Runtime."""
    length = np.linalg.norm(data, ord=p, axis=axis, keepdims=True)
    return np.asarray(data / np.where(length == 0, 1, length))


def _thresholded_relu(data: Array, alpha: float = 1.0) -> Array:
    """What is above alpha as it is, everything else and NaN as 0."""
    return np.where(data > alpha, data, np.zeros_like(data))


def _shape(data: Array) -> Array:
    return np.array(data.shape, dtype=np.int64)


def _range(start: Array, limit: Array, delta: Array) -> Array:
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _matmul(left: Array, right: Array) -> Array:
    """Products whose sums do not depend on the place of a row: of BLAS, equal rows may get unequal results, and no ties."""
    product: Array = np.einsum("...ij,...jk->...ik", left, right)
    return product


STANDARD: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "Abs": np.abs,
        "Add": np.add,
        "And": np.logical_and,
        "ArgMax": _arg_max,
        "ArgMin": _arg_min,
        "Cast": _cast,
        "CastLike": _cast_like,
        "Concat": _concat,
        "Cos": np.cos,
        "CumSum": _cum_sum,
        "Div": _div,
        "Elu": _elu,
        "Equal": np.equal,
        "Erf": _erf,
        "Exp": np.exp,
        "Expand": _expand,
        "Gather": _gather,
        "GatherElements": lambda data, index, axis=0: np.take_along_axis(data, index, axis=axis),
        "GatherND": _gather_nd,
        "Floor": np.floor,
        "Greater": np.greater,
        "GreaterOrEqual": np.greater_equal,
        "Identity": np.asarray,
        "IsNaN": np.isnan,
        "Less": np.less,
        "Log": np.log,
        "LpNormalization": _lp_normalization,
        "MatMul": _matmul,
        "Max": np.maximum,
        "Min": np.minimum,
        "Mul": np.multiply,
        "Neg": np.negative,
        "Not": np.logical_not,
        "Or": np.logical_or,
        "Range": _range,
        "Pow": np.power,
        "ReduceMax": _reduce(np.max),
        "ReduceMean": _reduce(np.mean),
        "ReduceMin": _reduce(np.min),
        "ReduceProd": _reduce(np.prod),
        "ReduceSum": _reduce_sum,
        "Reshape": _reshape,
        "Round": np.round,
        "ScatterElements": _scatter_elements,
        "Shape": _shape,
        "Sigmoid": _sigmoid,
        "Slice": _slice,
        "Softmax": _softmax,
        "Sqrt": np.sqrt,
        "Squeeze": _squeeze,
        "Sub": np.subtract,
        "Tanh": np.tanh,
        "ThresholdedRelu": _thresholded_relu,
        "TopK": _top_k,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
        "Where": np.where,
    }
)
