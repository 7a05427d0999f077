"""The bfloat16 a CPU can run: the same numbers as bfloat16 arithmetic that adds up in float32."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.forms.test_convert import parse, run, sound
from tokenrt.errors import ShapeError
from tokenrt.passes.checking.emulate import comparable, emulate

HALF = """<ir_version: 10, opset_import: ["": 23]>
main (KIND[B,4,4] x) => (KIND[B,4,4] y) {
  s = MatMul (x, x)
  y = Add (s, x)
}
"""


def test_every_node_is_rounded() -> None:
    model = parse(HALF.replace("KIND", "bfloat16"))
    assert emulate(model)
    sound(model)
    x = np.random.default_rng(0).standard_normal((3, 4, 4)).astype(np.float32)
    narrow = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    s = (narrow @ narrow).astype(ml_dtypes.bfloat16).astype(np.float32)
    wanted = (s + narrow).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})[0], wanted)
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_other_models_stay_as_they_are() -> None:
    for kind in ("float", "float16"):
        model = parse(HALF.replace("KIND", kind))
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        assert not emulate(model)
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("left", ["float", "float16", "bfloat16"])
@pytest.mark.parametrize("right", ["float", "float16", "bfloat16"])
def test_models_of_any_two_float_types_are_compared(left: str, right: str) -> None:
    report = tokenrt.check(parse(HALF.replace("KIND", left)), parse(HALF.replace("KIND", right)))
    assert report.ok
    (drift,) = report.outputs
    assert drift.cosine_min is not None
    assert drift.cosine_min > 0.9999
    assert (drift.max_abs == 0) == (left == right)


def test_the_inputs_of_the_first_are_those_of_both() -> None:
    first, second = parse(HALF.replace("KIND", "float")), parse(HALF.replace("KIND", "float16"))
    assert comparable(first, second) == (False, True)
    assert second.graph.inputs[0].dtype == ir.DataType.FLOAT
    sound(second)
    other = parse(HALF.replace("KIND", "int32"))
    with pytest.raises(ShapeError, match=r"input 'x' is FLOAT .* INT32"):
        tokenrt.check(first, other)
