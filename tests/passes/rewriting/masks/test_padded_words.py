"""Texts of different lengths in one batch: padding leaves first, asks nothing, is fused into nothing, and never wins over words.

The right values are computed by NumPy on each text alone, without padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from tests.passes.helpers import tiny
from tests.passes.helpers.running import run, session
from tokenrt.errors import MethodError, TokenrtError
from tokenrt.passes import methods
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.profile import timing

N, C, H = tiny.TOKENS, tiny.WIDTH, tiny.HEADS
LENGTHS = (6, 5, 4, 3)
SOFTMAX = "  b{n}_weights = Softmax <axis = -1> (b{n}_scores)\n"
READ = SOFTMAX.replace("scores", "masked")
BIAS = (
    "  b{n}_row = Unsqueeze (mask, axes)\n  b{n}_there = Cast <to = 1> (b{n}_row)\n  b{n}_gone = Sub (one, b{n}_there)\n"
    "  b{n}_bias = Mul (b{n}_gone, low)\n  b{n}_masked = Add (b{n}_scores, b{n}_bias)\n"
)
CONDITION = (
    "  b{n}_row = Unsqueeze (mask, axes)\n  b{n}_there = Cast <to = 9> (b{n}_row)\n"
    "  b{n}_masked = Where (b{n}_there, b{n}_scores, low)\n"
)
BOTH = "  y = MatMul (b1_out, w1)\n  first = Gather <axis = 1> (b1_out, zero)\n  z = MatMul (first, w1)\n"
FORMS = {
    "added": (BIAS, -1e9),
    "added as -10000": (BIAS, -1e4),
    "added as the lowest number": (BIAS, float(np.finfo(np.float32).min)),
    "a condition": (CONDITION, float(np.finfo(np.float32).min)),
    "a condition and -inf": (CONDITION, -np.inf),
}
Array = np.ndarray


def model(
    form: str = "added", batch: str = "B", classed: bool = False, bias: Array | None = None
) -> ir.Model:
    lines, low = FORMS[form]
    if bias is not None:
        lines = lines.replace("Add (b{n}_scores", "Add (b{n}_placed")
        lines = "  b{n}_placed = Add (b{n}_scores, places_bias)\n" + lines
    proto = tiny.model(
        BOTH if classed else tiny.EVERY,
        attention=tiny.ATTENTION.replace(SOFTMAX, lines + READ),
        inputs=f"float[{batch},6,4] x, int64[{batch},6] mask",
        output=f"float[{batch},6,8] y" + (f", float[{batch},8] z" if classed else ""),
    )
    held = {"axes": np.array([1, 2]), "one": np.float32(1), "low": np.float32(low), "places_bias": bias}
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name)
        for name, array in held.items()
        if array is not None and name in used
    )
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def texts(side: str, seed: int = 0, junk: int = 1) -> tuple[dict[str, Array], list[Array]]:
    """A batch padded on one side with random rows and a score of each, and the positions of each text's words."""
    anything = np.random.default_rng(100 + junk)
    x = anything.standard_normal((len(LENGTHS), N, C)).astype(np.float32) * 3
    importance = anything.random((len(LENGTHS), N)).astype(np.float32)
    segments = anything.integers(-1, N, (len(LENGTHS), N))
    words, places = np.random.default_rng(seed), []
    mask = np.zeros((len(LENGTHS), N), np.int64)
    for row, length in enumerate(LENGTHS):
        place = np.arange(length) + (N - length if side == "left" else 0)
        x[row, place] = words.standard_normal((length, C))
        importance[row, place] = (np.arange(length) * 5 % 7) / 7
        segments[row, place] = np.arange(length) // 2
        mask[row, place] = 1
        places.append(place)
    return {"x": x, "mask": mask, "importance": importance, "segments": segments}, places


