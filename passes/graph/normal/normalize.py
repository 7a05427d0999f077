"""Bring every attention of a graph, and rows taken by number, to the form the analyses read; exact, nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
import onnx_ir.passes.common as common

from tokenrt.passes.graph.normal.builder import Builder
from tokenrt.passes.graph.normal.chain import chain
from tokenrt.passes.graph.normal.einsum import open_einsum
from tokenrt.passes.graph.normal.layout import Unfit
from tokenrt.passes.graph.normal.parts import open_concat
from tokenrt.passes.graph.normal.rows import open_gather
from tokenrt.passes.graph.normal.softmax import open_exp, open_quotient
from tokenrt.passes.graph.normal.straight import UNFIT, straighten
from tokenrt.passes.graph.normal.sums import open_add, open_sub, open_sum
from tokenrt.passes.graph.shapes import Shapes, annotate

OPENERS: Mapping[str, Callable[[Builder, ir.Node], bool]] = {
    "Concat": open_concat,
    "Div": open_quotient,
    "Einsum": open_einsum,
    "Exp": open_exp,
    "GatherND": open_gather,
    "Mul": open_quotient,
    "Sub": open_sub,
    "Sum": open_sum,
}
"""What is rewritten node by node; each tells whether it was."""


def normalize(model: ir.Model, shapes: Shapes) -> bool:
    """Rewrite a canonical model in place; whether anything was. shapes: those of its values, before."""
    if not any(node.op_type in (*OPENERS, "Add", "Softmax") for node in model.graph):
        return False
    annotate(model.graph, shapes)
    build = Builder(model, shapes)
    changed = []
    for openers in (OPENERS, {"Add": open_add}, {"Softmax": _straighten}):
        for node in [*model.graph]:
            opener = openers.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if opener is not None:
                build.origin = node.name or ""
                changed.append(opener(build, node))
    if any(changed):
        for made in model.graph:
            for value in made.outputs:
                if not value.is_graph_output():
                    value.shape = None
        # Sorted first: what is unused is found from the end.
        common.TopologicalSortPass()(model)
        common.RemoveUnusedNodesPass()(model)
    return any(changed)


def _straighten(build: Builder, node: ir.Node) -> bool:
    """Whether nodes were made; those of an attempt that failed are read by nobody, and the softmax keeps the reason."""
    found = chain(node, build.shapes())
    if found is None:
        return False
    try:
        return straighten(build, found)
    except Unfit as reason:
        node.meta[UNFIT] = str(reason)
        return True
