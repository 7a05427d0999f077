"""Attention inside the branches of an If, or the body of a Loop or Scan: refused by name, for no token of it can leave."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from tokenrt.passes.analysis.residual import Refusal
from tokenrt.passes.graph.ancestry import nested
from tokenrt.passes.graph.functions import describe

PRODUCTS = frozenset({"MatMul", "Einsum", "Gemm", "MatMulInteger", "QLinearMatMul"})

REASONS = {
    "If": "which branch runs is decided in each run, by {condition}: export the branch that you use as a model of its own, or "
    "make the condition a constant",
    "Loop": "the body of a Loop is one graph for all its turns: export the model with the loop unrolled",
    "Scan": "the body of a Scan is one graph for all its turns: export the model with the loop unrolled",
}


def refused(graph: ir.Graph, others: tuple[Refusal, ...]) -> tuple[Refusal, ...]:
    """The refusals of these attentions, then the others; that the model has none is no longer true."""
    inside = tuple(refusal for node in graph for refusal in _inside(node))
    return (*inside, *(refusal for refusal in others if not inside or refusal.where != "model"))


def _inside(node: ir.Node) -> Iterator[Refusal]:
    reason = REASONS.get(node.op_type)
    if reason is None:
        return
    condition = node.inputs[0] if node.inputs else None
    for step in nested(node):
        if step.op_type in ("Attention", "MultiHeadAttention") or (
            step.op_type == "Softmax" and _multiplied(step)
        ):
            yield Refusal(
                f"attention at {describe(step)} in {describe(node)}",
                reason.format(condition=repr(condition.name) if condition is not None else "its condition"),
            )


def _multiplied(softmax: ir.Node) -> bool:
    """Whether a product reads what comes of it."""
    seen: set[ir.Node] = set()
    todo = [softmax]
    while todo:
        for value in todo.pop().outputs:
            for reader, _ in value.uses():
                if reader.op_type in PRODUCTS:
                    return True
                if reader not in seen:
                    seen.add(reader)
                    todo.append(reader)
    return False
