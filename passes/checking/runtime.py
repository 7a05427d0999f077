"""Options of ONNX Runtime's CPU sessions: one place for what it must not be let do."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from tokenrt.passes.graph.model import ModelLike

QUIET = 3
"""Errors only."""

FLOAT8 = frozenset(kind for kind in ir.DataType if kind.name.startswith("FLOAT8"))


def session_options(model: ModelLike, *, severity: int = QUIET, layouts: bool = True) -> Any:
    """`onnxruntime.SessionOptions` for a model.

    severity: of what is logged, from it on. layouts: whether data may change its layout for convolutions; never in
    a model with float16 weights, whose convolutions crash ONNX Runtime 1.31 then.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = severity
    kinds = kinds_of(model)
    if kinds & FLOAT8:
        # ONNX Runtime 1.31 puts float8 into a QLinearMatMul or a Transpose, whose kernels do not take it.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif not layouts or ir.DataType.FLOAT16 in kinds:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


def kinds_of(model: ModelLike) -> frozenset[ir.DataType]:
    """The element types of the constants of a model; none for a file that holds no model."""
    try:
        graph = (model if isinstance(model, ir.Model) else ir.load(model)).graph
    except Exception:
        # Whatever the reader raises: the runtime says better what is wrong with the file.
        return frozenset()
    return frozenset(value.dtype for value in graph.initializers.values() if value.dtype is not None)
