"""The element types of a model's values."""

from __future__ import annotations

import onnx_ir as ir

from tokenrt.errors import UnsupportedError


def tell_types(model: ir.Model) -> None:
    """Give every value of the graph its type. Raises: UnsupportedError where one cannot be told."""
    from onnx_ir.passes.common import ShapeInferencePass

    def untold() -> list[ir.Node]:
        return [
            node for node in model.graph if any(value.name and value.dtype is None for value in node.outputs)
        ]

    if untold():
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    if left := untold():
        raise UnsupportedError(
            f"{left[0].op_type} node {left[0].name or left[0].outputs[0].name!r}: the type of what it gives cannot be "
            "told, so nothing after it can be cast: run shape inference on the model, or export it with types"
        )
