"""Products of normalised rows in the form for GPUs: the same cosines, with zero rows and ties, and nothing normalised first."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from tests.passes.helpers.running import run
from tokenrt.passes.forms.fused import fuse
from tokenrt.passes.graph.shapes import infer

TOKENS, WIDTH = 7, 5
HEAD = '<ir_version: 9, opset_import: ["": 17]> g (float[B,7,5] x, int64[B,4,1] i) => (float y'
SIDES = {
    "all": "left = Identity (unit) right = Identity (unit)",
    "sliced": "left = Identity (unit) right = Slice (unit, one, seven, one)",
    "gathered": "left = GatherND <batch_dims = 1> (unit, i) right = Gather <axis = 1> (unit, few)",
}


def model(side: str, *, largest: bool = False) -> ir.Model:
    end = (
        "z = ThresholdedRelu <alpha = -2.0> (c) n = ArgMax <axis = 2, keepdims = 0> (z) y = Cast <to = 1> (n)"
    )
    proto = onnx.parser.parse_model(
        f"""{HEAD}) {{
          one = Constant <value_ints = [1]> () seven = Constant <value_ints = [7]> () few = Constant <value_ints = [6, 2, 0]> ()
          unit = LpNormalization <axis = 2, p = 2> (x)
          {SIDES[side]}
          turned = Transpose <perm = [0, 2, 1]> (right)
          c = MatMul (left, turned)
          {end if largest else "y = Neg (c)"} }}"""
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    made = ir.from_proto(proto)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(made)
    common.IdentityEliminationPass()(made)
    for number, node in enumerate(made.graph):
        node.name = f"tokenrt_block0_{node.op_type}_{number}"
    return made


def given() -> dict[str, Any]:
    drawn = np.random.default_rng(0)
    x = drawn.standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
    x[0, 2] = 0
    x[1, 6] = x[1, 2]
    index = np.stack([drawn.permutation(TOKENS)[:4] for _ in range(2)])
    return {"x": x, "i": index[..., None]}


@pytest.mark.parametrize("side", SIDES)
def test_cosines_are_the_same(side: str) -> None:
    before, made = model(side), model(side)
    changes = [*fuse(made, infer(made, strict=False))]
    assert any("lengths behind it" in change.action for change in changes)
    kinds = Counter(node.op_type for node in made.graph)
    assert not kinds["LpNormalization"]
    assert kinds["MatMul"] == (side != "gathered")  # Rows are multiplied where they are gathered.
    np.testing.assert_allclose(run(made, given())[0], run(before, given())[0], atol=1e-6)


@pytest.mark.parametrize("side", SIDES)
def test_the_nearest_is_the_first_of_the_largest(side: str) -> None:
    before, made = model(side, largest=True), model(side, largest=True)
    [*fuse(made, infer(made, strict=False))]
    assert "ArgMax" not in {node.op_type for node in made.graph}
    np.testing.assert_array_equal(run(made, given())[0], run(before, given())[0])


def test_an_arg_maximum_of_what_may_be_no_number_stays() -> None:
    made = model("all", largest=True)
    relu = next(node for node in made.graph if node.op_type == "ThresholdedRelu")
    ir.convenience.replace_all_uses_with(relu.outputs, relu.inputs[:1])
    [*fuse(made, infer(made, strict=False))]
    assert "ArgMax" in {node.op_type for node in made.graph}
