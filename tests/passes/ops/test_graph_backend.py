"""GraphOps: what it appends, where, and under which names."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tokenrt.errors import UnsupportedError
from tokenrt.passes.ops import DOMAIN
from tokenrt.passes.ops.graph_backend import GraphOps


def empty(kind: ir.DataType = ir.DataType.FLOAT) -> tuple[ir.Graph, ir.Value]:
    x = ir.Value(name="x", shape=ir.Shape(["B", 9, 4]), type=ir.TensorType(kind))
    return ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="g"), x


def test_names_are_plain_unique_and_prefixed() -> None:
    graph, x = empty()
    taken = ir.node("Relu", [x], name="site_Add_0")
    taken.outputs[0].name = "site_Add_out_0"
    graph.append(taken)
    op = GraphOps(graph, None, 18, "site")
    for _ in range(3):
        op("TopK", op("Add", x, 1.0), np.array([2]), axis=1)
    names = [node.name for node in graph] + [value.name for node in graph for value in node.outputs]
    names += list(graph.initializers)
    assert len(set(names)) == len(names)
    assert all(str(name).isidentifier() and str(name).startswith("site_") for name in names)


def test_equal_constants_share_one_initializer() -> None:
    graph, x = empty()
    op = GraphOps(graph, None, 18, "site")
    op("Add", op("Mul", x, 2.0), 2.0)
    op("Add", x, np.float64(2.0))
    op("Gather", x, np.array([0, 1]), axis=1)
    op("Gather", x, [0, 1], axis=1)
    assert [value.dtype for value in graph.initializers.values()] == [ir.DataType.FLOAT, ir.DataType.INT64]


def test_nodes_go_before_the_given_one() -> None:
    graph, x = empty()
    last = ir.node("Relu", [x], name="last")
    graph.append(last)
    op = GraphOps(graph, last, 18, "site")
    op("Sqrt", op("Neg", x))
    assert [node.op_type for node in graph] == ["Neg", "Sqrt", "Relu"]


def test_casts_to_the_type_a_value_has_are_left_out() -> None:
    graph, x = empty(ir.DataType.FLOAT16)
    op = GraphOps(graph, None, 13, "site")
    wide = op("Cast", x, to=1)
    assert wide.dtype == ir.DataType.FLOAT
    assert op("Cast", wide, to=1) is wide
    assert op("CastLike", wide, x).dtype == ir.DataType.FLOAT16
    assert op("CastLike", wide, wide) is wide
    assert [node.op_type for node in graph] == ["Cast", "Cast"]


def test_every_value_has_its_type() -> None:
    graph, x = empty()
    op = GraphOps(graph, None, 18, "site")
    values, indices = op("TopK", x, np.array([2]), axis=1)
    mask = op("IsNaN", values)
    assert (values.dtype, indices.dtype, mask.dtype) == (
        ir.DataType.FLOAT,
        ir.DataType.INT64,
        ir.DataType.BOOL,
    )
    assert op("Where", mask, values, 0.0).dtype == ir.DataType.FLOAT
    assert op("Shape", x).dtype == op("ArgMax", x, axis=1).dtype == ir.DataType.INT64


def test_functions_and_domain_are_added_once_and_the_type_is_filled_in() -> None:
    graph, x = empty(ir.DataType.FLOAT16)
    op = GraphOps(graph, None, 18, "site")
    size = op("Expand", op.constant(np.ones((1, 1, 1), np.float32)), op("Shape", x))
    index = op("TokenSelect", op("Squeeze", size, np.array([-1])), keep=3, protect=1, order=0)
    merged, total = op("TokenCombine", x, size, index, index, index)
    assert (merged.dtype, total.dtype) == (ir.DataType.FLOAT16, ir.DataType.FLOAT)
    node = merged.producer()
    assert node is not None
    assert node.attributes["type"].as_int() == onnx.TensorProto.FLOAT16
    model = ir.Model(graph, ir_version=10)
    op.add_functions(model)
    op.add_functions(model)
    assert sorted(name for _, name, _ in model.functions) == ["TokenCombine", "TokenSelect"]
    assert model.opset_imports[DOMAIN] == 1


def test_nothing_is_added_when_no_operator_was_used() -> None:
    graph, x = empty()
    op = GraphOps(graph, None, 18, "site")
    op("Neg", x)
    model = ir.Model(graph, ir_version=10)
    op.add_functions(model)
    assert not model.functions
    assert DOMAIN not in model.opset_imports


def test_an_old_opset_and_an_unknown_type_are_refused() -> None:
    graph, _x = empty()
    with pytest.raises(UnsupportedError, match="opset 13 or later"):
        GraphOps(graph, None, 12, "site")
    unknown = ir.Value(name="mystery")
    with pytest.raises(UnsupportedError, match="mystery"):
        GraphOps(graph, None, 18, "site")("Neg", unknown)
