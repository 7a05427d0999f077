"""What weighs tokens and is no attention that can be read is named; what only looks like it is not."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.passes.helpers import tiny
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

SOFTMAX = "  b{n}_weights = Softmax <axis = -1> (b{n}_scores)\n"
CASES = {
    "sigmoid": (
        "  b{n}_weights = Sigmoid (b{n}_scores)\n",
        "Sigmoid makes the weights of the scores, not a softmax",
    ),
    "talking heads": (
        "  b{n}_last = Transpose <perm = [0, 2, 3, 1]> (b{n}_scores)\n  b{n}_said = MatMul (b{n}_last, talk)\n"
        "  b{n}_back = Transpose <perm = [0, 3, 1, 2]> (b{n}_said)\n  b{n}_weights = Softmax <axis = -1> (b{n}_back)\n",
        r"MatMul node .* mixes the heads of the scores \(talking heads\)",
    ),
    "gated positions": (
        "  b{n}_own = Softmax <axis = -1> (b{n}_scores)\n  b{n}_weights = Add (b{n}_own, places)\n",
        "Add node .* mixes its weights with others",
    ),
    "over the heads": (
        "  b{n}_weights = Softmax <axis = 1> (b{n}_scores)\n",
        "the softmax runs over axis 1 of its scores, which is neither that of the queries nor that of the keys",
    ),
    "exponents": ("  b{n}_weights = Exp (b{n}_scores)\n", "Exp makes the weights of the scores"),
    "sines": (
        "  b{n}_sine = Sin (b{n}_scores)\n  b{n}_weights = Softmax <axis = -1> (b{n}_sine)\n",
        "Sin node .* stands between the product of queries and keys and the softmax",
    ),
}
ARRAYS = {
    "talk": np.array([[1, 0.5], [0.5, 1]], np.float32),
    "places": np.full((1, 1, 6, 6), 0.1, np.float32),
}


def model(lines: str, head: str = tiny.CLASS) -> ir.Model:
    attention = tiny.ATTENTION.replace(SOFTMAX, lines)
    made = tiny.model(head, attention=attention)
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in ARRAYS.items()
        if name in used
    )
    for number, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{number}"
    return ir.from_proto(made)


@pytest.mark.parametrize("kind", CASES)
def test_each_is_named_with_what_stands_in_the_way(kind: str) -> None:
    lines, reason = CASES[kind]
    refusals = inspect(model(lines)).refusals
    assert len(refusals) == 2
    for refusal in refusals:
        assert refusal.where.startswith("attention at ")
        assert re.search(reason, refusal.reason)


def test_a_plan_of_fewer_blocks_than_attentions_says_which() -> None:
    """The second attention mixes its heads: the first block is reduced, the other is in the report."""
    text = (tiny.ATTENTION.replace(SOFTMAX, CASES["talking heads"][0])).format(n=1)
    plain = tiny.text()
    text = plain.replace(tiny.ATTENTION.format(n=1), text)
    made = onnx.parser.parse_model(text)
    arrays = tiny.weights() | ARRAYS
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name)
        for name, array in arrays.items()
        if name in used
    )
    for number, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{number}"
    result = reduce(ir.from_proto(made), method="slice", budget=Budget.tokens([4]))
    refused = [site for site in result.report.sites if site.block < 0]
    assert [site.status for site in result.report.sites if site.block == 0][:1] == ["applied"]
    assert len(refused) == 1
    assert "talking heads" in refused[0].reason


FOREIGN = {
    "the scores": ("b1_scores", "b1_own", "MatMul (b1_qh, b1_kt)"),
    "the stream": ("b1_in", "b1_own", "Identity (b0_out)"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_softmax_of_unknown_shape_is_named_with_the_operator_that_hides_it(kind: str) -> None:
    """An operator from outside ONNX tells no shape; the block in front of it is reduced, and the classifier is not named."""
    made, plain, maker = FOREIGN[kind]
    text = tiny.text(
        "  first = Gather <axis = 1> (b1_out, zero)\n  z = MatMul (first, w1)\n  y = Softmax <axis = -1> (z)\n",
        imports=', "com.acme": 1',
    ).replace(f"{made} = {maker}", f"{plain} = {maker}\n  {made} = com.acme.Sharpen ({plain})")
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    arrays = {name: array for name, array in tiny.weights().items() if name in used}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    found = inspect(ir.from_proto(model))
    assert [row.index for row in found.blocks] == [0]
    (refusal,) = [each for each in found.refusals if each.where.startswith("attention at Softmax node")]
    assert re.search("com.acme.Sharpen node 'Sharpen_.*', an operator from outside ONNX", refusal.reason)


@pytest.mark.parametrize(
    "head",
    [
        "  first = Gather <axis = 1> (b1_out, zero)\n  z = MatMul (first, w1)\n  y = Softmax <axis = -1> (z)\n",
        "  first = Gather <axis = 1> (b1_out, zero)\n  z = MatMul (first, w1)\n  s = Softmax <axis = -1> (z)\n  y = Log (s)\n",
    ],
)
def test_the_softmax_of_a_classifier_is_not_named(head: str) -> None:
    assert not inspect(ir.from_proto(tiny.model(head))).refusals


def test_a_model_without_attention_names_the_softmaxes_it_has() -> None:
    text = '<ir_version: 9, opset_import: ["": 17]> g (float[B,4] x) => (float[B,4] y) { y = Softmax <axis = -1> (x) }'
    made = onnx.parser.parse_model(text)
    made.graph.node[0].name = "own"
    (refusal,) = inspect(ir.from_proto(made)).refusals
    assert "no attention found" in refusal.reason
    assert "'own'" in refusal.reason
