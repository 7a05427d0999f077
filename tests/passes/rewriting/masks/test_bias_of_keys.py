"""Keys that merge under a bias, a condition or a factor: equal tokens lose nothing, whoever asks and however it is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.passes.helpers import tiny
from tests.passes.helpers.running import run
from tokenrt.errors import UnsupportedError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

N, C, Q = tiny.TOKENS, tiny.WIDTH, 3
RANDOM = np.random.default_rng(3)
BIAS = (2 * RANDOM.standard_normal((1, Q, N))).astype(np.float32)
SHOWN = np.array([[[1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1], [1, 1, 1, 0, 0, 1]]], bool)
LOW = np.float32(-1e9)
ASKED = "  kt = Transpose <perm = [0, 2, 1]> (b1_out)\n  asked = MatMul (asking, kt)\n"
ENDS = "  weights = Softmax <axis = -1> (scored)\n  y = MatMul (weights, b1_out)\n"
POOLS = {
    "added": ("  scored = Add (asked, m)\n", BIAS),
    "added, without a batch": ("  scored = Add (asked, m)\n", BIAS[0]),
    "one for all queries": ("  scored = Add (asked, m)\n", BIAS[:, :1]),
    "subtracted": ("  scored = Sub (asked, m)\n", BIAS),
    "added, then bounded": ("  sum = Add (asked, m)\n  scored = Clip (sum, least)\n", BIAS),
    "by Sum": ("  scored = Sum (asked, m)\n", BIAS),
    "hiding": ("  scored = Where (m, low, asked)\n", ~SHOWN),
    "showing": ("  scored = Where (m, asked, low)\n", SHOWN),
}


def pooled(line: str, array: np.ndarray, batch: str = "B") -> ir.Model:
    proto = tiny.model(ASKED + line + ENDS, inputs=f"float[{batch},6,4] x", output=f"float[{batch},3,4] y")
    held = {"asking": RANDOM.standard_normal((1, Q, C)), "m": array, "low": LOW, "least": -1e5}
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value, None if value.dtype == bool else np.float32), name)
        for name, value in ((name, np.asarray(value)) for name, value in held.items())
        if name in used
    )
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def pairs(batch: int = 2) -> dict[str, np.ndarray]:
    """Every token twice, side by side."""
    half = np.random.default_rng(8).standard_normal((batch, N // 2, C)).astype(np.float32)
    return {"x": np.repeat(half, 2, axis=1)}


@pytest.mark.parametrize("batch", ["B", "2"])
@pytest.mark.parametrize("form", POOLS)
def test_equal_tokens_lose_nothing_in_a_pool_with_a_bias(form: str, batch: str) -> None:
    made = pooled(*POOLS[form], batch)
    (wanted,) = run(made, pairs())
    result = reduce(made, method="tome", budget=Budget.remove(N // 2, [0]))
    assert result.plan.counts() == [N, N // 2]
    np.testing.assert_allclose(run(result.model, pairs())[0], wanted, atol=2e-5)


@pytest.mark.parametrize("form", ["added", "showing"])
def test_dropped_tokens_take_their_biases_along(form: str) -> None:
    line, array = POOLS[form]
    made = pooled(line, array)
    given = {"x": np.random.default_rng(2).standard_normal((2, N, C)).astype(np.float32)}
    result = reduce(made, method="slice", budget=Budget.remove(2, [1]))
    stream = ir.to_proto(made)
    stream.graph.output.append(onnx.ValueInfoProto(name="b1_attended"))
    attended = run(stream, given)[1][:, : N - 2].astype(np.float64)
    w = tiny.weights()
    tokens = attended + np.maximum(attended @ w["w1"], 0) @ w["w2"]
    asking = next(numpy_helper.to_array(t) for t in stream.graph.initializer if t.name == "asking")
    scores = asking @ tokens.transpose(0, 2, 1)
    scores = scores + array[..., : N - 2] if form == "added" else np.where(array[..., : N - 2], scores, -1e9)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ tokens
    np.testing.assert_allclose(run(result.model, given)[0], wanted, atol=2e-5)


def test_a_bias_on_the_scores_of_one_learned_query() -> None:
    """Scores [B,N] without an axis for queries."""
    head = (
        "  asked3 = MatMul (b1_out, one)\n  asked = Squeeze (asked3, last)\n  scored = Add (asked, m)\n"
        "  weights = Softmax <axis = -1> (scored)\n  column = Unsqueeze (weights, mid)\n  y = MatMul (column, b1_out)\n"
    )
    proto = tiny.model(head, output="float[B,1,4] y")
    held = {"one": RANDOM.standard_normal((C, 1)).astype(np.float32), "m": BIAS[0, :1]}
    held |= {"last": np.array([2]), "mid": np.array([1])}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in held.items())
    (wanted,) = run(proto, pairs())
    result = reduce(ir.from_proto(proto), method="tome", budget=Budget.remove(N // 2, [0]))
    np.testing.assert_allclose(run(result.model, pairs())[0], wanted, atol=2e-5)


def test_an_entry_per_token_that_reaches_no_softmax_is_averaged_as_before() -> None:
    """A number added to each token's own sum is no score: its mean counts."""
    head = (
        "  sum = ReduceSum <keepdims = 0> (b1_out, last)\n  moved = Add (sum, m)\n"
        "  y = ReduceMean <axes = [1], keepdims = 1> (moved)\n"
    )
    proto = tiny.model(head, output="float[B,1] y")
    proto.graph.initializer.extend(
        [numpy_helper.from_array(BIAS[0, :1], "m"), numpy_helper.from_array(np.array([2]), "last")]
    )
    (wanted,) = run(proto, pairs())
    result = reduce(ir.from_proto(proto), method="tome", budget=Budget.remove(N // 2, [0]))
    np.testing.assert_allclose(run(result.model, pairs())[0], wanted, atol=2e-5)


SOFTMAX = "  b{n}_weights = Softmax <axis = -1> (b{n}_scores)\n"
SEEN = np.array([[0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 1, 1]] * 3, bool)


@pytest.mark.parametrize("proportional", [True, False])
def test_a_condition_is_a_bias_that_hides(proportional: bool) -> None:
    """Of a key merged of members seen and not seen, those seen count, however the mask is written."""
    models = []
    for line, mask in (
        ("  b{n}_masked = Add (b{n}_scores, m)\n", np.where(SEEN, 0, LOW).astype(np.float32)),
        ("  b{n}_masked = Where (m, b{n}_scores, low)\n", SEEN),
        ("  b{n}_masked = Where (m, low, b{n}_scores)\n", ~SEEN),
    ):
        attention = tiny.ATTENTION.replace(SOFTMAX, line + SOFTMAX.replace("scores", "masked"))
        proto = tiny.model(tiny.EVERY, attention=attention, output="float[B,6,8] y")
        proto.graph.initializer.append(numpy_helper.from_array(mask, "m"))
        if mask.dtype == bool:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(LOW), "low"))
        models.append(
            reduce(
                ir.from_proto(proto),
                method="tome",
                budget=Budget.remove(1),
                proportional_attention=proportional,
            ).model
        )
    added, *others = (run(each, tiny.picture())[0] for each in models)
    for other in others:
        np.testing.assert_allclose(other, added, atol=2e-5)


