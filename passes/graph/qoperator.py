"""Open the operators that compute on codes, as ONNX Runtime's quantizer writes them (QOperator), into pairs around plain ones.

A QLinear operator is its plain one between a DequantizeLinear for each input and a QuantizeLinear for its result; the
runtime makes it of them again. Source: ContribOperators.md of ONNX Runtime 1.31, and the ONNX operators of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import onnx_ir as ir

from tokenrt.errors import UnsupportedError
from tokenrt.passes.graph.model import opset, substitute
from tokenrt.passes.ops.graph_backend import GraphOps

Opened = tuple[ir.Value | None, ...]
Opener = Callable[[GraphOps, ir.Node], Opened]
Triple = tuple[ir.Value | None, ...]
"""Codes, scale, zero point."""

REMEDY = "quantize in the QDQ format (quant_format=QuantFormat.QDQ), or reduce the float model, then quantize"

WIDE = 21
"""The operator set in which QuantizeLinear and DequantizeLinear take codes of 4 and 16 bits, and scales in blocks."""

BYTES = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32})


def open_codes(model: ir.Model) -> None:
    """Replace every such node in place. Raises: UnsupportedError naming one that has no plain form here."""
    nodes = [node for node in model.graph if (node.domain, node.op_type) in OPENERS]
    if not nodes:
        return
    op = GraphOps(model.graph, None, opset(model), "opened")
    for node in nodes:
        op.before = node
        for old, new in zip(node.outputs, OPENERS[node.domain, node.op_type](op, node), strict=False):
            if new is not None:
                substitute(model.graph, old, new)
        model.graph.remove(node, safe=True)


def _several(value: ir.Value | None) -> bool:
    """Whether a scale or zero point holds more than one number."""
    return value is not None and value.shape is not None and any(size != 1 for size in value.shape)


def _decode(op: GraphOps, parts: Triple, axis: int | None = None) -> ir.Value:
    """The floats of codes; axis: where a scale with several entries runs."""
    attributes = {"axis": axis} if _several(parts[1]) and axis is not None else {}
    value: ir.Value = op("DequantizeLinear", *(part for part in parts if part is not None), **attributes)
    return value


def _encode(op: GraphOps, value: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> ir.Value:
    result: ir.Value = op("QuantizeLinear", value, *(part for part in (scale, zero) if part is not None))
    return result


def _triple(node: ir.Node, start: int) -> Triple:
    return tuple(node.inputs[i] if i < len(node.inputs) else None for i in range(start, start + 3))


def _kept(node: ir.Node, *dropped: str) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items() if name not in dropped}


def _matmul(op: GraphOps, node: ir.Node) -> Opened:
    sides = _decode(op, _triple(node, 0), -2), _decode(op, _triple(node, 3), -1)
    return (_encode(op, op("MatMul", *sides), *_triple(node, 6)[:2]),)


def _conv(op: GraphOps, node: ir.Node) -> Opened:
    data, kernel = _triple(node, 0), _triple(node, 3)
    inputs = [_decode(op, data), _decode(op, kernel, 0)]
    bias = node.inputs[8] if len(node.inputs) > 8 else None
    if bias is not None:
        inputs.append(_decode(op, (bias, op("Mul", kernel[1], data[1])), 0))
    return (_encode(op, op("Conv", *inputs, **_kept(node)), *_triple(node, 6)[:2]),)


def _gemm(op: GraphOps, node: ir.Node) -> Opened:
    data, weight = _triple(node, 0), _triple(node, 3)
    turned = "transB" in node.attributes and node.attributes["transB"].value
    inputs = [_decode(op, data), _decode(op, weight, 0 if turned else 1)]
    bias, scale, zero = _triple(node, 6)
    if bias is not None:
        inputs.append(_decode(op, (bias, op("Mul", weight[1], data[1])), -1))
    result = op("Gemm", *inputs, **_kept(node))
    return (result if scale is None else _encode(op, result, scale, zero),)


def _binary(op: GraphOps, node: ir.Node, *, plain: str) -> Opened:
    result = op(plain, _decode(op, _triple(node, 0)), _decode(op, _triple(node, 3)))
    return (_encode(op, result, *_triple(node, 6)[:2]),)


def _unary(op: GraphOps, node: ir.Node, *, plain: str) -> Opened:
    result = op(plain, _decode(op, _triple(node, 0)), **_kept(node, "opset"))
    return (_encode(op, result, *_triple(node, 3)[:2]),)


def _softmax(op: GraphOps, node: ir.Node) -> Opened:
    axis = node.attributes["axis"].value if "axis" in node.attributes else -1
    if node.attributes["opset"].value < 13 and axis != -1:
        return _refused(op, node)
    return _unary(op, node, plain="Softmax")


def _concat(op: GraphOps, node: ir.Node) -> Opened:
    parts = [_decode(op, _triple(node, start)) for start in range(2, len(node.inputs), 3)]
    return (_encode(op, op("Concat", *parts, **_kept(node)), *node.inputs[:2]),)


def _standard(op: GraphOps, node: ir.Node) -> Opened:
    """The same of the standard domain, where that takes the type of the codes."""
    codes, scale, zero = (*_triple(node, 0),)
    kind = zero.dtype if zero is not None else codes.dtype if codes is not None else None
    if op.opset < WIDE and (kind not in BYTES or scale is None or scale.dtype != ir.DataType.FLOAT):
        raise UnsupportedError(
            f"com.microsoft.{node.op_type} node {node.name!r}: codes of type {kind} are standard from opset {WIDE} on, and the "
            f"model imports {op.opset}; bring the float model to opset {WIDE} (onnx.version_converter), then quantize it again"
        )
    return (op(node.op_type, *(value for value in node.inputs if value is not None), **_kept(node)),)


def _refused(op: GraphOps, node: ir.Node) -> Opened:
    raise UnsupportedError(
        f"{node.domain}.{node.op_type} node {node.name!r} computes on codes and has no rule; {REMEDY}"
    )


PLAIN: Mapping[str, Opener] = {
    "QLinearAdd": partial(_binary, plain="Add"),
    "QLinearLeakyRelu": partial(_unary, plain="LeakyRelu"),
    "QLinearMul": partial(_binary, plain="Mul"),
    "QLinearSigmoid": partial(_unary, plain="Sigmoid"),
    "DequantizeLinear": _standard,
    "QuantizeLinear": _standard,
    "QLinearConcat": _concat,
    "QLinearSoftmax": _softmax,
    "QGemm": _gemm,
}
REFUSED = (
    "DequantizeBFP DynamicQuantizeLSTM DynamicQuantizeMatMul MatMulBnb4 MatMulFpQ4 MatMulInteger16 "
    "MatMulIntegerToFloat MatMulNBits QAttention QEmbedLayerNormalization QLinearAveragePool QLinearGlobalAveragePool "
    "QLinearReduceMean QLinearWhere QMoE QOrderedAttention QOrderedLayerNormalization QOrderedMatMul QuantizeBFP"
).split()

OPENERS: Mapping[tuple[str, str], Opener] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    **dict.fromkeys((("com.microsoft", name) for name in REFUSED), _refused),
    **{("com.microsoft", name): opener for name, opener in PLAIN.items()},
}
