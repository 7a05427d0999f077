"""Half precision at the operators of a reduction: what reaches them in half, without a cast, and what stays in float32."""

from __future__ import annotations

from functools import partial

import onnx.parser
import onnx_ir as ir
import pytest

import tokenrt
from tests import zoo
from tokenrt.passes.forms.precision import MOVED
from tokenrt.passes.ops import DOMAIN, OPERATORS

FULL, FP16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
convert = partial(tokenrt.convert, rules="standard", check=False)


def reduced(method: str) -> ir.Model:
    budget = tokenrt.Budget.remove(2) if method == "tome" else tokenrt.Budget.keep(0.7, [1, 2])
    return tokenrt.reduce(zoo.onnx("timm_vit", 18), method=method, budget=budget).model


def test_the_reduction_stays_in_float32_with_casts_at_its_operators() -> None:
    made = convert(reduced("tome"), precision="fp16").model
    seen = set()
    for node in made.graph:
        if node.domain == DOMAIN:
            for name, value in zip(_inputs(node), node.inputs, strict=True):
                assert value is not None
                if value.dtype in (FULL, FP16):
                    seen.add((node.op_type, name, value.dtype))
            if node.op_type == "TokenCombine":
                assert node.attributes.get_int("type") == int(FP16)
                assert [value.dtype for value in node.outputs] == [FP16, FULL]
        if node.op_type == "Log":
            assert node.outputs[0].dtype == FULL
    assert seen == {
        ("TokenMatch", "metric", FULL),
        ("TokenCombine", "tokens", FP16),
        ("TokenCombine", "size", FULL),
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("method", ["topk", "evit"])
def test_queries_and_keys_reach_the_score_in_half_without_a_cast(method: str, precision: str) -> None:
    """The kernel reads half, and the body casts what it reads: a cast before the node would be a kernel more."""
    made = convert(reduced(method), precision=precision).model
    scores = [node for node in made.graph if node.op_type == "TokenScore"]
    assert scores
    for node in scores:
        for value in node.inputs[:2]:
            assert value is not None
            assert value.dtype == {"fp16": FP16, "bf16": BF16}[precision]
            assert "Cast" not in _before(value)
        bias = node.inputs[2]
        assert bias is not None
        assert bias.dtype == FULL


@pytest.mark.parametrize("method", ["aim", "diffrate"])
def test_tokens_that_are_compared_reach_the_operator_in_half_without_a_cast(method: str) -> None:
    """Where the metric is the tokens themselves, all channels of them, as the residual sum gives them."""
    made = convert(reduced(method), precision="fp16").model
    matches = [node for node in made.graph if node.op_type == "TokenMatch"]
    assert matches
    for match in matches:
        (metric,) = match.inputs
        assert metric is not None
        assert (metric.dtype, match.outputs[0].dtype) == (FP16, FULL)
        node = metric.producer()
        while node is not None and node.op_type in MOVED:
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert node is not None
        assert node.op_type == "Add"


def _before(value: ir.Value) -> list[str]:
    """The operators that give a value, back to the product it comes from."""
    found = []
    node = value.producer()
    while node is not None and node.op_type not in ("MatMul", "Gemm"):
        found.append(node.op_type)
        given = node.inputs[0]
        node = None if given is None else given.producer()
    assert node is not None, "no product lies before it"
    return found


def test_a_score_of_two_types_is_given_both_in_float32() -> None:
    """Queries and keys have one type: where the keys stay float32, the queries are cast to it."""
    text = """<ir_version: 8, opset_import: ["": 18, "tokenrt": 1]>
    g (float[2,2,4,4] x, float[2,2,4,4] keys, float[1,1,1,1] bias) => (float[2,4] score) {
        queries = MatMul (x, keys)
        score = tokenrt.TokenScore <scale: float = 0.5, first_row: ints = [0], end_row: ints = [1]> (queries, keys, bias)
    }"""
    made = convert(ir.from_proto(onnx.parser.parse_model(text)), precision="fp16", keep_io=True).model
    (node,) = (node for node in made.graph if node.op_type == "TokenScore")
    assert [value.dtype for value in node.inputs if value is not None] == [FULL] * 3


def _inputs(node: ir.Node) -> tuple[str, ...]:
    return OPERATORS[node.op_type].inputs
