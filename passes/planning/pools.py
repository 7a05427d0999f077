"""Where the tokens become one behind the last block, and the one rule for it: those that are left count, by their sizes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from tokenrt.passes.analysis.flow import Flow
from tokenrt.passes.analysis.structure import Structure
from tokenrt.passes.graph.ancestry import nested

PICKS = frozenset({"Gather", "Shape", "Slice", "Split"})
"""Behind these no axis counts tokens either, but they read protected tokens, which are the same restored or not."""

BY_SIZE = "over the tokens that are left, each counted by its size; dropped tokens do not count"
AS_THEY_ARE = "over the tokens that are left"
WORDS = {
    "ReduceMean": ("mean", BY_SIZE),
    "GlobalAveragePool": ("mean", BY_SIZE),
    "ReduceSum": ("sum", BY_SIZE),
    "ReduceMax": ("max", AS_THEY_ARE),
    "GlobalMaxPool": ("max", AS_THEY_ARE),
    "ReduceMin": ("min", AS_THEY_ARE),
    "MatMul": ("attention", BY_SIZE),
    "Attention": ("attention", BY_SIZE),
}


def pools(flow: Flow, structure: Structure) -> list[ir.Node]:
    """The nodes behind the last block where the tokens that are left become one."""
    stopped = {blocked.node for blocked in flow.blocked}
    return [
        node
        for node in flow.inputs
        if node not in structure.body
        and node not in stopped
        and node.op_type not in PICKS
        and [*streams(node, flow, every=False)]
        and not any(flow.marks.get(value) for value in node.outputs)
    ]


def streams(node: ir.Node, flow: Flow, every: bool) -> Iterator[ir.Value]:
    """What a node reads that counts tokens: every such input, or only those that tokens have left."""
    if any(True for _ in nested(node)):
        return
    for value, marks in zip(node.inputs, flow.inputs.get(node, ()), strict=False):
        if value is not None and marks and (every or any(mark.stage for mark in marks)):
            yield value


def told(flow: Flow, structure: Structure) -> tuple[str, ...]:
    """A line for each pool: where it is, and what it counts."""
    return tuple(
        f"{WORDS[node.op_type][0]} pooling at {node.op_type} node {node.name!r}: {WORDS[node.op_type][1]}"
        for node in pools(flow, structure)
        if node.op_type in WORDS
    )
