"""Bring a changed graph in order: nothing unused, nodes behind what they read, no shapes of before."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common


def tidy(model: ir.Model) -> None:
    """Drop what the change left without use, and every shape that it may have made wrong."""
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    common.RemoveUnusedNodesPass()(model)
    common.TopologicalSortPass()(model)
