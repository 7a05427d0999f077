"""The one form of an attention: what is rewritten computes what it computed, and what is no attention stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from tests.passes.helpers import tiny
from tests.passes.helpers.running import run
from tokenrt.passes.graph.canonicalize import Canonicalize
from tokenrt.passes.graph.normal.einsum import parse
from tokenrt.passes.graph.normal.layout import Atoms, Unfit
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

EQUATIONS = {
    "bnc,cd->bnd": ("2,3,4", "4,5"),
    "bnc,chd->bnhd": ("2,3,4", "4,5,6"),
    "bnhd,hdc->bnc": ("2,3,4,5", "4,5,6"),
    "chd,bnc->bhnd": ("4,5,6", "2,3,4"),
    "bihd,bjhd->bhij": ("2,3,4,5", "2,6,4,5"),
    "bjhd,bihd->bijh": ("2,3,4,5", "2,6,4,5"),
    "bxyhd,bzhd->bhxyz": ("2,3,2,4,5", "2,6,4,5"),
    "...id,...jd->...ij": ("2,3,4,5", "2,3,6,5"),
    "ij,jk": ("2,3", "3,4"),
    "bn,bm->bnm": ("2,3", "2,4"),
    "bnc,bnc->bn": ("2,3,4", "2,3,4"),
}
STAYS = {"bij,jk->bk": ("2,3,4", "4,5"), "bii,ij->bj": ("2,3,3", "3,4"), "ij,ij->ij": ("2,3", "1,3")}


def einsum(equation: str, first: str, second: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    text = (
        '<ir_version: 9, opset_import: ["": 17]> g '
        f'(float[{first}] a, float[{second}] b) => (float y) {{ y = Einsum <equation = "{equation}"> (a, b) }}'
    )
    made = np.random.default_rng(0)
    shapes = {"a": first, "b": second}
    feeds = {
        k: made.standard_normal([int(n) for n in v.split(",")]).astype(np.float32) for k, v in shapes.items()
    }
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model, feeds


@pytest.mark.parametrize("equation", EQUATIONS)
def test_an_einsum_becomes_a_product_of_the_same_value(equation: str) -> None:
    model, feeds = einsum(equation, *EQUATIONS[equation])
    made = Canonicalize()(ir.from_proto(model))
    assert "Einsum" not in {node.op_type for node in made.graph}
    wanted = np.einsum(equation, feeds["a"], feeds["b"])
    assert np.abs(run(made, feeds)[0] - wanted).max() < 1e-5


@pytest.mark.parametrize(
    ("index", "batch", "kind"),
    [
        ("int64[3,1] i = {1, 0, -1}", 0, "Gather"),
        ("int64[2,1] i = {1, 0}", 1, "GatherND"),
        ("int64[2,2] i = {1, 0, 0, 1}", 0, "GatherND"),
    ],
)
def test_rows_taken_by_number_are_one_gather(index: str, batch: int, kind: str) -> None:
    text = (
        '<ir_version: 9, opset_import: ["": 17]> g (float[2,3] x) => (float y) '
        f"<{index}> {{ y = GatherND <batch_dims = {batch}> (x, i) }}"
    )
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    made = Canonicalize()(ir.from_proto(model))
    assert [node.op_type for node in made.graph if node.op_type != "Identity"] == [kind]
    np.testing.assert_array_equal(run(made, feeds)[0], run(ir.from_proto(model), feeds)[0])


@pytest.mark.parametrize("equation", STAYS)
def test_an_einsum_of_another_kind_stays(equation: str) -> None:
    model, feeds = einsum(equation, *STAYS[equation])
    made = Canonicalize()(ir.from_proto(model))
    assert "Einsum" in {node.op_type for node in made.graph}
    assert np.abs(run(made, feeds)[0] - run(model, feeds)[0]).max() == 0


def test_an_equation_without_an_arrow_names_its_letters_in_order() -> None:
    assert parse("kj,ji", [2, 2]) == (["kj", "ji"], "ik")
    assert parse("a,b,c->abc", [1, 1, 1]) is None


def test_atoms_divide_where_a_reshape_divides() -> None:
    atoms = Atoms()
    axes = atoms.new((6, 5, 1, 5))
    view = atoms.regroup(axes, (2, 3, 5, 5))
    assert [len(atoms.whole(axis)) for axis in axes] == [2, 1, 0, 1]
    assert atoms.dims(view) == (2, 3, 5, 5)
    with pytest.raises(Unfit):
        atoms.regroup(axes, (4, 15, 5, 1, 1, 1))


RESIDUALS = {
    "minus": (
        "b{n}_out = Add (b{n}_attended, b{n}_down)",
        "b{n}_minus = Neg (b{n}_down)\n  b{n}_out = Sub (b{n}_attended, b{n}_minus)",
    ),
    "minus twice": (
        "b{n}_out = Add (b{n}_attended, b{n}_down)",
        "b{n}_one = Neg (b{n}_down)\n  b{n}_two = Identity (b{n}_one)\n  b{n}_out = Sub (b{n}_attended, b{n}_two)",
    ),
    "attention's minus": (
        "b{n}_attended = Add (b{n}_in, b{n}_result)",
        "b{n}_minus = Neg (b{n}_result)\n  b{n}_attended = Sub (b{n}_in, b{n}_minus)",
    ),
    "sum": ("b{n}_out = Add (b{n}_attended, b{n}_down)", "b{n}_out = Sum (b{n}_attended, b{n}_down)"),
    "negative weights": (
        "b{n}_down = MatMul (b{n}_act, w2)",
        "b{n}_less = Neg (b{n}_act)\n  b{n}_down0 = MatMul (b{n}_less, w2)\n  b{n}_down = Neg (b{n}_down0)",
    ),
    "split bias": (
        "b{n}_attended = Add (b{n}_in, b{n}_result)",
        "b{n}_early = Add (b{n}_in, half)\n  b{n}_late = Sub (b{n}_result, half)\n  b{n}_attended = Add (b{n}_early, b{n}_late)",
    ),
}


def written(kind: str) -> onnx.ModelProto:
    old, new = RESIDUALS[kind]
    assert old in tiny.REST
    made = tiny.model(rest=tiny.REST.replace(old, new))
    if "half" in new:
        half = np.linspace(-1, 1, tiny.WIDTH).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(half, "half"))
    return made


def cut(counts: tuple[int, int]) -> np.ndarray:
    """The tiny model in NumPy, tokens cut right after each attention."""
    w = tiny.weights()
    x = tiny.picture()["x"].astype(np.float64)
    for keep in counts:
        q, k, v = (
            (x @ w[name]).reshape(len(x), -1, tiny.HEADS, tiny.WIDTH // tiny.HEADS).transpose(0, 2, 1, 3)
            for name in ("wq", "wk", "wv")
        )
        scores = np.exp(q @ k.transpose(0, 1, 3, 2))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)
        x = (x + mixed.reshape(x.shape))[:, :keep]
        x = x + np.maximum(x @ w["w1"], 0) @ w["w2"]
    return x[:, 0] @ w["w1"]


@pytest.mark.parametrize("kind", RESIDUALS)
def test_a_residual_in_other_words_ends_the_block_where_it_ends(kind: str) -> None:
    model = ir.from_proto(written(kind))
    assert len(inspect(model).blocks) == 2
    for where in ("after-attention", "after-block"):
        made = reduce(model, method="slice", budget=Budget.tokens([5, 4]), site=where)
        if where == "after-attention":
            assert np.abs(run(made.model, tiny.picture())[0] - cut((5, 4))).max() < 1e-4
        readers = {node.op_type for value in made.model.graph.outputs for node in [value.producer()] if node}
        assert readers == {"MatMul"}


def test_weights_that_are_an_output_keep_their_view_and_name() -> None:
    text = tiny.ATTENTION.replace(
        "  b{n}_weights = Softmax <axis = -1> (b{n}_scores)\n  b{n}_mixed = MatMul (b{n}_weights, b{n}_vh)\n",
        "  b{n}_turned = Transpose <perm = [0, 1, 3, 2]> (b{n}_scores)\n"
        "  b{n}_weights = Softmax <axis = 2> (b{n}_turned)\n"
        "  b{n}_vt = Transpose <perm = [0, 1, 3, 2]> (b{n}_vh)\n"
        "  b{n}_mt = MatMul (b{n}_vt, b{n}_weights)\n"
        "  b{n}_mixed = Transpose <perm = [0, 1, 3, 2]> (b{n}_mt)\n",
    )
    model = tiny.model(attention=text)
    model.graph.output.append(onnx.helper.make_tensor_value_info("b0_weights", 1, ["B", 2, 6, 6]))
    made = Canonicalize()(ir.from_proto(model))
    assert [value.name for value in made.graph.outputs] == ["y", "b0_weights"]
    for found, wanted in zip(run(made, tiny.picture()), run(model, tiny.picture()), strict=True):
        assert np.abs(found - wanted).max() < 1e-5
    assert len(inspect(ir.from_proto(model)).blocks) == 2


SUMS = {
    "plain": ("e = Exp (x)\n t = ReduceSum (e, last)\n y = Div (e, t)", True),
    "maximum": (
        "m = ReduceMax <axes = [-1]> (x)\n d = Sub (x, m)\n e = Exp (d)\n t = ReduceSum (e, last)\n y = Div (e, t)",
        True,
    ),
    "maximum of all": (
        "m = ReduceMax (x)\n d = Sub (x, m)\n e = Exp (d)\n t = ReduceSum (e, last)\n y = Div (e, t)",
        True,
    ),
    "reciprocal": ("e = Exp (x)\n t = ReduceSum (e, last)\n r = Reciprocal (t)\n y = Mul (r, e)", True),
    "sum of another": (
        "e = Exp (x)\n n = Neg (x)\n f = Exp (n)\n t = ReduceSum (f, last)\n y = Div (e, t)",
        False,
    ),
    "sum of all": ("e = Exp (x)\n t = ReduceSum (e)\n y = Div (e, t)", False),
    "turned around": ("e = Exp (x)\n t = ReduceSum (e, last)\n y = Div (t, e)", False),
    "with a small number": (
        "e = Exp (x)\n t = ReduceSum (e, last)\n s = Add (t, small)\n y = Div (e, s)",
        False,
    ),
}


@pytest.mark.parametrize("kind", SUMS)
def test_a_softmax_that_is_written_out(kind: str) -> None:
    """Where the sum is that of the powers, along one axis; the maximum in front may be one for more than that axis."""
    lines, opened = SUMS[kind]
    text = f"""<ir_version: 9, opset_import: ["": 17]> g (float[2,3,4] x) => (float y)
    <int64[1] last = {{-1}}, float small = {{0.5}}> {{ {lines} }}"""
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    made = Canonicalize()(ir.from_proto(model))
    assert ("Softmax" in {node.op_type for node in made.graph}) == opened
    assert [value.name for value in made.graph.outputs] == ["y"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)}
    powers = np.exp(feeds["x"].astype(np.float64))
    (found,) = run(made, feeds)
    if opened:
        assert np.abs(found - powers / powers.sum(-1, keepdims=True)).max() < 1e-6
    assert np.abs(found - run(model, feeds)[0]).max() < 1e-6 * max(1, np.abs(found).max())


CUT = {
    "Split": "a, b, c = Split <axis = 1> (x, sizes)",
    "Slice": "a = Slice (x, n0, n1, n1) b = Slice (x, n1, n3, n1) c = Slice (x, n3, n9, n1)",
    "Slice from behind": "a = Slice (x, n0, n1, n1) b = Slice (x, n1, n3, n1) c = Slice (x, minus3, n9, n1)",
}
ORDER = {"a, b, c": True, "b, a, c": False, "a, b": False, "b, c": False, "a, b, b": False}


@pytest.mark.parametrize("order", ORDER)
@pytest.mark.parametrize("cut", CUT)
def test_parts_joined_in_order_are_the_whole(cut: str, order: str) -> None:
    numbers = {"n0": 0, "n1": 1, "n3": 3, "n9": 9, "minus3": -3}
    constants = "\n".join(f"{name} = Constant <value_ints = [{n}]> ()" for name, n in numbers.items())
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["": 17]> g (float[B,6,4] x) => (float[B,R,4] y) {{
          {constants} sizes = Constant <value_ints = [1, 2, 3]> ()
          {CUT[cut]} joined = Concat <axis = 1> ({order}) y = Relu (joined) }}"""
    )
    x = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
    made = Canonicalize()(ir.from_proto(model))
    assert ("Concat" not in {node.op_type for node in made.graph}) == ORDER[order]
    parts = {"a": x[:, :1], "b": x[:, 1:3], "c": x[:, 3:]}
    wanted = np.concatenate([parts[part] for part in order.split(", ")], axis=1)
    assert np.array_equal(run(made, {"x": x})[0], np.maximum(wanted, 0))
