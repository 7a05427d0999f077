"""Quantized graphs as the analyses see them: rules, weights that stay codes, attention between pairs, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxruntime.quantization import QuantFormat, QuantType

from tests.passes.helpers import quantized
from tokenrt.errors import UnsupportedError
from tokenrt.passes.analysis.flow import Flow, follow
from tokenrt.passes.analysis.marks import Mark
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.graph.shapes import annotate, infer

X = "float[B,6,4] x"
SCALES = "float s1 = {0.1}, int8 z1 = {0}"
PER_CHANNEL = "float[4] s = {1, 2, 3, 4}, int8[4] z = {0, 0, 0, 0}"
PER_TOKEN = "float[6] s = {1, 2, 3, 4, 5, 6}, int8[6] z = {0, 0, 0, 0, 0, 0}"
WEIGHT = "int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}"


def followed(body: str, constants: str, inputs: str = X) -> tuple[ir.Model, Flow]:
    """The flow of a graph whose first input counts tokens on axis 1 behind a reduction."""
    last = body.rstrip().splitlines()[-1].split("=")[0].strip().split(",")[0]
    head = '<ir_version: 10, opset_import: ["": 21]>'
    model = ir.from_proto(
        onnx.parser.parse_model(f"{head}\nmain ({inputs}) => ({last}) <{constants}> {{\n{body}\n}}")
    )
    shapes = infer(model)
    annotate(model.graph, shapes)
    seeds = {model.graph.inputs[0]: (Mark(1, 1),)}
    restored = {None: frozenset(model.graph.outputs)}
    return model, follow(model.graph, shapes, seeds, tokens=6, protected=(), restored=restored)


PASSES = {
    "per-tensor": ("q = QuantizeLinear (x, s1, z1)\ny = DequantizeLinear (q, s1, z1)", SCALES),
    "per-tensor-of-one-entry": ("y = QuantizeLinear <axis = 1> (x, s)", "float[1] s = {0.1}"),
    "per-channel": (
        "q = QuantizeLinear <axis = 2> (x, s, z)\ny = DequantizeLinear <axis = -1> (q, s, z)",
        PER_CHANNEL,
    ),
    "dynamic": ("y, s, z = DynamicQuantizeLinear (x)", ""),
    "integers": ("q, s, z = DynamicQuantizeLinear (x)\ny = MatMulInteger (q, w, z)", WEIGHT),
    "rescaled": (
        "q, s, z = DynamicQuantizeLinear (x)\ni = MatMulInteger (q, w, z)\nf = Cast <to = 1> (i)\ny = Mul (f, s)",
        WEIGHT,
    ),
}


@pytest.mark.parametrize("name", PASSES)
def test_the_token_axis_passes(name: str) -> None:
    model, flow = followed(*PASSES[name])
    assert not flow.blocked
    assert flow.marks[model.graph.outputs[0]] == (Mark(1, 1),)


BLOCKS = {
    "scale-per-token": (
        "y = QuantizeLinear <axis = 1> (x, s, z)",
        PER_TOKEN,
        "a scale of its own for each token",
    ),
    "scale-per-token-counted-from-the-end": (
        "y = QuantizeLinear <axis = -2> (x, s, z)",
        PER_TOKEN,
        "a scale of its own for each token",
    ),
    "decoded-per-token": (
        "q = QuantizeLinear (x, s1, z1)\ny = DequantizeLinear <axis = 1> (q, s, z)",
        f"{SCALES}, {PER_TOKEN}",
        "a scale of its own for each token",
    ),
    "blocks-of-channels": (
        "y = QuantizeLinear <axis = 2, block_size = 2> (x, s)",
        "float[1,6,2] s = {" + ", ".join(["1"] * 12) + "}",
        "a scale of its own for each token",
    ),
    "zero-point-per-token": (
        "q, s, z = DynamicQuantizeLinear (x)\ny = MatMulInteger (q, w, zs)",
        f"{WEIGHT}, uint8[6] zs = {{1, 2, 3, 4, 5, 6}}",
        "a zero point of its own for each token",
    ),
    "token-mixing": (
        "q, s, z = DynamicQuantizeLinear (x)\ny = MatMulInteger (m, q)",
        "int8[6,6] m = {" + ", ".join(["1"] * 36) + "}",
        "token mixing",
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_belongs_to_single_tokens_is_refused(name: str) -> None:
    body, constants, reason = BLOCKS[name]
    inputs = X.replace("B", "1") if "blocks" in name else X
    model, flow = followed(body, constants, inputs)
    (blocked,) = flow.blocked
    assert reason in blocked.reason
    assert blocked.node is model.graph.outputs[0].producer()


def test_a_convolution_of_integers_needs_the_grid() -> None:
    _, flow = followed(
        "q, s, z = DynamicQuantizeLinear (x)\ny = ConvInteger (q, k)",
        "int8[4,6,1] k = {" + ", ".join(["1"] * 24) + "}",
    )
    assert [blocked.kind for blocked in flow.blocked] == ["grid"]


Made = Callable[[Path], onnx.ModelProto]
FORMS: dict[str, Made] = {
    "ort-qdq": quantized.static,
    "ort-qdq-per-channel": lambda folder: quantized.static(folder, per_channel=True),
    "ort-qdq-all-operators": lambda folder: quantized.static(
        folder, op_types_to_quantize=None, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8
    ),
    "ort-qdq-16-bits": lambda folder: quantized.static(folder, opset=21, activation_type=QuantType.QUInt16),
    "ort-qoperator": lambda folder: quantized.static(folder, quant_format=QuantFormat.QOperator),
    "ort-qoperator-all-operators": lambda folder: quantized.static(
        folder, quant_format=QuantFormat.QOperator, op_types_to_quantize=None
    ),
    "ort-dynamic": quantized.dynamic,
    "ort-dynamic-per-channel": lambda folder: quantized.dynamic(folder, per_channel=True),
    "ort-dynamic-all-products": lambda folder: quantized.dynamic(
        folder, extra_options={"MatMulConstBOnly": False}
    ),
    "modelopt-int8": lambda _: quantized.paired(),
    "modelopt-e4m3": lambda _: quantized.paired(ml_dtypes.float8_e4m3fn),
    "modelopt-e5m2": lambda _: quantized.paired(ml_dtypes.float8_e5m2),
    "int4-weights-in-blocks": lambda _: quantized.blocked(),
}


@pytest.mark.parametrize("form", FORMS)
def test_blocks_are_found_and_weights_stay_codes(form: str, tmp_path: Path) -> None:
    model = FORMS[form](tmp_path)
    prepared = prepare(ir.from_proto(model))
    assert len(prepared.structure.blocks) == 2
    assert not prepared.refusals
    assert all(block.attended is not None for block in prepared.structure.blocks)
    assert not any(isinstance(block.branch, str) for block in prepared.structure.blocks)
    kept = ir.to_proto(prepared.model)
    if "qoperator" not in form:
        assert quantized.count(kept) == quantized.count(model)
    # Nothing in it computes another thing than before.
    feeds = {"x": np.random.default_rng(3).standard_normal((3, 6, 4), np.float32)}
    (before,), (after,) = quantized.run(model, feeds), quantized.run(kept, feeds)
    assert np.abs(after - before).max() <= (0.05 if "qoperator" in form else 1e-6)


def test_a_weight_behind_codes_is_a_constant(tmp_path: Path) -> None:
    """Its numbers are codes times scale; the node stays, and nothing computes them before they are asked for."""
    model = quantized.paired()
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    prepared = prepare(ir.from_proto(model))
    (value,) = [v for node in prepared.model.graph for v in node.outputs if v.name == "wq_float"]
    assert value.const_value is not None
    assert value.producer() is not None
    expected = arrays["wq_codes"].astype(np.float32) * arrays["wq_scale"]
    assert np.array_equal(value.const_value.numpy(), expected)


def test_a_weight_of_codes_and_a_cast_stays(tmp_path: Path) -> None:
    """Codes made floats by a Cast and a Mul, as weight-only exports write them, keep their bytes."""
    model = quantized.paired(activations=False, products=False)
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        codes, scale = node.input
        place = list(model.graph.node).index(node)
        cast = onnx.helper.make_node("Cast", [codes], [f"{codes}_cast"], to=1)
        model.graph.node.remove(node)
        model.graph.node.insert(
            place, onnx.helper.make_node("Mul", [f"{codes}_cast", scale], list(node.output))
        )
        model.graph.node.insert(place, cast)
    prepared = prepare(ir.from_proto(model))
    assert len(prepared.structure.blocks) == 2
    kinds = {str(name): value.dtype for name, value in prepared.model.graph.initializers.items()}
    assert {kinds[f"{name}_codes"] for name in quantized.WEIGHTED} == {ir.DataType.INT8}


REFUSED: dict[str, tuple[Any, str]] = {
    "operator": (
        lambda model: model.graph.node.add(
            op_type="QAttention", domain="com.microsoft", name="fused", input=["x"], output=["other"]
        ),
        r"com\.microsoft\.QAttention node 'fused'.*QuantFormat\.QDQ.*reduce the float model",
    ),
    "int4-before-opset-21": (
        lambda model: model.graph.node.add(
            op_type="DequantizeLinear",
            domain="com.microsoft",
            name="narrow",
            input=["codes4", "wq_scale"],
            output=["other"],
        ),
        r"DequantizeLinear node 'narrow'.*INT4.*opset 21",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_plain_form_is_named(name: str) -> None:
    change, message = REFUSED[name]
    model = quantized.paired()
    model.opset_import.add(domain="com.microsoft", version=1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 2), ml_dtypes.int4), "codes4"))
    change(model)
    with pytest.raises(UnsupportedError, match=message):
        prepare(ir.from_proto(model))
