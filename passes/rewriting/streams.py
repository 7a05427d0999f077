"""A stream of tokens as [B,N,C], whatever form a tensor holds it in, and back."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.analysis.stream import Layout
from tokenrt.passes.methods.contract import Value
from tokenrt.passes.ops.graph_backend import GraphOps

TURNS = {"sequence": [1, 0, 2], "channels": [0, 2, 1]}
"""What makes [B,N,C] of [N,B,C] and of [B,C,N]; each is its own inverse."""


def tell(
    op: GraphOps, value: Value, name: str, count: int, batch: int, stream: ir.Value, axis: int = 0
) -> None:
    """Add an output [B,count] of integers, of which a constant is the same for all pictures.

    B is `batch`, and where that is free the length of `stream` along an axis.
    """
    images = [batch] if batch >= 0 else op("Slice", op("Shape", stream), [axis], [axis + 1])
    told = op("Expand", value, op("Concat", images, [1], axis=0))
    told.name = name
    told.shape = ir.Shape((batch if batch >= 0 else "batch", count))
    op.graph.outputs.append(told)


def to_rows(op: GraphOps, value: ir.Value, held: Layout, count: int) -> ir.Value:
    """[B,N,C] of a tensor that holds `count` tokens."""
    unfolded = value if held.plain else op("Reshape", value, held.unfolded(count))
    rows: ir.Value = op("Transpose", unfolded, perm=TURNS[held.order]) if held.order in TURNS else unfolded
    return rows


def from_rows(op: GraphOps, rows: ir.Value, held: Layout, count: int, *, full: bool = False) -> ir.Value:
    """The tensor's own form of [B,N,C]; full: these are all tokens of the model, which lie on their grid again."""
    turned = op("Transpose", rows, perm=TURNS[held.order]) if held.order in TURNS else rows
    value: ir.Value = turned if held.plain else op("Reshape", turned, held.folded(count, full=full))
    return value
