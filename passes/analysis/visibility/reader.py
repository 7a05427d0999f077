"""Read a mask: constants entry by entry, and of what inputs decide whether it is the same for all queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.attention import HIDDEN, Array
from tokenrt.passes.analysis.rules.elementwise import STANDARD
from tokenrt.passes.graph.ancestry import depends_on_input
from tokenrt.passes.graph.shapes import Shapes

RUN_TIME = "its mask depends on both who looks and who is seen, and is computed at run time"

ELEMENTWISE = frozenset(STANDARD)
LAYOUT = frozenset("Cast CastLike Expand Identity Reshape Squeeze Transpose Unsqueeze".split())
SUMS = frozenset("Add Sub Sum Min Max".split())
PRODUCTS = frozenset("And Mul Or Where".split())
UNARY_ON_SUMS = frozenset("Cast CastLike Clip Div Identity Neg".split())
BOUNDED = frozenset(
    "BatchNormalization Conv Einsum Gemm LayerNormalization MatMul Sigmoid Softmax Tanh".split()
)
"""Operators whose results are computed of weights or lie in a small range: a bias made of them hides nothing."""

LOWEST = -3e38

Known = dict[tuple[ir.Value, int], bool]


class Unproven(Exception):
    """A part of a mask that could not be shown to be the same for all queries."""

    def __init__(self, value: ir.Value) -> None:
        super().__init__()
        self.value = value

    def describe(self) -> str:
        producer = self.value.producer()
        if producer is None:
            return f"{RUN_TIME}: input {self.value.name!r} is given with one number for each pair of tokens"
        return f"{RUN_TIME}, by {producer.op_type} node {producer.name!r}"


@dataclass(frozen=True)
class Read:
    """A part of a mask with numbers in place of what inputs decide.

    unknown: which inputs' parts are in it, key or query; summed: parts were added, so that only their size is known.
    """

    array: Array
    unknown: frozenset[str] = frozenset()
    summed: bool = False


def varies(value: ir.Value, axis: int, shapes: Shapes, known: Known | None = None) -> bool:
    """Whether entries along `axis` (from the end) may differ; `known`: what was answered before."""
    known = {} if known is None else known
    if (value, axis) not in known:
        known[value, axis] = _own_varies(value, axis, shapes, known)
    return known[value, axis]


def _own_varies(value: ir.Value, axis: int, shapes: Shapes, known: Known) -> bool:
    if not shapes.known(value):
        return True
    dims = shapes.of(value)
    if len(dims) < -axis or dims[axis] == 1:
        return False
    if value.const_value is not None:
        array = value.const_value.numpy()
        return not bool((array == array.take([0], axis=axis)).all())
    node = value.producer()
    if node is None:
        return True
    parts = [step for step in node.inputs if step is not None]
    if node.op_type in ELEMENTWISE:
        return any(varies(step, axis, shapes, known) for step in parts)
    if node.op_type == "Concat" and node.attributes["axis"].value % len(dims) != len(dims) + axis:
        return any(varies(step, axis, shapes, known) for step in parts)
    before = _before(node, axis, shapes)
    return True if before is None else varies(parts[before[0]], before[1], shapes, known)


def _before(node: ir.Node, axis: int, shapes: Shapes) -> tuple[int, int] | None:
    """The input that an axis of the output comes from, and its axis there (from the end); None where that is not known."""
    data = node.inputs[0]
    if data is None or not shapes.known(data):
        return None
    rank, dims, result = len(shapes.of(data)), shapes.of(data), shapes.of(node.outputs[0])
    if node.op_type == "Expand":
        return 0, axis
    if node.op_type == "Transpose":
        order = node.attributes["perm"].value if "perm" in node.attributes else range(rank - 1, -1, -1)
        return 0, list(order)[axis] - rank
    if node.op_type == "Reshape" and dims[axis:] == result[axis:]:
        return 0, axis
    if node.op_type in ("Squeeze", "Unsqueeze"):
        axes = _axes(node, max(rank, len(result)))
        if axes is None:
            return None
        longer = [place for place in range(max(rank, len(result))) if place not in axes]
        if node.op_type == "Squeeze":
            return 0, longer[axis] - rank
        return (0, longer.index(len(result) + axis) - rank) if len(result) + axis in longer else None
    index = node.inputs[1] if len(node.inputs) > 1 else None
    if index is None or not shapes.known(index):
        return None
    if node.op_type == "Gather" and rank == 1:
        return 1, axis
    flat = node.op_type == "GatherND" and not node.attributes.get("batch_dims", _NONE).value
    return (1, axis - 1) if flat and shapes.of(index)[-1] == rank else None


@dataclass(frozen=True)
class _Zero:
    value: int = 0


_NONE: Any = _Zero()


def _axes(node: ir.Node, rank: int) -> set[int] | None:
    if "axes" in node.attributes:
        return {axis % rank for axis in node.attributes["axes"].value}
    given = node.inputs[1] if len(node.inputs) > 1 else None
    if given is None or given.const_value is None:
        return None
    return {int(axis) % rank for axis in given.const_value.numpy().reshape(-1)}


def bounded(value: ir.Value) -> bool:
    """Whether it is a bias computed of weights, which hides nothing: no large constant, comparison or input in it."""
    if value.const_value is not None:
        numbers = value.const_value.numpy()
        return numbers.dtype != np.bool_ and bool((np.abs(numbers.astype(np.float64)) <= HIDDEN).all())
    node = value.producer()
    if node is None or node.op_type in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Where"):
        return False
    if node.op_type in BOUNDED:
        return True
    parts = [step for step in node.inputs if step is not None]
    if (
        node.op_type in ("Gather", "GatherND", "GatherElements")
        or node.op_type in LAYOUT
        or node.op_type == "Slice"
    ):
        return value.dtype != ir.DataType.BOOL and bounded(parts[0])
    if node.op_type in ("Add", "Sub", "Mul", "Sum", "Neg", "Concat", "Max", "Min"):
        return all(bounded(step) for step in parts)
    return False


@dataclass
class Reader:
    """Reads a mask whose queries differ by a constant, with numbers in place of what inputs decide for a key or a query."""

    shapes: Shapes
    query: int
    key: int
    leaves: dict[str, set[ir.Value]] = field(default_factory=dict)
    kinds: set[ir.DataType] = field(default_factory=set)

    def alternatives(self, value: ir.Value) -> list[Array]:
        """The mask for each number that the parts decided by inputs may hold. Raises: Unproven."""
        found = [
            self._read(value, self.query, self.key, {"key": first, "query": second}).array
            for first, second in product(range(3), repeat=2)
        ]
        if "query" in self.leaves and len({_base(leaf) for leaf in set().union(*self.leaves.values())}) > 1:
            raise Unproven(value)
        return found

    def _read(self, value: ir.Value, query: int, key: int, numbers: dict[str, int]) -> Read:
        if value.const_value is not None:
            return Read(value.const_value.numpy())
        rank = len(self.shapes.of(value)) if self.shapes.known(value) else 0
        if depends_on_input(value):
            for side, axis in (("key", query), ("query", key)):
                if not varies(value, axis, self.shapes):
                    self.leaves.setdefault(side, set()).add(value)
                    return Read(_filled(value, rank, numbers[side]), frozenset({side}))
        node = value.producer()
        if node is None:
            raise Unproven(value)
        if node.op_type in ELEMENTWISE:
            return self._combine(node, value, query, key, numbers)
        moved = [_before(node, axis, self.shapes) for axis in (query, key)]
        data = node.inputs[0]
        if data is None or node.op_type not in LAYOUT - {"Reshape", "Transpose"} or None in moved:
            raise Unproven(value)
        places = [place[1] for place in moved if place is not None]
        inner = self._read(data, places[0], places[1], numbers)
        if node.op_type == "Expand":
            return inner
        axes = _axes(node, max(rank, len(self.shapes.of(data))))
        if axes is None:
            raise Unproven(value)
        array = inner.array.reshape((1,) * (len(self.shapes.of(data)) - inner.array.ndim) + inner.array.shape)
        if node.op_type == "Unsqueeze":
            return Read(np.expand_dims(array, tuple(axes)), inner.unknown, inner.summed)
        return Read(np.squeeze(array, tuple(axes)), inner.unknown, inner.summed)

    def _combine(self, node: ir.Node, value: ir.Value, query: int, key: int, numbers: dict[str, int]) -> Read:
        steps = [step for step in node.inputs if step is not None]
        parts = [self._read(step, query, key, numbers) for step in steps]
        unknown = frozenset[str]().union(*(part.unknown for part in parts))
        summed = any(part.summed for part in parts)
        joined = bool(unknown) and sum(part.array.size > 1 or bool(part.unknown) for part in parts) > 1
        if joined and node.op_type not in SUMS | PRODUCTS:
            raise Unproven(value)
        if (
            joined
            and node.op_type == "Mul"
            and not all(part.unknown or np.isin(part.array, (0, 1)).all() for part in parts)
        ):
            summed = True
        if summed and node.op_type not in SUMS | {"Mul", "Where"} | UNARY_ON_SUMS:
            raise Unproven(value)
        array = _evaluate(node, [part.array for part in parts])
        if array is None:
            raise Unproven(value)
        return Read(array, unknown, summed or (joined and node.op_type in SUMS))


def _filled(value: ir.Value, rank: int, which: int) -> Array:
    """One of the numbers a part of a mask may hold: false or true, 0 or 1, a bias that shows or hides."""
    kind = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
    if kind == np.bool_:
        return np.full((1,) * rank, which > 0)
    lowest = max(LOWEST, float(np.finfo(kind).min)) if np.issubdtype(kind, np.floating) else 0
    return np.full((1,) * rank, (0, 1, lowest)[which], kind)


def _base(value: ir.Value) -> ir.Value:
    """What a value is but for its layout and type."""
    node = value.producer()
    while node is not None and node.op_type in LAYOUT and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _evaluate(node: ir.Node, arrays: Sequence[Array]) -> Array | None:
    import onnx.reference

    given = [value for value in node.inputs if value is not None]
    feeds = {str(value.name): array for value, array in zip(given, arrays, strict=True)}
    try:
        with np.errstate(all="ignore"):
            results: Any = onnx.reference.ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    except Exception:  # the reference lacks a few operators; what it cannot evaluate is not proven
        return None
    return np.asarray(results[0])
