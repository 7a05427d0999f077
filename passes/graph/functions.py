"""Functions stored in a model: every node with those inside, how messages name one, and calls replaced by bodies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.errors import ModelError

STANDARD = frozenset({"", "ai.onnx"})
"""The domain of the ONNX operators, in both spellings."""


@dataclass(frozen=True)
class Change:
    """One thing done to a model: where, what, and why."""

    node: str
    operator: str
    action: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} {self.node!r}: {self.action} ({self.reason})"

    def as_dict(self) -> dict[str, str]:
        return {"node": self.node, "operator": self.operator, "action": self.action, "reason": self.reason}


def inline(
    model: ir.Model, wanted: Callable[[ir.Function], bool] | None = None, *, reason: str
) -> list[Change]:
    """Replace calls of the functions `wanted` names (all when None) by their bodies.

    Raises: ModelError when a function cannot be put into the model.
    """
    from onnx_ir.passes.common import InlinePass

    calls = [
        node
        for node in nodes_of(model)
        if (function := model.functions.get(node.op_identifier())) is not None
        and (wanted is None or wanted(function))
    ]
    if not calls:
        return []
    changes = [Change(label(node), operator_of(node), "inlined", reason) for node in calls]
    for node in calls:
        # The inliner pairs a call's outputs with the body's: a call without the last ones gets them back.
        node.resize_outputs(len(model.functions[node.op_identifier()].outputs))
    try:
        InlinePass(wanted)(model)
    except Exception as cause:
        root = cause.__cause__ or cause
        raise ModelError(f"the model's functions cannot be inlined: {root}") from cause
    for domain in {node.domain for node in calls} - STANDARD:
        if not any(node.domain == domain for node in nodes_of(model)):
            model.opset_imports.pop(domain, None)
    return changes


def describe(node: ir.Node) -> str:
    """The node as error messages name it: operator, domain where it is not the standard one, and name."""
    return f"{operator_of(node)} node {label(node)!r}"


def label(node: ir.Node) -> str:
    """The node's name, or that of its first output where it has none."""
    return node.name or next((str(value.name) for value in node.outputs if value.name), "?")


def nodes_of(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the graph, its subgraphs and the functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def operator_of(node: ir.Node) -> str:
    return node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
