"""What reads the tokens behind the last block: exact where tokens repeat, or given all tokens back, never in between."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.passes.helpers import tiny
from tests.passes.helpers.running import close, run
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

SCORE = "  s = MatMul (b1_out, w1)\n  score = Slice (s, nil, one, two)\n"
ROW = (
    SCORE + "  flat = Squeeze (score, two)\n  p = Softmax <axis = -1> (flat)\n  weight = Unsqueeze (p, two)\n"
)
CHANNELS = "  turned = Transpose <perm = [0, 2, 1]> (b1_out)\n"
REST = "  rest = Slice (b1_out, one, six, one)\n"
SECOND = "  second = Transpose <perm = [1, 0, 2]> (b1_out)\n"
END = "  y = MatMul (pooled, w1)\n"
POOL = "  pooled = ReduceMean <axes = [1], keepdims = 0> ({})\n" + END
MEANT = "  mean = ReduceMean <axes = [1]> (b1_out)\n"

EXACT = {
    "class-token": tiny.CLASS,
    "mean": tiny.MEAN,
    "mean-without-the-first": REST + POOL.format("rest"),
    "mean-of-a-split": "  head, tail = Split <axis = 1> (b1_out, one_five)\n" + POOL.format("tail"),
    "class-token-and-mean": REST
    + "  mean = ReduceMean <axes = [1], keepdims = 0> (rest)\n  first = Gather <axis = 1> (b1_out, zero)\n"
    "  pooled = Add (mean, first)\n" + END,
    "global-average": CHANNELS
    + "  mean = GlobalAveragePool (turned)\n  pooled = Squeeze (mean, two)\n"
    + END,
    "sum": "  pooled = ReduceSum <keepdims = 0> (b1_out, one)\n" + END,
    "sum-over-the-count": "  sum = ReduceSum <keepdims = 0> (b1_out, one)\n  pooled = Div (sum, count)\n"
    + END,
    "mean-with-the-batch-second": SECOND
    + "  pooled = ReduceMean <axes = [0], keepdims = 0> (second)\n"
    + END,
    "sum-with-the-batch-second": SECOND + "  pooled = ReduceSum <keepdims = 0> (second, nil)\n" + END,
    "maximum": "  pooled = ReduceMax <axes = [1], keepdims = 0> (b1_out)\n" + END,
    "variance": MEANT + "  away = Sub (b1_out, mean)\n  square = Mul (away, away)\n" + POOL.format("square"),
    "gated-sum": SCORE
    + "  gate = Sigmoid (score)\n  part = Mul (b1_out, gate)\n  sum = ReduceSum <keepdims = 0> (part, one)\n"
    "  mass = ReduceSum <keepdims = 0> (gate, one)\n  pooled = Div (sum, mass)\n" + END,
    "attention-pool-as-a-product": SCORE
    + "  row = Transpose <perm = [0, 2, 1]> (score)\n  p = Softmax <axis = -1> (row)\n"
    "  mixed = MatMul (p, b1_out)\n  pooled = Squeeze (mixed, one)\n" + END,
    "attention-pool-as-a-sum": ROW
    + "  part = Mul (b1_out, weight)\n  pooled = ReduceSum <keepdims = 0> (part, one)\n"
    + END,
    "convolution": CHANNELS
    + "  c = Conv <kernel_shape = [3]> (turned, kernel)\n  mean = GlobalAveragePool (c)\n"
    "  pooled = Squeeze (mean, two)\n" + END,
    "largest-three": "  n = ReduceL2 <axes = [2], keepdims = 0> (b1_out)\n  v, i = TopK <axis = 1> (n, three)\n"
    "  y = MatMul (v, w3)\n",
    "the-last-token": "  pooled = Gather <axis = 1> (b1_out, last)\n" + END,
}
RESTORED = {
    "attention-pool-as-a-mean": (
        ROW + "  part = Mul (b1_out, weight)\n" + POOL.format("part"),
        "ReduceMean node .* only their sum counts",
    ),
    "softmax-on-another-axis": (
        SCORE + "  p = Softmax <axis = 1> (score)\n  part = Mul (b1_out, p)\n" + POOL.format("part"),
        "Softmax node .* axis other than the last",
    ),
    "largest-weight": (
        CHANNELS
        + "  p = Softmax <axis = -1> (turned)\n  pooled = ReduceMax <axes = [2], keepdims = 0> (p)\n"
        + END,
        "ReduceMax node .* only their sum counts",
    ),
    "squared-weights": (
        CHANNELS
        + "  p = Softmax <axis = -1> (turned)\n  q = Mul (p, p)\n  pooled = ReduceSum <keepdims = 0> (q, two)\n"
        + END,
        "Mul node .* not linear in the softmax",
    ),
    "logarithm-of-the-softmax": (
        CHANNELS
        + "  p = LogSoftmax <axis = -1> (turned)\n  pooled = ReduceSum <keepdims = 0> (p, two)\n"
        + END,
        "LogSoftmax node .* merged tokens would count as one",
    ),
    "weights-for-every-place": (
        "  every = Reshape (b1_out, flat24)\n  y = MatMul (every, w24)\n",
        "MatMul node .*token mixing",
    ),
    "mean-over-tokens-and-channels": (
        "  mean = ReduceMean (b1_out)\n  number = Squeeze (mean, one)\n  y = MatMul (number, ones)\n",
        "ReduceMean node .* averages over tokens and pictures at once",
    ),
    "position-of-the-largest": (
        "  n = ReduceL2 <axes = [2], keepdims = 0> (b1_out)\n  i = ArgMax <axis = 1> (n)\n  f = Cast <to = 1> (i)\n"
        "  y = MatMul (f, ones)\n",
        "ArgMax node .* returns positions of tokens",
    ),
    "logarithm-of-a-sum": (
        "  pooled = ReduceLogSumExp <axes = [1], keepdims = 0> (b1_out)\n" + END,
        "ReduceLogSumExp node .* no form weighted by size",
    ),
    "norm-over-the-tokens": (
        "  n = ReduceL2 <axes = [1]> (b1_out)\n  d = Div (b1_out, n)\n" + POOL.format("d"),
        "ReduceL2 node .* no form weighted by size",
    ),
    "products-of-tokens": (
        CHANNELS + "  gram = MatMul (turned, b1_out)\n" + POOL.format("gram"),
        "MatMul node .* sums over tokens without a softmax",
    ),
}
ARRAYS = np.random.default_rng(0)
EXTRA = {
    "nil": [0],
    "one": [1],
    "two": [2],
    "three": [3],
    "six": [6],
    "one_five": [1, 5],
    "flat24": [0, 24],
    "last": -1,
    "count": np.float32(6),
    "ones": np.ones((1, 8), np.float32),
    "w3": np.ones((3, 8), np.float32),
    "w24": ARRAYS.standard_normal((24, 8)).astype(np.float32),
    "kernel": ARRAYS.standard_normal((4, 4, 3)).astype(np.float32),
}


def build(head: str) -> onnx.ModelProto:
    made = tiny.model(head)
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in EXTRA.items() if name in used
    )
    return made


def repeated() -> dict[str, np.ndarray]:
    """The first token of each row, and five times its second."""
    given = tiny.picture(3)
    given["x"][:, 2:] = given["x"][:, 1:2]
    return given


@pytest.mark.parametrize("site", ["after-attention", "after-block"])
@pytest.mark.parametrize("budget", [Budget.remove(1), Budget.tokens([4, 4])], ids=["one-by-one", "at-once"])
@pytest.mark.parametrize("head", EXACT)
def test_exact_on_repeats(head: str, budget: Budget, site: str) -> None:
    made = build(EXACT[head])
    result = reduce(ir.from_proto(made), method="tome", budget=budget, site=site)
    assert result.plan.counts()[-1] == 4
    close(run(result.model, repeated()), run(made, repeated()))


@pytest.mark.parametrize("head", RESTORED)
def test_what_has_no_rule_has_all_tokens_back(head: str) -> None:
    text, message = RESTORED[head]
    made = build(text)
    assert any(re.search(message, line) for line in inspect(ir.from_proto(made)).follows)
    result = reduce(ir.from_proto(made), method="tome", budget=Budget.remove(1))
    assert result.report.restored
    close(run(result.model, repeated()), run(made, repeated()))


@pytest.mark.parametrize(
    "attention", [tiny.FLAT_ATTENTION, tiny.FOLDED_ATTENTION], ids=["one-head", "folded"]
)
@pytest.mark.parametrize("head", ["class-token", "mean"])
def test_attention_with_three_axes(attention: str, head: str) -> None:
    made = tiny.model(EXACT[head], attention=attention)
    result = reduce(ir.from_proto(made), method="tome", budget=Budget.remove(1))
    close(run(result.model, repeated()), run(made, repeated()))


@pytest.mark.parametrize("method", ["evit", "topk"])
def test_folded_heads_score_as_separate_ones(method: str) -> None:
    found = [
        run(
            reduce(ir.from_proto(made), method=method, budget=Budget.remove(1)).model,
            tiny.picture(),
        )
        for made in (tiny.model(), tiny.model(attention=tiny.FOLDED_ATTENTION))
    ]
    close(*found)


@pytest.mark.parametrize("method", ["tome", "topk"])
@pytest.mark.parametrize("site", ["after-attention", "after-block"])
def test_the_stream_itself_as_the_output(method: str, site: str) -> None:
    made = tiny.model("", output="float[B,6,4] b1_out")
    result = reduce(ir.from_proto(made), method=method, budget=Budget.remove(1), site=site)
    (found,), (wanted,) = run(result.model, repeated()), run(made, repeated())
    if method == "tome":
        close([found], [wanted])
    assert found.shape == wanted.shape
    assert [value.name for value in result.model.graph.outputs] == ["b1_out"]
    assert result.report.restored == ("b1_out before the model's output",)


LINEAR_ATTENTION = """
  b{n}_q = MatMul (b{n}_in, wq)
  b{n}_k = MatMul (b{n}_in, wk)
  b{n}_v = MatMul (b{n}_in, wv)
  b{n}_kt = Transpose <perm = [0, 2, 1]> (b{n}_k)
  b{n}_state = MatMul (b{n}_kt, b{n}_v)
  b{n}_result = MatMul (b{n}_q, b{n}_state)
"""


@pytest.mark.parametrize("method", ["tome", "topk"])
def test_attention_without_a_softmax_has_all_tokens_back(method: str) -> None:
    """Behind the last block with a softmax: what it sums over are the tokens themselves."""
    mixed = tiny.text().split("  b1_q = ")
    made = onnx.parser.parse_model(
        mixed[0] + (LINEAR_ATTENTION + tiny.REST).format(n=1).lstrip("\n") + tiny.CLASS + "}\n"
    )
    for name, array in tiny.weights().items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    wanted = run(made, repeated())
    result = reduce(ir.from_proto(made), method=method, budget=Budget.remove(1))
    assert result.report.restored
    if method == "tome":
        close(run(result.model, repeated()), wanted)
