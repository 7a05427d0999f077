"""Shapes with a dynamic batch, and the folding of what no input's content reaches."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from tests.passes.helpers.running import close, run
from tokenrt.errors import ModelError, ShapeError
from tokenrt.passes.graph.canonicalize import Canonicalize, parse_shapes
from tokenrt.passes.graph.fold import fold
from tokenrt.passes.graph.shapes import BATCH, describe, infer, target


def model(body: str, inputs: str = "float[B,6,4] x", constants: str = "", output: str = "y") -> ir.Model:
    head = '<ir_version: 10, opset_import: ["": 18]>'
    proto = onnx.parser.parse_model(f"{head}\nmain ({inputs}) => ({output}) <{constants}> {{\n{body}\n}}")
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return ir.from_proto(proto)


def canonical(body: str, **options: str) -> ir.Model:
    return Canonicalize()(model(body, **options))


def operators(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


SHAPES = {
    "fixed": ("y = Relu (x)", "float[3,6,4] x", (3, 6, 4)),
    "dynamic": ("y = Relu (x)", "float[B,6,4] x", (BATCH, 6, 4)),
    "unnamed": ("y = Relu (x)", "float[?,6,4] x", (BATCH, 6, 4)),
    "rows": ("s = Constant <value_ints = [-1, 4]> ()\ny = Reshape (x, s)", "float[B,6,4] x", (6 * BATCH, 4)),
    "heads-in-the-batch": (
        "s = Constant <value_ints = [-1, 6, 2]> ()\ny = Reshape (x, s)",
        "float[B,6,4] x",
        (2 * BATCH, 6, 2),
    ),
    "through-a-shape": (
        "s = Shape (x)\nb = Gather (s, i)\nc = Concat <axis = 0> (b, r)\ny = Reshape (x, c)",
        "float[B,6,4] x",
        (BATCH, 24),
    ),
    "twice-the-batch": ("y = Concat <axis = 0> (x, x)", "float[B,6,4] x", (2 * BATCH, 6, 4)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_is_a_number(kind: str) -> None:
    body, inputs, expected = SHAPES[kind]
    made = model(body, inputs, "int64[1] i = {0}, int64[1] r = {24}")
    shapes = infer(made)
    assert shapes.of(made.graph.outputs[0]) == expected
    assert shapes.dynamic_batch == (kind != "fixed")


def test_describe_and_target_speak_of_the_batch() -> None:
    assert describe((BATCH, 197, 384)) == "[B,197,384]"
    assert describe((6 * BATCH, 197, 64)) == "[6B,197,64]"
    assert target((6 * BATCH, 197, 64)) == [-1, 197, 64]
    with pytest.raises(ShapeError, match=r"two dimensions of \[B,B\] depend on the batch"):
        target((BATCH, BATCH))


def test_an_open_shape_names_its_tensor_and_node() -> None:
    made = model("n = NonZero (x)\ny = Cast <to = 1> (n)")
    with pytest.raises(ShapeError, match=r"tensor 'y' .*NonZero node"):
        infer(made).of(made.graph.outputs[0])


def test_a_shape_that_contradicts_itself_is_refused() -> None:
    made = model("y = MatMul (x, x)", "float[2,6,4] x")
    with pytest.raises(ModelError, match="shape inference refuses the model"):
        infer(made)


CHAINS = {
    "view": ("s = Shape (x)\nb = Gather (s, i)\nc = Concat <axis = 0> (b, six, four)\ny = Reshape (x, c)", ["Reshape"]),
    "flatten": ("s = Shape (x)\nb = Slice (s, nil, i1)\nc = Concat <axis = 0> (b, minus)\ny = Reshape (x, c)", ["Reshape"]),
    "arithmetic": (
        "s = Shape (x)\nn = Gather (s, i1)\nm = Mul (n, four)\nb = Gather (s, i)\nc = Concat <axis = 0> (b, m)\ny = Reshape (x, c)", ["Reshape"],
    ),
    "constants": ("a = Constant <value_float = 2.0> ()\nb = Sqrt (a)\ny = Mul (x, b)", ["Mul"]),
    "identities": ("a = Identity (x)\nb = Identity (a)\ny = Relu (b)", ["Relu"]),
    "a-mask-that-hides-nothing": (
        "s = Shape (x)\nm = ConstantOfShape (s)\ny = Add (x, m)\nz = Relu (y)", ["Relu"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHAINS)
def test_chains_resolve_and_the_batch_stays_free(kind: str) -> None:
    body, expected = CHAINS[kind]
    constants = "int64[1] i = {0}, int64[1] i1 = {1}, int64[1] nil = {0}, int64[1] six = {6}, int64[1] four = {4}, int64[1] minus = {-1}"
    last = body.splitlines()[-1].split(" =")[0]
    made = canonical(body, constants=constants, output=last)
    assert operators(made) == expected
    for batch in (1, 3):
        given = {"x": np.random.default_rng(0).standard_normal((batch, 6, 4), np.float32)}
        close(run(made, given), run(model(body, constants=constants, output=last), given), 0)


def test_what_depends_on_the_batch_alone_becomes_one_row() -> None:
    """The same mask for every image: one row is enough where another input brings the batch."""
    body = (
        "s = Shape (x)\nb = Gather (s, i)\nc = Concat <axis = 0> (b, six, one)\n"
        "m = ConstantOfShape <value = float[1] {2}> (c)\ny = Mul (x, m)"
    )
    made = canonical(body, constants="int64[1] i = {0}, int64[1] six = {6}, int64[1] one = {1}")
    assert operators(made) == ["Mul"]
    mask = made.graph[0].inputs[1]
    assert mask is not None
    assert mask.const_value is not None
    assert tuple(mask.const_value.shape) == (1, 6, 1)


def test_what_counts_images_is_kept() -> None:
    """Positions numbered through the batch differ from row to row: no constant."""
    body = (
        "s = Shape (x)\nb = Gather (s, i)\nr = Range (nil, b, one)\nf = Cast <to = 1> (r)\n"
        "u = Unsqueeze (f, axes)\ny = Add (x, u)"
    )
    constants = "int64 i = {0}, int64 nil = {0}, int64 one = {1}, int64[2] axes = {1, 2}"
    made = canonical(body, constants=constants)
    assert "Range" in operators(made)
    given = {"x": np.zeros((3, 6, 4), np.float32)}
    (found,) = run(made, given)
    assert found[:, 0, 0].tolist() == [0, 1, 2]


def test_random_numbers_are_not_folded() -> None:
    made = model("r = RandomNormal <shape = [6, 4], seed = 1.0> ()\ny = Add (x, r)")
    fold(made, infer(made))
    assert operators(made) == ["RandomNormal", "Add"]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        (["x=1x3x224x224"], {"x": (1, 3, 224, 224)}),
        (["ids=Bx128", "mask=Bx128"], {"ids": ("B", 128), "mask": ("B", 128)}),
        (["a=b=2x2"], {"a=b": (2, 2)}),
    ],
)
def test_shapes_are_read(pairs: list[str], expected: dict[str, tuple[int | str, ...]]) -> None:
    assert parse_shapes(pairs) == expected


@pytest.mark.parametrize(
    "pair", ["x", "=1x2", "x=", "x=1x", "x=1xN", "x=0x3", "x=1x-2", "x=1.5x2", "x=BxBx3"]
)
def test_shapes_that_cannot_be_read(pair: str) -> None:
    with pytest.raises(ShapeError, match="expected NAME="):
        parse_shapes([pair])


def test_a_shape_fixes_a_dynamic_axis_and_keeps_the_batch() -> None:
    made = Canonicalize({"x": ("images", 6, 4)})(model("y = Relu (x)", "float[N,T,4] x"))
    (value,) = made.graph.inputs
    assert value.shape is not None
    assert [str(axis) for axis in value.shape] == ["images", "6", "4"]


def test_a_fixed_batch_of_a_dynamic_one() -> None:
    made = Canonicalize({"x": (2, 6, 4)})(model("y = Relu (x)", "float[N,T,4] x"))
    assert not infer(made).dynamic_batch


def test_an_axis_of_one_name_is_given_once() -> None:
    """As of ids and their mask; an axis of another name is still to be given."""
    inputs = "float[N,T,4] x, float[N,T,1] mask, float[N,S,4] other"
    given = {"x": ("B", 6, 4), "other": ("B", 5, 4)}
    made = Canonicalize(given)(model("p = Mul (x, mask)\ny = Concat<axis=1> (p, other)", inputs))
    assert [str(axis) for value in made.graph.inputs for axis in value.shape or ()][1::3] == ["6", "6", "5"]
    del given["other"]
    with pytest.raises(ShapeError, match=r"axis 1 \(S\) of input 'other'"):
        Canonicalize(given)(model("p = Mul (x, mask)\ny = Concat<axis=1> (p, other)", inputs))