def attention(x: Array, bias: Array | float = 0) -> tuple[Array, Array]:
    """Weights [H,N,N] and the stream behind the attention, of one text alone."""
    w = {name: array.astype(np.float64) for name, array in tiny.weights().items()}
    q, k, v = ((x @ w[name]).reshape(len(x), H, C // H).transpose(1, 0, 2) for name in ("wq", "wk", "wv"))
    scores = q @ k.transpose(0, 2, 1) + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights, x + (weights @ v).transpose(1, 0, 2).reshape(len(x), C)


def mlp(x: Array) -> Array:
    w = tiny.weights()
    return x + np.maximum(x @ w["w1"], 0) @ w["w2"]


def by_hand(x: Array, method: str, keep: int, bias: Array | None = None) -> tuple[Array, Array]:
    """Words kept, and their outputs, when `keep` of one text's rows may stay behind the first attention.

    A fused word is one of them, at the place of the best that leaves, and has no output of its own.
    """
    here: Array | float = 0 if bias is None else bias
    weights, x = attention(x.astype(np.float64), here)
    score = weights.mean((0, 1))
    order = np.argsort(-score, kind="stable")
    count = min(len(x), keep - (method == "evit"))
    kept, gone = np.sort(order[:count]), order[count:]
    rows = x[kept]
    place = kept
    if method == "evit" and len(gone):
        rows = np.concatenate([rows, (score[gone, None] * x[gone]).sum(0, keepdims=True)])
        place = np.append(kept, gone[0])
    after = mlp(attention(mlp(rows), 0 if bias is None else bias[:, place][:, :, place])[1])
    return kept, after[: len(kept)] @ tiny.weights()["w1"]


def reduced(made: ir.Model, method: str, **options: str) -> ir.Model:
    return reduce(made, method=method, budget=Budget.remove(2, [0]), options=options).model


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["topk", "evit"])
@pytest.mark.parametrize(("form", "batch"), [*((form, "B") for form in FORMS), ("added", str(len(LENGTHS)))])
def test_a_padded_text_is_reduced_as_it_is_alone(form: str, batch: str, method: str, side: str) -> None:
    ready = session(reduced(model(form, batch), method))
    given, places = texts(side)
    (found,) = run(ready, given)
    (other,) = run(ready, texts(side, junk=2)[0])
    for row, place in enumerate(places):
        kept, wanted = by_hand(given["x"][row, place], method, N - 2)
        np.testing.assert_allclose(found[row, place[kept]], wanted, atol=2e-5)
        np.testing.assert_allclose(found[row, place], other[row, place], atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_bias_for_each_pair_counts_where_padding_asks_nothing(side: str) -> None:
    bias = np.random.default_rng(9).standard_normal((H, N, N)).astype(np.float32)
    given, places = texts(side)
    for method in ("topk", "evit"):
        (found,) = run(session(reduced(model(bias=bias), method)), given)
        for row, place in enumerate(places):
            part = bias[:, place][:, :, place]
            kept, wanted = by_hand(given["x"][row, place], method, N - 2, part)
            np.testing.assert_allclose(found[row, place[kept]], wanted, atol=2e-5)


def test_the_class_token_of_a_padded_text_is_its_first_word() -> None:
    """Position 0 is read, so it stays; padded on the left it is padding, and the first word asks in its place."""
    made = reduced(model(classed=True), "topk", score="class")
    for side in ("right", "left"):
        given, places = texts(side)
        found, _ = run(session(made), given)
        other, _ = run(session(made), texts(side, junk=2)[0])
        for row, place in enumerate(places):
            np.testing.assert_allclose(found[row, place], other[row, place], atol=1e-6)
            x = given["x"][row, place]
            room = N - 2 - (place[0] > 0)
            weights, stream = attention(x.astype(np.float64))
            score = weights.mean(0)[0]
            if place[0] == 0:
                score[0] = np.inf
            kept = np.sort(np.argsort(-score, kind="stable")[:room])
            wanted = mlp(attention(mlp(stream[kept]))[1]) @ tiny.weights()["w1"]
            np.testing.assert_allclose(found[row, place[kept]], wanted, atol=2e-5)


NAMES = [
    name for name in methods.of_tokens() if not methods.get(name).needs and not methods.get(name).pending
]


@pytest.mark.parametrize("name", NAMES)
def test_no_method_minds_what_stands_behind_the_mask(name: str) -> None:
    try:
        ready = session(reduce(model(), method=name, budget=Budget.remove(2, [0])).model)
    except TokenrtError as error:
        pytest.skip(f"{name} does not take this model: {error}")
    for side in ("left", "right"):
        given, places = texts(side)
        state = timing.feeds(ready, len(places))  # of methods that go on from a step before
        found, other = (run(ready, state | each)[0] for each in (given, texts(side, junk=2)[0]))
        for row, place in enumerate(places):
            np.testing.assert_allclose(found[row, place], other[row, place], atol=1e-5)


ADVISED: Sequence[tuple[str, str]] = [
    ("topk", "score"),
    ("evit", "score"),
    ("bat", "score"),
    ("diffrate", "score"),
    ("evovit", "score"),
    ("token_transforming", "score"),
    ("kmedoids", "weight"),
    ("token_pooling", "weight"),
]


@pytest.mark.parametrize(("name", "option"), ADVISED)
def test_what_is_advised_without_a_class_token_works(name: str, option: str) -> None:
    with pytest.raises(MethodError, match=f"(?s)needs a class token.*{option}=received"):
        reduced(model(), name, **{option: "class"})
    (found,) = run(reduced(model(), name, **{option: "received"}), texts("right")[0])
    assert np.isfinite(found).all()
