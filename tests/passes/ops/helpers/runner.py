"""One operator as a model: one function node between inputs and outputs, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tokenrt.passes.ops import DOMAIN, OPERATORS, VERSION

OPSETS = (13, 14, 17, 18, 20, 23)
RANKS = {
    "index": 2,
    "value": 2,
    "keep": 2,
    "source": 2,
    "destination": 2,
    "merged": 3,
    "total": 3,
    "score": 2,
    "restored": 3,
    "center": 2,
    "assign": 2,
}
NUMBERS = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}


def rank(name: str, output: str) -> int:
    """Centres are tokens, but for TokenMeans, whose centres are vectors."""
    return 3 if (name, output) == ("TokenMeans", "center") else RANKS[output]


def model(
    name: str, inputs: Sequence[Any], attributes: Mapping[str, Any], opset: int = 18, body: str | None = None
) -> onnx.ModelProto:
    """Build the model; the batch is dynamic, and the node's own outputs are called inner_*. body: instead of the portable one."""
    operator = OPERATORS[name]
    kinds = {
        key: helper.np_dtype_to_tensor_dtype(x.dtype) for key, x in zip(operator.inputs, inputs, strict=True)
    }
    wanted = [
        helper.make_tensor_value_info(
            key, kinds.get(kind) or NUMBERS[kind], ["B", *(f"{key}_{i}" for i in range(1, rank(name, key)))]
        )
        for key, kind in zip(operator.outputs, operator.types, strict=True)
    ]
    given = [
        helper.make_tensor_value_info(key, kinds[key], [1 if x.shape[0] == 1 else "B", *x.shape[1:]])
        for key, x in zip(operator.inputs, inputs, strict=True)
    ]
    node = helper.make_node(
        name, list(operator.inputs), [f"inner_{key}" for key in operator.outputs], domain=DOMAIN
    )
    for key, value in operator.settle(attributes).items():
        kind = onnx.AttributeProto.INTS if value == [] else None
        node.attribute.append(helper.make_attribute(key, value, attr_type=kind))
    nodes = [node, *(helper.make_node("Identity", [f"inner_{key}"], [key]) for key in operator.outputs)]
    result = helper.make_model(
        helper.make_graph(nodes, name, given, wanted),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[operator.function(opset, body)],
        ir_version=8,
    )
    onnx.checker.check_model(result, full_check=True)
    return result


def run(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any], opset: int = 18) -> list[Any]:
    """Run the operator's function body in ONNX Runtime, and that for GPUs where it has one: both say the same."""
    found, gpu = run_body(name, inputs, attributes, opset), OPERATORS[name].gpu
    shapes = [np.shape(value)[1:] for value in inputs]
    settled = OPERATORS[name].settle(attributes)
    if gpu is None or not gpu.fits(settled, shapes):
        return found
    other = run_body(name, inputs, attributes, opset, gpu.body(settled, shapes))
    for portable, fast in zip(found, other, strict=True):
        assert (fast.dtype, fast.shape) == (portable.dtype, portable.shape)
        if fast.dtype.kind == "i":
            np.testing.assert_array_equal(fast, portable)
        else:
            np.testing.assert_allclose(
                fast.astype(np.float64),
                portable.astype(np.float64),
                rtol=2e-5 if fast.itemsize > 2 else 2e-2,
                atol=1e-6,
            )
    return found


def run_body(
    name: str, inputs: Sequence[Any], attributes: Mapping[str, Any], opset: int = 18, body: str | None = None
) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model(name, inputs, attributes, opset, body).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    feeds = {item.name: np.ascontiguousarray(x) for item, x in zip(session.get_inputs(), inputs, strict=True)}
    return list(session.run(None, feeds))


def expect(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> list[Any]:
    """Run the operator's NumPy reference."""
    found = OPERATORS[name].reference(*inputs, **OPERATORS[name].settle(attributes))
    return list(found) if isinstance(found, tuple) else [found]


def same_indices(
    name: str, inputs: Sequence[Any], attributes: Mapping[str, Any], opset: int = 18
) -> list[list[Any]]:
    """Run both; indices must be equal, so the inputs have exact numbers or wide margins."""
    found = run(name, inputs, attributes, opset)
    for actual, wanted in zip(found, expect(name, inputs, attributes), strict=True):
        np.testing.assert_array_equal(actual, wanted)
        assert actual.dtype == wanted.dtype == np.int64
    return [array.tolist() for array in found]
