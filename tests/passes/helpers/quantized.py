"""The tiny transformer, quantized: by ONNX Runtime's quantizer, or by hand in the form that modelopt writes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from tests.passes.helpers import tiny

Array = np.ndarray[Any, np.dtype[Any]]

WEIGHTED = frozenset({"wq", "wk", "wv", "w1", "w2"})
PAIRED = ("MatMul",)
EVERYTHING = None
LARGEST = {ml_dtypes.float8_e4m3fn: 448.0, ml_dtypes.float8_e5m2: 57344.0, np.int8: 127.0, np.uint8: 255.0}


class Pictures(CalibrationDataReader):
    """Four seeded inputs to calibrate with."""

    def __init__(self) -> None:
        self.left = [tiny.picture(seed=seed) for seed in range(4)]

    def get_next(self) -> dict[str, Array] | None:  # type: ignore[override]
        return self.left.pop() if self.left else None


def static(folder: Path, **options: Any) -> onnx.ModelProto:
    """By ONNX Runtime: pairs around the products with int8, or as the options say."""
    source, target = folder / "float.onnx", folder / "static.onnx"
    onnx.save(tiny.model(opset=options.pop("opset", 17)), source)
    given = {
        "quant_format": QuantFormat.QDQ,
        "op_types_to_quantize": PAIRED,
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
    }
    quantize_static(source, target, Pictures(), **(given | options))
    return onnx.load(target)


def dynamic(folder: Path, **options: Any) -> onnx.ModelProto:
    """By ONNX Runtime: DynamicQuantizeLinear and MatMulInteger."""
    source, target = folder / "float.onnx", folder / "dynamic.onnx"
    onnx.save(tiny.model(), source)
    quantize_dynamic(source, target, weight_type=QuantType.QInt8, **options)
    return onnx.load(target)


def paired(kind: Any = np.int8, *, activations: bool = True, products: bool = True) -> onnx.ModelProto:
    """By hand, as modelopt does: a pair with zero point 0 on every input of a product, weights per channel.

    activations: pairs on what is multiplied with weights. products: pairs on both inputs of the attention's products.
    """
    model = tiny.model(opset=19)
    graph = model.graph
    made = _weights_to_codes(graph, kind)
    for node in graph.node:
        if node.op_type == "MatMul":
            own = node.input[1] in WEIGHTED
            for index, name in enumerate(node.input):
                if name in WEIGHTED:
                    node.input[index] = f"{name}_float"
                elif activations if own else products:
                    made.extend(_pair(graph, f"{node.output[0]}_{index}", name, kind))
                    node.input[index] = f"{node.output[0]}_{index}_dq"
        made.append(node)
    _replace(graph, made)
    return model


def blocked(size: int = 2) -> onnx.ModelProto:
    """Weights of 4 bits in blocks of `size` rows, activations in float."""
    model = tiny.model(opset=21)
    model.ir_version = 10
    made: list[onnx.NodeProto] = []
    for tensor in [t for t in model.graph.initializer if t.name in WEIGHTED]:
        array = onnx.numpy_helper.to_array(tensor)
        blocks = array.reshape(-1, size, array.shape[1])
        scale = np.abs(blocks).max(axis=1) / 7
        codes = np.round(blocks / scale[:, None]).reshape(array.shape).astype(ml_dtypes.int4)
        made.append(_decoder(model.graph, tensor, codes, scale.astype(np.float32), axis=0, block_size=size))
    for node in model.graph.node:
        node.input[:] = [f"{name}_float" if name in WEIGHTED else name for name in node.input]
    _replace(model.graph, [*made, *model.graph.node])
    return model


def cut(model: onnx.ModelProto, keep: int = 4) -> onnx.ModelProto:
    """The graph with the tokens from `keep` on sliced off behind block 0's attention, by plain edits."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    bounds = {"cut_from": [0], "cut_to": [keep], "cut_axis": [1]}
    shapes = {"split": [0, keep, tiny.HEADS, tiny.WIDTH // tiny.HEADS], "join": [0, keep, tiny.WIDTH]}
    for name, numbers in [*bounds.items(), *((f"{name}_cut", n) for name, n in shapes.items())]:
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(numbers, np.int64), name))
    nodes: list[onnx.NodeProto] = []
    behind = False
    for node in made.graph.node:
        node.input[:] = ["attended_cut" if name == "b0_attended" else name for name in node.input]
        if behind:
            node.input[:] = [f"{name}_cut" if name in shapes else name for name in node.input]
        nodes.append(node)
        if "b0_attended" in node.output:
            behind = True
            nodes.append(
                onnx.helper.make_node("Slice", ["b0_attended", *bounds], ["attended_cut"], name="cut")
            )
    assert behind
    _replace(made.graph, nodes)
    return made


def run(
    model: onnx.ModelProto | str | os.PathLike[str], feeds: dict[str, Array], *, names: Iterable[str] = ()
) -> list[Array]:
    """The outputs, with every node computed as it is written: the int8 kernels of some processors saturate."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    results: list[Array] = session.run([*names] or None, feeds)
    return results


def count(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes quantize, make floats again, or multiply integers."""
    names = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")
    return {name: sum(node.op_type == name for node in model.graph.node) for name in names}


def _weights_to_codes(graph: onnx.GraphProto, kind: Any) -> list[onnx.NodeProto]:
    decoders = []
    for tensor in [t for t in graph.initializer if t.name in WEIGHTED]:
        array = onnx.numpy_helper.to_array(tensor)
        scale = np.abs(array).max(axis=0) / LARGEST[kind]
        codes = array / scale
        codes = (np.round(codes) if np.issubdtype(kind, np.integer) else codes).astype(kind)
        decoders.append(_decoder(graph, tensor, codes, scale.astype(np.float32), axis=1))
    return decoders


def _decoder(
    graph: onnx.GraphProto, tensor: onnx.TensorProto, codes: Array, scale: Array, **attributes: int
) -> onnx.NodeProto:
    name = tensor.name
    graph.initializer.remove(tensor)
    graph.initializer.append(onnx.numpy_helper.from_array(codes, f"{name}_codes"))
    graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}_scale"))
    inputs = [f"{name}_codes", f"{name}_scale"]
    return onnx.helper.make_node(
        "DequantizeLinear", inputs, [f"{name}_float"], name=f"{name}_dq", **attributes
    )


def _pair(graph: onnx.GraphProto, stem: str, name: str, kind: Any) -> list[onnx.NodeProto]:
    """A pair of its own, with a scale of its own that is wide enough for this model, and the zero point 0."""
    scale = np.float32((6 + len(graph.initializer) / 100) / LARGEST[kind])
    given = [f"{stem}_scale", f"{stem}_zero"]
    for label, array in zip(given, (np.asarray(scale), np.zeros((), kind)), strict=True):
        graph.initializer.append(onnx.numpy_helper.from_array(array, label))
    make = onnx.helper.make_node
    return [
        make("QuantizeLinear", [name, *given], [f"{stem}_q"], name=f"{stem}_q"),
        make("DequantizeLinear", [f"{stem}_q", *given], [f"{stem}_dq"], name=f"{stem}_dq"),
    ]


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
