"""Options of ONNX Runtime's CPU sessions: one place for what it must not be let do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

QUIET = 3
"""Errors only."""


def session_options(model: str | Path, *, severity: int = QUIET, layouts: bool = True) -> Any:
    """`onnxruntime.SessionOptions` for the model of a file.

    severity: of what is logged, from it on. layouts: whether data may change its layout for convolutions; never in
    a model with float16 weights, whose convolutions crash ONNX Runtime 1.31 then.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = severity
    if not layouts or holds_half(model):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


def holds_half(model: str | Path) -> bool:
    """Whether any weight of the model of a file is float16. False for a file that holds no model."""
    try:
        graph = ir.load(model).graph
    except Exception:
        # Whatever the reader raises: the runtime says better what is wrong with the file.
        return False
    return any(value.dtype == ir.DataType.FLOAT16 for value in graph.initializers.values())