@pytest.mark.parametrize("where", ["scores", "weights"])
def test_the_rows_of_a_factor_are_averaged_over_the_members(where: str) -> None:
    """Behind the softmax that is the mean of what the members would have got; keys too are averaged, by size."""
    factor = np.random.default_rng(6).uniform(0.2, 2, (N, N)).astype(np.float32)
    if where == "scores":
        lines = SOFTMAX.replace("scores", "masked")
        attention = tiny.ATTENTION.replace(SOFTMAX, "  b{n}_masked = Mul (b{n}_scores, m)\n" + lines)
    else:
        mix = "  b{n}_mixed = MatMul (b{n}_weights, b{n}_vh)\n"
        line = "  b{n}_left = Mul (b{n}_weights, m)\n"
        attention = tiny.ATTENTION.replace(mix, line + mix.replace("weights", "left"))
    proto = tiny.model(tiny.EVERY, attention=attention, output="float[B,6,8] y")
    proto.graph.initializer.append(numpy_helper.from_array(factor, "m"))
    given = tiny.picture(1)
    given["x"][0, 1] = given["x"][0, 0] + 1e-4
    result = reduce(ir.from_proto(proto), method="tome", budget=Budget.remove(1, [0]), source_map=True)
    (found, went) = run(result.model, given)
    w = {name: array.astype(np.float64) for name, array in tiny.weights().items()}
    member = np.eye(N - 1)[went[0]]
    size = member.sum(0)

    def attend(x: np.ndarray, rows: np.ndarray, size: np.ndarray) -> np.ndarray:
        q, k, v = ((x @ w[n]).reshape(len(x), 2, 2).transpose(1, 0, 2) for n in ("wq", "wk", "wv"))
        scores = q @ k.transpose(0, 2, 1)
        scores = scores * rows if where == "scores" else scores
        weights = np.exp(scores) * size
        weights /= weights.sum(-1, keepdims=True)
        weights = weights * rows if where == "weights" else weights
        return x + (weights @ v).transpose(1, 0, 2).reshape(len(x), C)

    def mlp(x: np.ndarray) -> np.ndarray:
        return x + np.maximum(x @ w["w1"], 0) @ w["w2"]

    share = member / size
    x = share.T @ attend(given["x"][0].astype(np.float64), factor, np.ones(N))
    wanted = mlp(attend(mlp(x), share.T @ factor @ share, size)) @ w["w1"]
    np.testing.assert_allclose(found[0], wanted[went[0]], atol=2e-5)


