"""Softmaxes written otherwise: exp(log_softmax(x)) is softmax(x)."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import Builder


def open_exp(build: Builder, node: ir.Node) -> bool:
    """Exp behind a LogSoftmax as one Softmax; whoever else reads the logarithms keeps them."""
    logarithms = node.inputs[0].producer() if node.inputs[0] is not None else None
    if logarithms is None or logarithms.op_type != "LogSoftmax" or logarithms.inputs[0] is None:
        return False
    scores = logarithms.inputs[0]
    if not build.known(scores):
        return False
    given = logarithms.attributes.get("axis")
    made = build.make(build.dims(scores), "Softmax", scores, axis=given.value if given is not None else -1)
    maker = made.producer()
    assert maker is not None
    maker.name = logarithms.name or maker.name
    maker.metadata_props.update(logarithms.metadata_props)
    build.replace(node.outputs[0], made)
    build.graph.remove(node, safe=True)
    return True
