"""Runs what a method writes on arrays: at once by a backend, or as a graph of its own in ONNX Runtime."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tokenrt.errors import PlanError
from tokenrt.passes.methods.contract import Ops, Value
from tokenrt.passes.ops import numpy_backend
from tokenrt.passes.ops.contract import Array

BACKENDS = ("numpy", "onnxruntime")
OPSET = 18

Outputs = Callable[[Ops, Mapping[str, Value], Mapping[str, Value]], dict[str, Value | None]]
"""What a method makes of tensors and of the state of the site before, by name; None for what it does not make."""


def run(
    backend: str | Ops, name: str, arrays: Mapping[str, Array], state: Mapping[str, Any], outputs: Outputs
) -> dict[str, Array | None]:
    """Return the outputs of the method called `name` as arrays. backend: one of BACKENDS, or what runs operators on arrays."""
    carried = {key: np.asarray(value) for key, value in state.items()}
    if backend == "onnxruntime":
        return _on_onnxruntime(name, arrays, carried, outputs)
    op = numpy_backend.NumpyOps() if isinstance(backend, str) else backend
    own, before = ({key: op.constant(array) for key, array in given.items()} for given in (arrays, carried))
    return outputs(op, own, before)


def whole(name: str, value: Any) -> int:
    """The number, which must be whole. Raises: PlanError naming it."""
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise PlanError(f"{name}={value!r}: expected a whole number of tokens")


def _on_onnxruntime(
    name: str, arrays: Mapping[str, Array], state: Mapping[str, Array], outputs: Outputs
) -> dict[str, Array | None]:
    import onnx_ir as ir
    import onnxruntime

    from tokenrt.passes.ops.graph_backend import GraphOps

    feeds = {
        key: array if key == "x" and array.dtype == np.float16 else _narrow(array)
        for key, array in (*arrays.items(), *((f"state_{key}", value) for key, value in state.items()))
    }
    inputs = [
        ir.Value(
            name=key,
            shape=ir.Shape(["B", *array.shape[1:]]),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        )
        for key, array in feeds.items()
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": OPSET}, name=name)
    op = GraphOps(graph, None, OPSET, prefix=f"tokenrt_{name}")
    values = {value.name or "": value for value in inputs}
    results = outputs(op, values, {key: values[f"state_{key}"] for key in state})
    wanted = {key: value for key, value in results.items() if value is not None}
    for value in wanted.values():
        graph.outputs.append(op("Identity", value))
    model = ir.Model(graph, ir_version=10)
    op.add_functions(model)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    used = {item.name for item in session.get_inputs()}
    found = session.run(None, {key: array for key, array in feeds.items() if key in used})
    return dict.fromkeys(results) | dict(zip(wanted, found, strict=True))


def _narrow(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array
