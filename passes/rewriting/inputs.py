"""Inputs that a model gains for a method."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from tokenrt.errors import PlanError

WHOLE = frozenset({"quotas", "segments"})
"""Those that are whole numbers; all others are float32."""


def gain(
    graph: ir.Graph, name: str, dims: Sequence[int | str], method: str, kind: ir.DataType | None = None
) -> ir.Value:
    """Add an input of this shape. kind: its type, if the name does not tell. Raises: PlanError where one has the name already."""
    if name in {value.name for value in graph.inputs}:
        raise PlanError(f"the model has an input {name!r} already, and {method} needs one of that name")
    kind = kind or (ir.DataType.INT64 if name in WHOLE else ir.DataType.FLOAT)
    value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(kind))
    graph.inputs.append(value)
    return value


def free_batch(graph: ir.Graph) -> str:
    """The name that the model has for a batch of any size."""
    names = (value.shape[0] for value in graph.inputs if value.shape)
    return next((str(name) for name in names if isinstance(name, ir.SymbolicDim) and name.value), "batch")
