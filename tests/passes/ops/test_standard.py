"""The NumPy table of standard operators against the reference evaluator of the onnx package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tokenrt.passes.ops.numpy_backend import NumpyOps
from tokenrt.passes.ops.standard import STANDARD

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 5)).astype(np.float32)
Y = RNG.standard_normal((2, 4, 5)).astype(np.float32)
TRUTH = X > 0
ROWS = np.array([[[3], [1]], [[0], [0]]])
PLACES = np.array([[3, 1], [0, 2]])
GAPS = X.copy()
GAPS[0, 1] = np.nan


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *(
        (name, [X, Y], {})
        for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Less", "Greater", "GreaterOrEqual")
    ),
    *((name, [TRUTH, TRUTH[:, :, ::-1]], {}) for name in ("And", "Or")),
    *((name, [np.abs(X)], {}) for name in ("Sqrt", "Log", "Exp", "Neg", "Identity", "Shape")),
    *((name, [X], {}) for name in ("Abs", "Cos", "Elu", "Erf", "Floor", "Round", "Sigmoid", "Tanh")),
    *(
        (name, [X], {"axes": [1, 2], "keepdims": 0})
        for name in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")
    ),
    ("ArgMin", [X], {"axis": 2, "keepdims": 0}),
    ("CumSum", [X, np.array(1)], {}),
    ("Pow", [np.abs(X), np.array(0.3, np.float32)], {}),
    ("Not", [TRUTH], {}),
    ("IsNaN", [GAPS], {}),
    ("ArgMax", [X], {"axis": 2, "keepdims": 0}),
    ("ArgMax", [X], {"axis": 1, "keepdims": 1}),
    ("Cast", [X], {"to": 7}),
    ("Cast", [TRUTH], {"to": 1}),
    ("CastLike", [TRUTH, X], {}),
    ("Concat", [X, Y[:, :2]], {"axis": 1}),
    ("Expand", [X[:, :, :1], ints(2, 1, 6)], {}),
    ("Gather", [X, ints(2, 0)], {"axis": 1}),
    ("GatherElements", [X[:, :, 0], PLACES], {"axis": 1}),
    ("GatherND", [X, ROWS], {"batch_dims": 1}),
    ("GatherND", [X, np.array([[1, 2], [0, 3]])], {}),
    ("LpNormalization", [X], {"axis": 2, "p": 2}),
    ("MatMul", [X, Y.transpose(0, 2, 1)], {}),
    ("Range", [np.array(1), np.array(9), np.array(2)], {}),
    ("ReduceSum", [X, ints(-1)], {"keepdims": 0}),
    ("ReduceSum", [X, ints(1, 2)], {"keepdims": 1}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("ScatterElements", [X[:, :, 0], PLACES, Y[:, :2, 0]], {"axis": 1}),
    ("Slice", [X, ints(1), ints(2**62), ints(1), ints(2)], {}),
    ("Slice", [X, ints(0), ints(1)], {}),
    ("Softmax", [X], {"axis": -1}),
    ("Squeeze", [X[:, :, :1], ints(-1)], {}),
    ("Squeeze", [X[:1, :, :1]], {}),
    ("ThresholdedRelu", [X], {"alpha": 0.2}),
    ("TopK", [np.round(X), ints(3)], {"axis": 1}),
    ("TopK", [np.round(X), ints(2)], {"axis": -1, "largest": 0}),
    ("Transpose", [X], {"perm": [0, 2, 1]}),
    ("Unsqueeze", [X, ints(0, 4)], {}),
    ("Where", [TRUTH, X, Y], {}),
]


def test_every_entry_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == set(STANDARD)


@pytest.mark.parametrize(
    ("name", "inputs", "attributes"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_equals_the_onnx_reference(name: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
    outputs = ["values", "indices"] if name == "TopK" else ["out"]
    node = helper.make_node(name, [f"x{i}" for i in range(len(inputs))], outputs, **attributes)
    values = [helper.make_tensor_value_info(key, 0, None) for key in (*node.input, *outputs)]
    graph = helper.make_graph([node], name, values[: len(inputs)], values[len(inputs) :])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    wanted = ReferenceEvaluator(model).run(None, {f"x{i}": x for i, x in enumerate(inputs)})
    found = NumpyOps()(name, *inputs, **attributes)
    for one, other in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
        assert np.shape(one) == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_topk_takes_nan_for_the_largest_as_onnx_runtime_does() -> None:
    values, places = NumpyOps()("TopK", np.array([[1.0, np.nan, 3.0]]), ints(2), axis=1)
    assert places.tolist() == [[1, 2]]
    assert np.isnan(values[0, 0])
