"""Ifs: a condition that is always the same is taken, nested too; attention in any other is refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.running import close, run
from tokenrt.errors import NothingToDoError
from tokenrt.passes.planning.plan import Budget

OUTPUT = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, ["B", 8])


def branch(
    name: str, nodes: list[onnx.NodeProto], output: str, weights: list[onnx.TensorProto]
) -> onnx.GraphProto:
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["B", 8])
    return helper.make_graph(nodes, name, [], [made], weights)


def other() -> onnx.GraphProto:
    """A branch of the same names as the first, that gives something else."""
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["first"], axis=1),
        helper.make_node("MatMul", ["first", "w1"], ["y"]),
    ]
    weights = [w for w in tiny.model().graph.initializer if w.name in ("zero", "w1")]
    return branch("other", nodes, "y", weights)


def choice(condition: str, truth: bool, whole: onnx.GraphProto) -> onnx.NodeProto:
    then, otherwise = (whole, other()) if truth else (other(), whole)
    return helper.make_node(
        "If", [condition], ["chosen"], name="choice", then_branch=then, else_branch=otherwise
    )


def inside(kind: str, truth: bool = True) -> onnx.ModelProto:
    """The whole tiny transformer in a branch; kind says where the condition comes from."""
    plain = tiny.model()
    whole = branch("whole", [*plain.graph.node], "y", [*plain.graph.initializer])
    before: list[onnx.NodeProto] = []
    constants = [onnx.numpy_helper.from_array(np.array(truth), "flag")]
    inputs = [*plain.graph.input]
    if kind == "node":
        constants = []
        value = onnx.numpy_helper.from_array(np.array(truth))
        before = [helper.make_node("Constant", [], ["flag"], value=value)]
    elif kind == "shape":
        size = 6 if truth else 7
        constants = [onnx.numpy_helper.from_array(np.array([size]), "six")]
        before = [
            helper.make_node("Shape", ["x"], ["dims"], start=1, end=2),
            helper.make_node("Equal", ["dims", "six"], ["flag"]),
        ]
    elif kind == "input":
        constants = []
        inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    node = choice("flag", truth, whole)
    if kind == "nested":
        wrapped = helper.make_graph([node], "outer", [], [OUTPUT])
        constants.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
        node = helper.make_node(
            "If", ["yes"], ["top"], name="outer", then_branch=wrapped, else_branch=other()
        )
    end = helper.make_node("Identity", [node.output[0]], ["result"])
    graph = helper.make_graph(
        [*before, node, end],
        "g",
        inputs,
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, ["B", 8])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[*plain.opset_import], ir_version=8)
    onnx.checker.check_model(made)
    return made


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("kind", ["initializer", "node", "shape", "nested"])
def test_blocks_in_a_branch_that_is_always_taken(kind: str, truth: bool) -> None:
    given = inside(kind, truth)
    assert len(tokenrt.inspect(ir.from_proto(given)).blocks) == 2
    same = tokenrt.reduce(ir.from_proto(given), method="tome", budget=Budget.remove(0), allow_noop=True).model
    close(run(same, tiny.picture()), run(tiny.model(), tiny.picture()))
    # The same reduction of the model that never had an If.
    made = tokenrt.reduce(ir.from_proto(given), method="tome", budget=Budget.remove(1)).model
    plain = tokenrt.reduce(ir.from_proto(tiny.model()), method="tome", budget=Budget.remove(1)).model
    close(run(made, tiny.picture()), run(plain, tiny.picture()))
    assert [value.name for value in made.graph.outputs] == ["result"]


def test_two_ifs_whose_branches_use_the_same_names() -> None:
    given = inside("initializer")
    first, end = given.graph.node[0], given.graph.node[-1]
    second = onnx.NodeProto()
    second.CopyFrom(first)
    second.name, second.output[0] = "again", "chosen_again"
    last = helper.make_node("Add", ["chosen", "chosen_again"], ["result"])
    given.graph.node.remove(end)
    given.graph.node.extend([second, last])
    onnx.checker.check_model(given)
    same = tokenrt.reduce(ir.from_proto(given), method="tome", budget=Budget.remove(0), allow_noop=True).model
    close(run(same, tiny.picture()), [2 * value for value in run(tiny.model(), tiny.picture())])


@pytest.mark.parametrize("captured", ["x", "first"])
def test_a_branch_that_gives_a_value_from_outside(captured: str) -> None:
    """Its output may be an input of the model or a value made before the If; as an output of the model it keeps its name."""
    made = tiny.model(tiny.CLASS + "  z = Neg (first)\n", output="float[B,8] y, float[B,?,?] z")
    made.graph.node.pop()
    passing = helper.make_graph(
        [helper.make_node("Identity", [captured], ["t"])],
        "t",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    turned = helper.make_graph(
        [helper.make_node("Neg", [captured], ["e"])],
        "e",
        [],
        [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)],
    )
    made.graph.node.append(
        helper.make_node("If", ["flag"], ["z"], name="choice", then_branch=passing, else_branch=turned)
    )
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "flag"))
    made.graph.output[1].type.tensor_type.ClearField("shape")
    same = tokenrt.reduce(ir.from_proto(made), method="tome", budget=Budget.remove(0), allow_noop=True).model
    assert [value.name for value in same.graph.outputs] == ["y", "z"]
    close(run(same, tiny.picture()), run(made, tiny.picture()))


def test_attention_in_an_if_that_stays_is_refused_by_name() -> None:
    given = inside("input")
    with pytest.raises(NothingToDoError) as caught:
        tokenrt.reduce(ir.from_proto(given), method="tome", budget=Budget.remove(1))
    text = str(caught.value)
    assert "If node 'choice'" in text
    assert "Softmax node 'b0_weights'" in text
    assert text.count("b0_weights") == 1
    assert "decided in each run, by 'flag'" in text
    assert "export the branch" in text
    assert "no attention found" not in text
