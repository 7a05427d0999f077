"""A stream of tokens as [B,N,C], whatever form a tensor holds it in, and back."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.analysis.stream import Layout
from tokenrt.passes.ops.graph_backend import GraphOps

TURNS = {"sequence": [1, 0, 2], "channels": [0, 2, 1]}
"""What makes [B,N,C] of [N,B,C] and of [B,C,N]; each is its own inverse."""


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
