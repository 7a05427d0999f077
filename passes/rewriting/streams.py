"""A stream of tokens as [B,N,C], whatever form a tensor holds it in, and back."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.analysis.stream import Layout
from tokenrt.passes.methods.contract import Value
from tokenrt.passes.ops.graph_backend import GraphOps

TURNS = {"sequence": [1, 0, 2], "channels": [0, 2, 1]}
"""What makes [B,N,C] of [N,B,C] and of [B,C,N]; each is its own inverse."""

ASIDE = [0, 2, 1, 3, 4]
"""What brings the tokens of [B,a,N,b,C] in front of the rows between, and back."""

END = 2**31 - 1


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
    if held.across > 1:
        return _gathered(op, value, held, count)
    unfolded = value if held.plain else op("Reshape", value, held.unfolded(count))
    rows: ir.Value = op("Transpose", unfolded, perm=TURNS[held.order]) if held.order in TURNS else unfolded
    return rows


def from_rows(
    op: GraphOps,
    rows: ir.Value,
    held: Layout,
    count: int,
    *,
    full: bool = False,
    before: ir.Value | None = None,
) -> ir.Value:
    """The tensor's own form of [B,N,C]; full: these are all tokens of the model, which lie on their grid again.

    before: a tensor of that form with the entries that lead the tokens.
    """
    if held.across > 1:
        return _spread(op, rows, held, count, full, before)
    turned = op("Transpose", rows, perm=TURNS[held.order]) if held.order in TURNS else rows
    value: ir.Value = turned if held.plain else op("Reshape", turned, held.folded(count, full=full))
    return value


def _gathered(op: GraphOps, value: ir.Value, held: Layout, count: int) -> ir.Value:
    """[B,N,W*C]: what all rows of a picture hold of a token, side by side; of tokens in front that are one for all, W copies."""
    axis, lead, offset = held.marks[0].axis, held.lead, held.marks[0].offset
    body = op("Slice", value, [lead], [END], [axis]) if lead else value
    free, batch = count - offset, held.batch
    if held.between > 1:
        body = op("Transpose", op("Reshape", body, held.unfolded(free)), perm=ASIDE)
    rows: ir.Value = op("Reshape", body, [batch, free, held.channels])
    if not offset:
        return rows
    first = op("Slice", value, [0], [lead], [axis])
    first = op("Reshape", first, [batch, lead, held.channels // held.across])
    joined: ir.Value = op("Concat", op("Tile", first, [1, 1, held.across]), rows, axis=1)
    return joined


def _spread(
    op: GraphOps, rows: ir.Value, held: Layout, count: int, full: bool, before: ir.Value | None
) -> ir.Value:
    """The tensor's own form of what was gathered, behind the entries that lead it in `before`."""
    axis, lead, offset = held.marks[0].axis, held.lead, held.marks[0].offset
    body = op("Slice", rows, [offset], [END], [1]) if offset else rows
    if held.between > 1:
        batch, between, free, behind, channels = held.unfolded(count - offset)
        body = op("Reshape", body, [batch, free, between, behind, channels])
        body = op("Transpose", body, perm=ASIDE)
    body = op("Reshape", body, held.folded(count - offset, full=full))
    if not lead:
        made: ir.Value = body
        return made
    assert before is not None
    joined: ir.Value = op("Concat", op("Slice", before, [0], [lead], [axis]), body, axis=axis)
    return joined
