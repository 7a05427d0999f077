"""What a reduction writes for CPUs, as GPUs fuse it: sums for products of one row, a comparison for a scatter."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from tokenrt.passes.forms import similar
from tokenrt.passes.forms.precision import INSERTED
from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.graph.functions import Change, label
from tokenrt.passes.graph.model import opset
from tokenrt.passes.graph.shapes import Shapes, annotate
from tokenrt.passes.ops.graph_backend import GraphOps

Rule = Callable[[GraphOps, ir.Node, Shapes], ir.Value | None]


def fuse(model: ir.Model, shapes: Shapes) -> Iterator[Change]:
    """Rewrite, in place, what was put into the model and has a form with fewer launches; shapes: of the values before."""
    graph = model.graph
    annotate(graph, shapes)
    _drop_idle_casts(graph)
    op = GraphOps(graph, None, opset(model), INSERTED)
    for node in [*graph]:
        if node.graph is not graph or not str(node.name).startswith(INSERTED):
            continue
        for action, rule in RULES.items():
            op.before, op.prefix = node, str(node.name)
            if (value := rule(op, node, shapes)) is not None:
                yield Change(label(node), node.op_type, action, "it fuses with what it reads")
                ir.convenience.replace_all_uses_with(node.outputs, [value])
                _remove_unread(graph, node)
                break
    graph.sort()  # What is known already may be made further down.


def _drop_idle_casts(graph: ir.Graph) -> None:
    """Remove what casts to the type that its input has: a body casts whatever it is given, and a builder fuses less across it."""
    for node in [*graph]:
        if node.op_type != "Cast" or not str(node.name).startswith(INSERTED) or node.inputs[0] is None:
            continue
        if node.inputs[0].dtype == node.attributes["to"].value and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            graph.remove(node, safe=True)


def _mean_over_heads(op: GraphOps, node: ir.Node, shapes: Shapes) -> ir.Value | None:
    """[B,H,N,D] -> [B,N,D]: a row [1,H] of equal shares times [B,H,N*D] and a Reshape, which is one product on CPUs."""
    product = _made_by(node, 0, "Reshape", "MatMul")
    share = product.inputs[0].const_value if product is not None and product.inputs[0] is not None else None
    if product is None or share is None or share.shape.rank() != 2 or len(product.outputs[0].uses()) > 1:
        return None
    row, keys, wide = share.numpy(), product.inputs[1], False
    while (step := keys.producer() if keys is not None else None) is not None and step.op_type in (
        "Cast",
        "Reshape",
    ):
        keys, wide = step.inputs[0], wide or step.op_type == "Cast"
        if step.op_type == "Reshape":
            break
    if step is None or step.op_type != "Reshape" or len(row) != 1 or (row != row[0, 0]).any():
        return None
    made: ir.Value = op(
        "Mul",
        op("ReduceSum", op("Cast", keys, to=int(ir.DataType.FLOAT)) if wide else keys, [1], keepdims=0),
        row[0, 0],
    )
    return made


def _product_of_a_row(op: GraphOps, node: ir.Node, shapes: Shapes) -> ir.Value | None:
    """[B,1,N] x [B,N,C] -> [B,1,C]: what a matrix product pads to a tile of rows."""
    known = [value for value in node.inputs if value is not None and shapes.known(value)]
    if node.op_type != "MatMul" or [len(shapes.of(value)) for value in known] != [3, 3]:
        return None
    left, right = known
    if shapes.of(left)[1] != 1:
        return None
    made: ir.Value = op("ReduceSum", op("Mul", op("Transpose", left, perm=[0, 2, 1]), right), [1], keepdims=1)
    return made


def _scatter_to_the_chosen(op: GraphOps, node: ir.Node, shapes: Shapes) -> ir.Value | None:
    """One number at the places that TokenSelect chose: its ranks say of each whether it is one of them."""
    if node.op_type != "ScatterElements" or node.attributes.get_int("axis", 0) != 1:
        return None
    given, index, update = node.inputs
    spread = update.producer() if update is not None else None
    number = spread.inputs[0] if spread is not None and spread.op_type == "Expand" else None
    stays = _stays(index)
    if stays is None or number is None or number.const_value is None or number.const_value.size != 1:
        return None
    # Chosen of other tokens than are written to: a part of them, or groups.
    if given is None or not all(map(shapes.known, (stays, given))) or shapes.of(stays) != shapes.of(given):
        return None
    made: ir.Value = op("Where", stays, number.const_value.numpy().reshape(()), given)
    return made


def _stays(index: ir.Value | None) -> ir.Value | None:
    """[B,N] of truth in a body for GPUs of TokenSelect: which tokens are chosen; None where `index` is not its result."""
    producer = index.producer() if index is not None else None
    call, _, last = str(producer.name if producer is not None else "").rpartition("/")
    if index is None or last != "index" or "TokenSelect" not in call:
        return None
    return next((value for value in ancestors((index,)) if value.name == f"{call}/stays"), None)


def _without_nothing(op: GraphOps, node: ir.Node, shapes: Shapes) -> ir.Value | None:
    """Lists joined without the empty ones, and the length of an empty one: TensorRT-RTX takes no constant of no entries."""
    empty = [value for value in node.inputs if value is not None and _is_empty(value)]
    if not empty or node.op_type not in ("Concat", "Shape"):
        return None
    if node.op_type == "Shape":
        return op.constant(np.zeros(1, np.int64))
    parts = [value for value in node.inputs if value is not None and value not in empty]
    if not parts:
        return None
    made: ir.Value = op("Concat", *parts, axis=node.attributes["axis"].value) if len(parts) > 1 else parts[0]
    return made


def _is_empty(value: ir.Value) -> bool:
    constant = ir.convenience.get_const_tensor(value)
    return constant is not None and constant.shape.rank() == 1 and constant.size == 0


RULES: dict[str, Rule] = {
    "lists without the empty ones": _without_nothing,
    "mean over heads as a sum": _mean_over_heads,
    "product of one row as a sum": _product_of_a_row,
    "scatter to what was chosen as a comparison": _scatter_to_the_chosen,
    **similar.RULES,
}


def _made_by(node: ir.Node, index: int, kind: str, maker: str) -> ir.Node | None:
    """What makes an input of a node, where the node and its maker are of these kinds."""
    value = node.inputs[index] if node.op_type == kind else None
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == maker else None


def _remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node that nobody reads, and what only it read."""
    if node.graph is not graph or any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    makers = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for maker in dict.fromkeys(makers):
        if maker is not None:
            _remove_unread(graph, maker)
