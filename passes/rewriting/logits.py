"""What is added to the scores of attention, as float32 numbers: masks, and log sizes; and what leaves padding out."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.passes.analysis.attention import hides
from tokenrt.passes.methods.contract import Value
from tokenrt.passes.ops.graph_backend import GraphOps

FLOAT = int(ir.DataType.FLOAT)
LOWEST = -3e38
SHOWN = -5000.0
"""Scores a mask lowers by more than this are hidden; exporters write -10000, the lowest number, or -inf."""


def received_of_real(op: GraphOps, attention: Value, size: Value) -> Value:
    """[B,N] attention [B,H,N,N] received, averaged over heads and the queries that are no padding; 0 for padding."""
    shown, heads = real(op, size), op("ReduceMean", attention, axes=[1], keepdims=0)
    number = op("Max", op("ReduceSum", shown, [2], keepdims=1), 1.0)
    return op("Squeeze", op("Mul", op("Div", op("MatMul", shown, heads), number), shown), [1])


def real(op: GraphOps, size: Value) -> Value:
    """[B,1,N] float32: 1 for tokens, 0 for padding."""
    return op("Transpose", op("Cast", op("Greater", size, 0.0), to=FLOAT), perm=[0, 2, 1])


def end_of_real(op: GraphOps, size: Value, *, last: bool) -> Value:
    """[B,1,N] float32: 1 for the first token that is no padding, the class token of a padded text, or for the last such."""
    shown = real(op, size)
    beside = op("CumSum", shown, 2, exclusive=1, reverse=int(last))
    return op("Mul", shown, op("Cast", op("Equal", beside, 0.0), to=FLOAT))


def log_size(op: GraphOps, size: ir.Value, batch: int, count: int) -> ir.Value:
    """[B,1,1,K] float32 log of the sizes; a size of 0 (padding) counts as nearly nothing, never as -inf."""
    found: ir.Value = op("Log", op("Max", op("Reshape", size, [batch, 1, 1, count]), 1e-30))
    return found


def additive(op: GraphOps, node: ir.Node, index: int, part: ir.Value | None = None) -> ir.Value | None:
    """A mask as float32 numbers added to the scores; None for inputs that are no mask of their own. part: some of it instead."""
    value = node.inputs[index] if part is None else part
    made: ir.Value | None = None
    if value is None:
        return None
    if node.op_type == "Where":
        if index == 0:
            made = op("Where", value, *((0.0, LOWEST) if hides(node, 2) else (LOWEST, 0.0)))
    elif value.dtype == ir.DataType.BOOL:
        made = op("Where", value, 0.0, LOWEST)
    elif node.op_type == "Sub":
        made = op("Max", op("Neg", op("Cast", value, to=FLOAT)), LOWEST) if index else None
    elif node.op_type in ("Add", "Attention", "Sum"):
        made = op("Max", op("Cast", value, to=FLOAT), LOWEST)
    return made
