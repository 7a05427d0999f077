"""What other tools make of an exported file: int8 by ONNX Runtime's quantizer, or a graph in the branch of an If."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from .entry import IMAGE, Finish


class Pictures(CalibrationDataReader):
    """Four seeded batches to calibrate with."""

    def __init__(self, name: str, batch: int) -> None:
        made = np.random.default_rng(0)
        shape = batch, 3, IMAGE, IMAGE
        self.left = [{name: made.standard_normal(shape, np.float32)} for _ in range(4)]

    def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
        return self.left.pop() if self.left else None


def int8(operators: tuple[str, ...] | None) -> Finish:
    """Pairs of QuantizeLinear and DequantizeLinear around these operators, or around all; weights per channel."""

    def quantize(path: Path) -> None:
        prepared = path.with_suffix(".prepared")
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        given = onnx.load(prepared).graph.input[0]
        batch = given.type.tensor_type.shape.dim[0].dim_value or 2
        quantize_static(
            str(prepared),
            str(path),
            Pictures(given.name, batch),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        os.unlink(prepared)

    return quantize


def dynamic(path: Path) -> None:
    """Scales computed from the values that come: DynamicQuantizeLinear and MatMulInteger."""
    prepared = path.with_suffix(".prepared")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    # The quantizer turns weights and stumbles over shapes that are noted for them.
    model = onnx.load(prepared)
    del model.graph.value_info[:]
    # A convolution of integers takes unsigned weights alone.
    quantize_dynamic(model, str(path), op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    os.unlink(prepared)


def in_if(path: Path) -> None:
    """The whole graph in the branch that an If with a constant condition takes."""
    model = onnx.load(path)
    graph = model.graph
    taken = onnx.helper.make_graph(graph.node, "taken", [], graph.output, graph.initializer)
    for value in taken.output:
        inner = f"{value.name}_inside"
        for node in taken.node:
            node.input[:] = [inner if name == value.name else name for name in node.input]
            node.output[:] = [inner if name == value.name else name for name in node.output]
        value.name = inner
    kind = graph.input[0].type.tensor_type.elem_type
    left = onnx.helper.make_tensor_value_info("left", kind, None)
    flat = onnx.helper.make_node("Flatten", [graph.input[0].name], ["left"])
    other = onnx.helper.make_graph([flat], "other", [], [left])
    names = [value.name for value in graph.output]
    chosen = onnx.helper.make_node(
        "If", ["truth"], names, name="chosen", then_branch=taken, else_branch=other
    )
    truth = onnx.numpy_helper.from_array(np.array(True), "truth")
    whole = onnx.helper.make_graph([chosen], "whole", graph.input, graph.output, [truth])
    onnx.save(
        onnx.helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version), path
    )