TWO = "  b{n}_one = Add (b{n}_scores, one)\n  b{n}_masked = Add (b{n}_one, two)\n"


def two_biases() -> dict[str, np.ndarray]:
    """Biases that differ from key to key; the rows of the tokens that repeat are equal, so that merging them is exact."""
    made = np.random.default_rng(8)
    biases = {"one": made.standard_normal((1, 2, N, N)), "two": made.standard_normal((1, 1, N, N))}
    for bias in biases.values():
        bias[:, :, 2:] = bias[:, :, 1:2]
    return {name: bias.astype(np.float32) for name, bias in biases.items()}


def test_of_two_biases_a_merged_key_has_the_mean_of_their_sum() -> None:
    """log mean exp(b + c) is not log mean exp(b) + log mean exp(c): equal tokens merged change nothing."""
    proto = tiny.model(attention=tiny.ATTENTION.replace(SOFTMAX, TWO + SOFTMAX.replace("scores", "masked")))
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in two_biases().items()
    )
    given = tiny.picture(3)
    given["x"][:, 2:] = given["x"][:, 1:2]
    made = reduce(ir.from_proto(proto), method="tome", budget=Budget.remove(1))
    np.testing.assert_allclose(run(made.model, given)[0], run(proto, given)[0], atol=1e-5)


def test_two_biases_of_which_one_is_computed_are_refused_by_name() -> None:
    """Dropping tokens takes its entries out of both, and is not refused."""
    lines = "  b{n}_t = Tanh (strength)\n  b{n}_two = Mul (two, b{n}_t)\n" + TWO.replace("two)", "b{n}_two)")
    proto = tiny.model(
        inputs="float[B,6,4] x, float[1] strength",
        attention=tiny.ATTENTION.replace(SOFTMAX, lines + SOFTMAX.replace("scores", "masked")),
    )
    proto.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in two_biases().items()
    )
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    with pytest.raises(
        UnsupportedError, match=r"Add node 'Add_\d+' and Add node 'Add_\d+' each add a bias for every pair"
    ):
        reduce(ir.from_proto(proto), method="tome", budget=Budget.remove(1))
    made = reduce(ir.from_proto(proto), method="slice", budget=Budget.tokens([5, 4]))
    assert run(made.model, tiny.picture() | {"strength": np.ones(1, np.float32)})[0].shape == (2, 8)
