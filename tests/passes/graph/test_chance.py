"""Random numbers stay random: no draw becomes a constant, no two become one, and no Dropout that is on is taken out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.running import run, session
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.graph.chance import drawn
from tokenrt.passes.planning.plan import Budget

DRAWS = {
    "normal-like": "RandomNormalLike <dtype = 1> (places)",
    "uniform-like": "RandomUniformLike <dtype = 1> (places)",
    "normal": "RandomNormal <shape = [1, 6, 4]> ()",
    "uniform": "RandomUniform <shape = [1, 6, 4]> ()",
    "bernoulli": "Bernoulli (half)",
}


def noisy(head: str, inputs: str = "float[2,6,4] x", output: str = "float[2,8] y") -> onnx.ModelProto:
    """The tiny model of a fixed batch; `head` may read places, half (all 0.5), ratio, on and off."""
    made = tiny.model(head, inputs=inputs, output=output)
    present = {tensor.name for tensor in made.graph.initializer}
    constants = {
        "places": np.ones((1, 6, 4), np.float32),
        "half": np.full((1, 6, 4), 0.5, np.float32),
        "ratio": np.array(0.5, np.float32),
        "on": np.array(True),
        "off": np.array(False),
        "rows": np.full((2, 5), 0.1, np.float32),
    }
    used = {name for node in made.graph.node for name in node.input}
    for name in (used & constants.keys()) - present:
        made.graph.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
    return made


def differs(model: ir.Model | onnx.ModelProto, **more: np.ndarray) -> bool:
    """Whether runs of one session give other numbers; many, for the few coins that the output reads may fall alike."""
    made = session(model)
    once, *others = (run(made, {**tiny.picture(), **more}) for _ in range(12))
    return any(not np.array_equal(a, b) for again in others for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("kind", DRAWS)
def test_what_was_random_is_random(kind: str) -> None:
    head = f"  noise = {DRAWS[kind]}\n  noised = Add (b1_out, noise)\n" + tiny.CLASS.replace(
        "b1_out", "noised"
    )
    model = ir.from_proto(noisy(head))
    assert differs(ir.to_proto(model))
    made = tokenrt.reduce(model, method="slice", budget=Budget.remove(1, layers=[0])).model
    assert differs(made)
    assert drawn(made).keys() == {"y"}


def test_multinomial_stays() -> None:
    head = tiny.CLASS + "  z = Multinomial <dtype = 7, sample_size = 40> (rows)\n"
    model = ir.from_proto(noisy(head, output="float[2,8] y, int64[2,40] z"))
    made = tokenrt.reduce(model, method="tome", budget=Budget.remove(1)).model
    assert drawn(made).keys() == {"z"}
    assert differs(made)


def test_two_draws_are_not_one() -> None:
    head = tiny.CLASS + (
        "  u = RandomNormalLike <dtype = 1> (places)\n  v = RandomNormalLike <dtype = 1> (places)\n  z = Sub (u, v)\n"
    )
    model = ir.from_proto(noisy(head, output="float[2,8] y, float[1,6,4] z"))
    made = tokenrt.reduce(model, method="tome", budget=Budget.remove(1)).model
    assert np.abs(run(made, tiny.picture())[1]).max() > 0.1


def test_dropout_that_is_on_stays_on_and_one_that_is_off_goes() -> None:
    for mode, count in (("on", 1), ("off", 0)):
        head = f"  kept = Dropout (b1_out, ratio, {mode})\n" + tiny.CLASS.replace("b1_out", "kept")
        model = prepare(ir.from_proto(noisy(head))).model
        assert sum(node.op_type == "Dropout" for node in model.graph) == count


def test_the_mode_of_a_dropout_may_be_an_input() -> None:
    """ONNX Runtime's CPU kernel for inference never drops, so the node itself is looked at."""
    head = "  kept = Dropout (b1_out, ratio, train)\n" + tiny.CLASS.replace("b1_out", "kept")
    model = ir.from_proto(noisy(head, inputs="float[2,6,4] x, bool train"))
    made = tokenrt.reduce(model, method="tome", budget=Budget.remove(1)).model
    (node,) = (node for node in made.graph if node.op_type == "Dropout")
    assert node.domain == ""
    assert [value.name for value in node.inputs if value is not None][1:] == ["ratio", "train"]
    assert [value.name for value in made.graph.inputs] == ["x", "train"]


def test_a_draw_inside_a_branch_stays() -> None:
    made = noisy(tiny.CLASS, output="float[2,8] y, float[1,6,4] z", inputs="float[2,6,4] x, bool loud")
    made.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((1, 6, 4), np.float32), "constant_places")
    )
    branches = {
        f"{name}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node(op, ["constant_places"], [f"{name}_z"])],
            name,
            [],
            [onnx.helper.make_tensor_value_info(f"{name}_z", onnx.TensorProto.FLOAT, [1, 6, 4])],
        )
        for name, op in (("then", "RandomUniformLike"), ("else", "Neg"))
    }
    made.graph.node.append(onnx.helper.make_node("If", ["loud"], ["z"], name="choice", **branches))
    reduced = tokenrt.reduce(ir.from_proto(made), method="tome", budget=Budget.remove(1)).model
    assert "RandomUniformLike" in drawn(reduced)["z"]
    assert differs(reduced, loud=np.array(True))
    assert not differs(reduced, loud=np.array(False))


def test_random_tokens_are_not_protected() -> None:
    """Tokens drawn in the graph depend on no input, and are no class token for that."""
    made = noisy(tiny.CLASS)
    made.graph.node[0].CopyFrom(onnx.helper.make_node("RandomNormalLike", ["x"], ["b0_in"], dtype=1))
    assert prepare(ir.from_proto(made)).structure.protect <= 1


def test_check_says_what_is_random() -> None:
    head = tiny.CLASS + "  u = RandomNormalLike <dtype = 1> (places)\n  z = Add (b1_out, u)\n"
    model = ir.from_proto(noisy(head, output="float[2,8] y, float[2,6,4] z"))
    made = tokenrt.reduce(model, method="tome", budget=Budget.remove(0), allow_noop=True).model
    report = tokenrt.check(model, made)
    assert report.ok
    assert report.random.keys() == {"z"}
    numbers = {drift.output: drift.relative_l2 for drift in report.outputs}
    assert numbers["y"] is not None
    assert numbers["y"] < 1e-5
    assert numbers["z"] is None


def test_check_finds_a_draw_that_became_a_constant() -> None:
    head = tiny.CLASS + "  u = {draw}\n  z = Add (b1_out, u)\n"
    output = "float[2,8] y, float[2,6,4] z"
    random = noisy(head.format(draw="RandomNormalLike <dtype = 1> (places)"), output=output)
    frozen = noisy(head.format(draw="Neg (places)"), output=output)
    report = tokenrt.check(ir.from_proto(random), ir.from_proto(frozen))
    assert not report.ok
    assert "'z'" in report.reasons[0]
    assert "RandomNormalLike" in report.reasons[0]
