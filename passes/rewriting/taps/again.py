"""The attention weights of a model by its own nodes, once more, beside those it has."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.analysis.attention import POINTWISE, Core
from tokenrt.passes.graph.shapes import Shapes
from tokenrt.passes.ops.graph_backend import GraphOps
from tokenrt.passes.rewriting.logits import FLOAT


def repeated(op: GraphOps, core: Core, shapes: Shapes) -> ir.Value | None:
    """[B,H,N,N] by the nodes that the model has for it, once more; None where it has none of its own in float32.

    A runtime that finds equal expressions, as ONNX Runtime does, computes them once; to one that fuses attention,
    as TensorRT does, the model's own nodes stay what they were.
    """
    weights, scores = core.node.outputs[0], core.node.inputs[0]
    if core.fused or scores is None or weights.dtype != FLOAT or len(shapes.of(weights)) != 4:
        return None
    maker = scores.producer()
    return _again(op, core, core.node) if maker is not None and _makes_scores(core, maker) else None


def _again(op: GraphOps, core: Core, node: ir.Node) -> ir.Value:
    """The result of a copy of `node` and of all that stands between it and the product of queries and keys."""
    inputs = [*node.inputs]
    if node.op_type != "MatMul":
        place, own = next(
            (place, own)
            for place, value in enumerate(inputs)
            if value is not None and (own := value.producer()) is not None and _makes_scores(core, own)
        )
        inputs[place] = _again(op, core, own)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    made: ir.Value = op(node.op_type, *inputs, **attributes)
    return made


def _makes_scores(core: Core, node: ir.Node) -> bool:
    """Whether it is the product of queries and keys, or changes what comes of it."""
    if node.op_type == "MatMul":
        return node.inputs[0] is core.query and node.inputs[1] is core.key
    makers = (value.producer() for value in node.inputs if value is not None)
    return node.op_type in POINTWISE and any(
        _makes_scores(core, maker) for maker in makers if maker is not None
    )
