"""Matching and merging as the one operator that does both, where a runtime has a plugin of it: a launch less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from tokenrt.passes.graph.ancestry import ancestors
from tokenrt.passes.graph.functions import Change, label, operator_of
from tokenrt.passes.graph.model import opset
from tokenrt.passes.graph.shapes import BATCH, Shapes, annotate
from tokenrt.passes.ops import DOMAIN
from tokenrt.passes.ops.graph_backend import GraphOps

Refuses = Callable[[str, Sequence[Sequence[int | None] | None], Mapping[str, Any]], str]
"""Why the plugin of an operator does not take a node, from the shapes of its inputs (None for what is not known) and its
attributes; nothing where it does."""

MATCH, COMBINE, MERGE = "TokenMatch", "TokenCombine", "TokenMerge"


def join(model: ir.Model, shapes: Shapes, refuses: Refuses) -> Iterator[Change]:
    """Put a TokenMerge in the place of each TokenMatch and the first TokenCombine of its pairs, in place.

    What else reads the pairs, as a second TokenCombine does, reads those that TokenMerge gives. Tokens or sizes that were
    computed from the pairs are not merged so.
    """
    graph = model.graph
    annotate(graph, shapes)
    for match in [node for node in graph if _is(model, node, MATCH)]:
        combine = next((node for node in _combining(model, match)), None)
        if combine is None:
            continue
        inputs = *combine.inputs[:2], match.inputs[0]
        attributes = _attributes(match) | _attributes(combine)
        if refuses(MERGE, [sizes(shapes, value) for value in inputs], attributes):
            continue
        op = GraphOps(graph, combine, opset(model), str(match.name).partition(f"_{MATCH}")[0])
        values = op(MERGE, *inputs, **attributes)
        for before, value in zip((*combine.outputs, *match.outputs), values, strict=True):
            value.shape, value.type = before.shape, before.type or value.type
            if before.is_graph_output():
                value.name = before.name
            before.replace_all_uses_with(value, replace_graph_outputs=True)
        op.add_functions(model)
        yield Change(label(match), operator_of(match), f"joined with {label(combine)}", "one launch less")
        graph.remove((combine, match), safe=True)
    graph.sort()  # What reads the pairs may stand in front of the tokens that are merged.
    called = {node.op_type for node in graph if node.domain == DOMAIN}
    for key in [key for key in model.functions if key[1] in (MATCH, COMBINE) and key[1] not in called]:
        del model.functions[key]


def sizes(shapes: Shapes, value: ir.Value | None) -> list[int | None] | None:
    """The axes of a value without those that follow from the batch, as `Refuses` takes them."""
    known = None if value is None else shapes.dims.get(str(value.name))
    return None if known is None else [size if size % BATCH or not size else None for size in known]


def _is(model: ir.Model, node: ir.Node, operator: str) -> bool:
    """Whether a node calls one of our functions, which is there."""
    return node.domain == DOMAIN and node.op_type == operator and node.op_identifier() in model.functions


def _combining(model: ir.Model, match: ir.Node) -> Iterator[ir.Node]:
    """The nodes that merge by these pairs tokens that do not depend on them, in order."""
    _, *pairs = match.outputs
    readers = {user for value in pairs for user in value.consumers()}
    for node in model.graph:
        if node not in readers or not _is(model, node, COMBINE) or [*node.inputs[2:]] != pairs:
            continue
        if not ancestors(value for value in node.inputs[:2] if value is not None) & {*match.outputs}:
            yield node


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}
