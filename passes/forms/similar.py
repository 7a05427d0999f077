"""Similarities as GPUs fuse them: lengths behind the product, rows multiplied where they are gathered, no arg-maximum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tokenrt.passes.graph.shapes import Shapes
from tokenrt.passes.ops.contract import MOST_WORK
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.ops.token_match import LEAST_SQUARE

FAR = -1e9
PICKS = frozenset({"Gather", "GatherND", "Slice"})


@dataclass(frozen=True)
class Rows:
    """One side of a product of normalised rows: the rows [B,N,C] as they were, and the picks that lead from them to the side."""

    rows: ir.Value
    picks: tuple[ir.Node, ...]

    @property
    def gathered(self) -> bool:
        return any(node.op_type != "Slice" for node in self.picks)

    def picked(self, op: GraphOps, value: ir.Value) -> ir.Value:
        """The same picks of the rows, or of one number each."""
        for node in self.picks:
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            value = op(node.op_type, value, *node.inputs[1:], **attributes)
        return value


def product_of_unit_rows(op: GraphOps, node: ir.Node, shapes: Shapes) -> ir.Value | None:
    """Cosines [B,M,K]: the product of the rows themselves, divided by their lengths, which fuses with what reads it."""
    if node.op_type != "MatMul":
        return None
    turned = node.inputs[1].producer() if node.inputs[1] is not None else None
    if turned is None or turned.op_type != "Transpose" or [*turned.attributes["perm"].value] != [0, 2, 1]:
        return None
    sides = [side for value in (node.inputs[0], turned.inputs[0]) for side in _rows(value)]
    if len(sides) != 2 or sides[0].rows is not sides[1].rows:
        return None
    rows = sides[0].rows
    lengths = op("Sqrt", op("Max", _squares(op, rows), LEAST_SQUARE))
    (left, right), (left_length, right_length) = (
        [side.picked(op, value) for side in sides] for value in (rows, lengths)
    )
    if any(side.gathered for side in sides) and _work(node, shapes) <= MOST_WORK:
        parts = op("Mul", op("Unsqueeze", left, [2]), op("Unsqueeze", right, [1]))
        product = op("ReduceSum", parts, [-1], keepdims=0)
    else:
        product = op("MatMul", left, op("Transpose", right, perm=[0, 2, 1]))
    halfway = op("Div", product, op("Unsqueeze", left_length, [-1]))
    made: ir.Value = op("Div", halfway, op("Unsqueeze", right_length, [1]))
    return made


def squares_of_gathered_rows(op: GraphOps, node: ir.Node, shapes: Shapes) -> ir.Value | None:
    """[B,M]: the sums of the squares of gathered rows, gathered, where those of all rows are there already."""
    row = _square(node)
    gather = row.producer() if row is not None else None
    if gather is None or gather.op_type != "GatherND" or gather.attributes.get_int("batch_dims", 0) != 1:
        return None
    rows, index = gather.inputs
    known = _made(rows) if rows is not None else None
    if known is None:
        return None
    made: ir.Value = op("GatherND", known, index, batch_dims=1)
    return made


def nearest(op: GraphOps, node: ir.Node, shapes: Shapes) -> ir.Value | None:
    """[B,S]: the first of the largest of each row, found by comparing: a maximum fuses, and an arg-maximum is a sort."""
    similarity = node.inputs[0] if node.op_type == "ArgMax" else None
    maker = similarity.producer() if similarity is not None else None
    # What is behind a ThresholdedRelu has no NaN.
    if (
        similarity is None
        or maker is None
        or maker.op_type != "ThresholdedRelu"
        or not shapes.known(similarity)
    ):
        return None
    dims = shapes.of(similarity)
    if len(dims) != 3 or node.attributes.get_int("axis", 0) % 3 != 2 or _keeps(node):
        return None
    is_best = op("Equal", similarity, op("GlobalMaxPool", similarity))
    falling = op("Where", is_best, -np.arange(dims[2], dtype=np.float32), FAR)
    first = op("Neg", op("Squeeze", op("GlobalMaxPool", falling), [-1]))
    made: ir.Value = op("Cast", first, to=int(ir.DataType.INT64))
    return made


RULES: dict[str, Callable[[GraphOps, ir.Node, Shapes], ir.Value | None]] = {
    "product of unit rows with the lengths behind it": product_of_unit_rows,
    "squares of gathered rows as gathered squares": squares_of_gathered_rows,
    "arg-maximum as a comparison": nearest,
}


def _rows(value: ir.Value | None) -> Iterator[Rows]:
    """The side of a product, if it is picked from normalised rows."""
    picks: list[ir.Node] = []
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in PICKS and _of_tokens(node):
        picks.insert(0, node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "LpNormalization" or node.inputs[0] is None:
        return
    if node.attributes.get_int("axis", -1) in (-1, 2) and node.attributes.get_int("p", 2) == 2:
        yield Rows(node.inputs[0], tuple(picks))


def _of_tokens(node: ir.Node) -> bool:
    """Whether a node picks rows, of [B,N,C] as of [B,N]."""
    if node.op_type == "Slice":
        axes = node.inputs[3].const_value if len(node.inputs) > 3 and node.inputs[3] is not None else None
        return axes is not None and axes.numpy().tolist() == [1]
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) == 1
    return node.attributes.get_int("batch_dims", 0) == 1


def _work(node: ir.Node, shapes: Shapes) -> float:
    """Multiply-adds of a product for one image."""
    row, result = node.inputs[0], node.outputs[0]
    if row is None or not shapes.known(row) or not shapes.known(result):
        return float("inf")
    return float(np.prod(shapes.of(result)[1:]) * shapes.of(row)[-1])


def _square(node: ir.Node) -> ir.Value | None:
    """The rows whose squares a node sums, [B,N,C] -> [B,N]."""
    if node.op_type != "ReduceSum" or _keeps(node):
        return None
    axes = (
        ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    )
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    if axes is None or axes.numpy().reshape(-1).tolist() not in ([-1], [2]) or maker is None:
        return None
    return maker.inputs[0] if maker.op_type == "Mul" and maker.inputs[0] is maker.inputs[1] else None


def _keeps(node: ir.Node) -> bool:
    return node.attributes.get_int("keepdims", 1) != 0


def _made(rows: ir.Value) -> ir.Value | None:
    """The sums of the squares of these rows, where a node makes them."""
    for square, _ in rows.uses():
        for reader, _ in square.outputs[0].uses() if square.op_type == "Mul" else ():
            if _square(reader) is rows:
                return reader.outputs[0]
    return None


def _squares(op: GraphOps, rows: ir.Value) -> ir.Value:
    known = _made(rows)
    made: ir.Value = op("ReduceSum", op("Mul", rows, rows), [-1], keepdims=0) if known is None else known
    return made
