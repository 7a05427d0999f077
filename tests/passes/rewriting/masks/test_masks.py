"""What stands between the scores and the values: masks, biases, scales and gates in every form, or a refusal by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.passes.helpers import tiny
from tests.passes.helpers.running import close, run, session
from tokenrt.errors import TokenrtError, UnsupportedError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.passes.report import Reduced

SOFTMAX = "  b{n}_weights = Softmax <axis = -1> (b{n}_scores)\n"
BEHIND = "  b{n}_weights = Softmax <axis = -1> (b{n}_other)\n"
MIX = "  b{n}_mixed = MatMul (b{n}_weights, b{n}_vh)\n"
N = tiny.TOKENS
LATER = np.triu(np.ones((N, N), bool), 1)
FAR = np.abs(np.subtract.outer(range(N), range(N)))
LOW = np.float32(-1e9)
BIAS = np.random.default_rng(5).standard_normal((1, tiny.HEADS, N, N)).astype(np.float32)
Arrays = dict[str, np.ndarray]


def masked(line: str, arrays: Arrays, **options: str) -> onnx.ModelProto:
    """The tiny model with a line from its scores to what the softmax reads."""
    attention = tiny.ATTENTION.replace(SOFTMAX, line + BEHIND)
    return _filled(tiny.model(attention=attention, **options), arrays)


def gated(line: str, arrays: Arrays, head: str = tiny.CLASS) -> onnx.ModelProto:
    """The tiny model with a line between the softmax and the product with the values."""
    attention = tiny.ATTENTION.replace(MIX, line + MIX.replace("weights", "other"))
    return _filled(tiny.model(head, attention=attention), arrays)


def _filled(model: onnx.ModelProto, arrays: Arrays) -> onnx.ModelProto:
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array, None if array.dtype == bool else np.float32), name)
        for name, array in arrays.items()
    )
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


def merged(model: onnx.ModelProto, removed: int = 2, **options: bool) -> Reduced:
    return reduce(ir.from_proto(model), method="tome", budget=Budget.remove(removed), **options)


def received(model: onnx.ModelProto) -> ir.Model:
    return reduce(
        ir.from_proto(model), method="topk", budget=Budget.remove(2, [0]), options={"score": "received"}
    ).model


ADD, WHERE = "  b{n}_other = Add (b{n}_scores, m)\n", "  b{n}_other = Where (m, low, b{n}_scores)\n"
CAUSAL = {
    "added": (ADD, {"m": np.where(LATER, LOW, 0)}),
    "added as -10000": (ADD, {"m": np.where(LATER, -1e4, 0)}),
    "with a slope for each head": (
        ADD,
        {"m": np.stack([np.where(LATER, LOW, -slope * FAR) for slope in (1, 0.5)])[None]},
    ),
    "within a window": (ADD, {"m": np.where(LATER | (FAR > 2), LOW, 0)}),
    "subtracted": ("  b{n}_other = Sub (b{n}_scores, m)\n", {"m": np.where(LATER, -LOW, 0)}),
    "a condition that hides": (WHERE, {"m": LATER, "low": np.array(LOW)}),
    "a condition that shows": (
        "  b{n}_other = Where (m, b{n}_scores, low)\n",
        {"m": ~LATER, "low": np.array(LOW)},
    ),
    "a factor": (
        "  b{n}_shown = Mul (b{n}_scores, m)\n  b{n}_other = Add (b{n}_shown, bias)\n",
        {"m": ~LATER * 1.0, "bias": BIAS},
    ),
}


@pytest.mark.parametrize("form", CAUSAL)
def test_a_causal_mask_is_refused_in_any_form(form: str) -> None:
    with pytest.raises(TokenrtError, match=r"Softmax node 'Softmax_\d+'.*causal"):
        merged(masked(*CAUSAL[form]))


@pytest.mark.parametrize("mask", [FAR > 2, np.tile(np.arange(N) > 3, (N, 1)), np.eye(N, dtype=bool)])
def test_a_mask_that_is_not_causal_is_taken(mask: np.ndarray) -> None:
    model = masked(ADD, {"m": np.where(mask, LOW, 0)})
    assert all(np.isfinite(output).all() for output in run(merged(model).model, tiny.picture()))


RECOMPUTED = {
    "added": (ADD, {"m": BIAS}),
    "subtracted": ("  b{n}_other = Sub (b{n}_scores, m)\n", {"m": BIAS}),
    "scaled, then added": (
        "  b{n}_scaled = Div (b{n}_scores, t)\n  b{n}_other = Add (b{n}_scaled, m)\n",
        {"m": BIAS, "t": np.array(0.3)},
    ),
    "hidden": (WHERE, {"m": FAR > 2, "low": np.array(LOW)}),
    "bounded below, far off": (
        "  b{n}_sum = Add (b{n}_scores, m)\n  b{n}_other = Max (b{n}_sum, low)\n",
        {"m": BIAS, "low": np.array(-3e38)},
    ),
}
UNREAD = {
    "a temperature for each head": ("  b{n}_other = Mul (b{n}_scores, t)\n", {"t": [[[3]], [[0.2]]]}, "Mul"),
    "a number divided by the scores": ("  b{n}_other = Div (t, b{n}_scores)\n", {"t": 3}, "Div"),
    "scores subtracted": ("  b{n}_other = Sub (t, b{n}_scores)\n", {"t": BIAS}, "Sub"),
    "scaled behind the bias": (
        "  b{n}_sum = Add (b{n}_scores, m)\n  b{n}_other = Mul (b{n}_sum, t)\n",
        {"m": BIAS, "t": 0.2},
        "Mul",
    ),
    "clipped": ("  b{n}_other = Clip (b{n}_scores, t, u)\n", {"t": -0.05, "u": 0.05}, "Clip"),
    "bounded below, near": ("  b{n}_other = Max (b{n}_scores, t)\n", {"t": 0.2}, "Max"),
}


@pytest.mark.parametrize("form", RECOMPUTED)
def test_the_score_is_the_attention_behind_biases_and_masks(form: str) -> None:
    line, arrays = RECOMPUTED[form]
    proto = ir.to_proto(received(masked(line, arrays)))
    names = [
        next(n.output[0] for n in proto.graph.node if n.op_type == kind) for kind in ("TokenScore", "Softmax")
    ]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    *_, score, attention = run(session(proto), tiny.picture(3))
    np.testing.assert_allclose(score, attention.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("form", UNREAD)
def test_scores_that_are_not_recomputed_are_refused_to_who_reads_them_alone(form: str) -> None:
    line, arrays, kind = UNREAD[form]
    model = masked(line, {name: np.array(array, np.float32) for name, array in arrays.items()})
    with pytest.raises(UnsupportedError, match=rf"{kind} node '{kind}_\d+' makes of the scores more.*tome"):
        received(model)
    assert merged(model).plan.counts() == [N, N - 2, N - 3]


NODE = """
  b{n}_q = MatMul (b{n}_in, wq)
  b{n}_k = MatMul (b{n}_in, wk)
  b{n}_v = MatMul (b{n}_in, wv)
  b{n}_result = Attention <q_num_heads = 2, {options}> (b{n}_q, b{n}_k, b{n}_v)
"""


@pytest.mark.parametrize(
    ("options", "width", "reason"),
    [
        ("kv_num_heads = 2, softcap = 0.1", 4, "makes of the scores more"),
        ("kv_num_heads = 1", 2, ""),
    ],
)
def test_an_attention_node_that_caps_or_groups(options: str, width: int, reason: str) -> None:
    model = tiny.model(attention=NODE.replace("{options}", options), opset=23)
    for tensor in model.graph.initializer:
        if tensor.name in ("wk", "wv"):
            tensor.CopyFrom(numpy_helper.from_array(tiny.weights()[tensor.name][:, :width], tensor.name))
    _filled(model, {})
    if reason:
        with pytest.raises(UnsupportedError, match=rf"Attention node 'Attention_\d+' {reason}"):
            received(model)
    else:
        received(model)
    assert all(np.isfinite(output).all() for output in run(merged(model).model, tiny.picture()))


def test_what_is_subtracted_is_reduced_as_what_is_added() -> None:
    bias = 3 * BIAS
    added = merged(masked(ADD, {"m": bias}))
    taken = merged(masked("  b{n}_other = Sub (b{n}_scores, m)\n", {"m": -bias}))
    close(run(taken.model, tiny.picture()), run(added.model, tiny.picture()))


@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("mask", [FAR > 2, np.tile(np.arange(N) > 3, (N, 1))])
def test_a_condition_may_hide_or_show(mask: np.ndarray, proportional: bool) -> None:
    low = np.array(LOW)
    hide = masked(WHERE, {"m": mask, "low": low})
    show = masked("  b{n}_other = Where (m, b{n}_scores, low)\n", {"m": ~mask, "low": low})
    found, wanted = (merged(model, proportional_attention=proportional).model for model in (hide, show))
    close(run(found, tiny.picture()), run(wanted, tiny.picture()))


@pytest.mark.parametrize("proportional", [True, False])
def test_words_hidden_by_a_condition_stay_hidden_where_they_merge(proportional: bool) -> None:
    padding = {"inputs": "float[B,6,4] x, bool[B,1,1,6] m", "head": tiny.CLASS}
    model = masked(WHERE, {"low": np.array(LOW)}, **padding)
    hidden = np.zeros((2, 1, 1, N), bool)
    hidden[..., 2:] = True
    here = {**tiny.picture(), "m": hidden}
    other = {**here, "x": np.where(np.arange(N)[:, None] > 1, 7, here["x"]).astype(np.float32)}
    found = merged(model, 1, proportional_attention=proportional).model
    close(run(found, here), run(found, other))


def test_a_factor_for_each_key_behind_the_softmax_is_averaged_over_equal_tokens() -> None:
    model = gated(
        "  b{n}_other = Mul (b{n}_weights, m)\n",
        {"m": np.tile(np.linspace(0.1, 2, N), (1, 1, N, 1))},
        tiny.MEAN,
    )
    here = tiny.picture()
    here["x"][:] = here["x"][:, :1]
    close(run(merged(model).model, here), run(model, here))
