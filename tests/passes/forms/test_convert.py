"""Half precision: what is cast, what stays, and that the numbers and the chosen tokens hold."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

import tokenrt
from tests import zoo
from tests.passes.helpers import tiny
from tokenrt import lower
from tokenrt.errors import TokenrtError, UnsupportedError
from tokenrt.passes.forms.limits import STANDARD

FULL, FP16, BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
METHODS = ("tome", "topk", "evit")
FUSED = {
    "tome": {"mean over heads as a sum"},
    "topk": set[str](),
    "evit": {"product of one row as a sum", "scatter to what was chosen as a comparison"},
}
"""What a target that fuses changes beside the bodies; never an Attention node."""

COSINE = 0.999
convert = partial(tokenrt.convert, rules="standard", check=False)


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def weighted(text: str) -> ir.Model:
    """The model of a text whose last input is a weight [8,8]."""
    model = parse(text)
    value = model.graph.inputs.pop()
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) / 4
    value.const_value = ir.tensor(weight, name=value.name)
    model.graph.register_initializer(value)
    return model


def run(model: ir.Model, feeds: dict[str, Any]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, feeds)
    return found


def types(model: ir.Model) -> dict[str, str]:
    """Name of a node's operator, with its running number, to the type of its first output."""
    return {
        f"{node.op_type}": node.outputs[0].dtype.name if node.outputs[0].dtype else "?"
        for node in model.graph
        if node.op_type != "Cast"
    }


def sound(model: ir.Model) -> None:
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def reduced(method: str, opset: int = 18, layers: list[int] | None = None) -> ir.Model:
    budget = tokenrt.Budget.remove(2) if method == "tome" else tokenrt.Budget.keep(0.7, layers or [1, 2])
    return tokenrt.reduce(zoo.onnx("timm_vit", opset), method=method, budget=budget).model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("opset", [18, 23])
def test_a_reduced_transformer_gives_the_same_in_half(tmp_path: Path, method: str, opset: int) -> None:
    model = reduced(method, opset)
    original = tmp_path / "full.onnx"
    ir.save(model, original)
    made = convert(model, precision="fp16", keep_io=True, output=tmp_path / "half.onnx")
    sound(made.model)
    result = tokenrt.check(original, tmp_path / "half.onnx", min_cosine=COSINE, batch=2, samples=2)
    assert result.ok, result.as_dict()
    products = [node for node in made.model.graph if node.op_type in ("MatMul", "Gemm", "Attention", "Conv")]
    own = [node for node in products if not str(node.name).startswith("tokenrt_")]
    assert own
    assert {node.outputs[0].dtype for node in own} == {FP16}


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_is_sound_and_casts_where_operators_came_late_to_it(method: str) -> None:
    for opset in (18, 23):
        made = convert(reduced(method, opset), precision="bf16").model
        sound(made)
        (conv,) = (node for node in made.graph if node.op_type == "Conv")
        assert conv.outputs[0].dtype == (BF16 if opset == 23 else FULL)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep_io", [True, False])
def test_the_result_is_compared_with_the_float32_model(method: str, keep_io: bool) -> None:
    for precision, least in (("fp16", COSINE), ("bf16", 0.99)):
        made = tokenrt.convert(reduced(method, 23), precision=precision, keep_io=keep_io, rules="standard")
        assert made.drift is not None
        assert made.drift.ok, made.drift.reasons
        (drift,) = made.drift.outputs
        assert drift.cosine_min is not None
        assert least < drift.cosine_min < 1


def test_nothing_is_written_when_values_overflow(tmp_path: Path) -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 18]>
        main (float[B,4,4] x) => (float[B,4,4] y) <float big = {60000}> {
          s = MatMul (x, x)
          t = Mul (s, big)
          y = MatMul (t, x)
        }""")
    with pytest.raises(UnsupportedError, match=r"in fp16 not all values of output 'y' are finite; --bf16"):
        tokenrt.convert(model, precision="fp16", rules="standard", output=tmp_path / "h.onnx")
    assert not list(tmp_path.iterdir())
    assert tokenrt.convert(model, precision="bf16", rules="standard").drift is not None


def scores(model: ir.Model) -> ir.Model:
    """The model with the score and the choice of its one TokenSelect as further outputs."""
    (select,) = (node for node in model.graph if node.op_type == "TokenSelect")
    model.graph.outputs.extend([select.inputs[0], select.outputs[0]])
    return model


@pytest.mark.parametrize("method", ["topk", "evit"])
def test_the_same_tokens_are_chosen_but_for_near_ties(method: str) -> None:
    model = reduced(method, layers=[1])
    pixels = np.random.default_rng(0).standard_normal((16, 3, 64, 64), np.float32)
    half = convert(model, precision="fp16", keep_io=True).model
    *_, wide, chosen = run(scores(model), {"pixel_values": pixels})
    *_, narrow, again = run(scores(half), {"pixel_values": pixels})
    assert wide.dtype == narrow.dtype == np.float32
    error = np.abs(wide - narrow).max()
    assert error < 0.01 * wide.std()
    for row, before, after in zip(wide, chosen, again, strict=True):
        cut = row[before][row[before] > -np.inf].min()
        for token in set(before) ^ set(after):
            assert abs(row[token] - cut) <= 2 * error


def test_a_softmax_in_attention_is_half_and_any_other_is_not() -> None:
    model = weighted("""<ir_version: 8, opset_import: ["": 18]>
        main (float[B,4,8] x, float[8,8] w) => (float[B,4,8] y, float[B,4,8] p) {
          k = Transpose <perm = [0, 2, 1]> (x)
          s = MatMul (x, k)
          a = Softmax <axis = -1> (s)
          y = MatMul (a, x)
          z = MatMul (y, w)
          p = Softmax <axis = -1> (z)
        }""")
    made = convert(model, precision="fp16", keep_io=True).model
    sound(made)
    first, second = (node for node in made.graph if node.op_type == "Softmax")
    assert first.outputs[0].dtype == FP16
    assert second.outputs[0].dtype == FULL


def test_a_written_out_normalization_stays_in_float32_from_mean_to_product() -> None:
    model = weighted("""<ir_version: 8, opset_import: ["": 17]>
        main (float[B,4,8] x, float[8,8] w) => (float[B,4,8] y)
        <float two = {2}, float eps = {1e-12}, float[8] g = {1,1,1,1,1,1,1,1}> {
          a = MatMul (x, w)
          m = ReduceMean <axes = [-1]> (a)
          d = Sub (a, m)
          q = Pow (d, two)
          v = ReduceMean <axes = [-1]> (q)
          e = Add (v, eps)
          r = Sqrt (e)
          n = Div (d, r)
          h = Mul (n, g)
          y = MatMul (h, w)
        }""")
    x = np.random.default_rng(1).standard_normal((2, 4, 8)).astype(np.float32)
    made = convert(model, precision="fp16", keep_io=True).model
    sound(made)
    kinds = {name: value for name, value in types(made).items() if name not in ("MatMul", "Cast")}
    assert set(kinds.values()) == {"FLOAT"}
    np.testing.assert_allclose(run(made, {"x": x})[0], run(model, {"x": x})[0], rtol=0.01, atol=0.01)


def test_constants_outside_the_range_are_clamped_and_told() -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 18]>
        main (float[B,4,4] x, bool[4] m) => (float[B,4,4] y) <float low = {-3.4e38}> {
          s = MatMul (x, x)
          g = Where (m, s, low)
          a = Softmax <axis = -1> (g)
          y = MatMul (a, x)
        }""")
    made = convert(model, precision="fp16", keep_io=True)
    assert made.clamped == ("low",)
    feeds = {"x": np.eye(4, dtype=np.float32)[None], "m": np.array([True, True, False, True])}
    np.testing.assert_allclose(run(made.model, feeds)[0], run(model, feeds)[0], atol=1e-3)
    assert convert(model, precision="bf16").clamped == ()


def test_a_floor_that_vanishes_keeps_its_node_in_float32() -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 18]>
        main (float[B,4,4] x) => (float[B,4,4] y) <float floor = {1e-12}> {
          s = MatMul (x, x)
          t = Abs (s)
          u = Max (t, floor)
          y = Div (s, u)
        }""")
    made = convert(model, precision="fp16", keep_io=True).model
    zeros = {"x": np.zeros((1, 4, 4), np.float32)}
    np.testing.assert_array_equal(run(made, zeros)[0], 0)
    assert types(made)["Max"] == "FLOAT"


def test_inputs_and_outputs_turn_half_unless_they_are_to_keep() -> None:
    model = reduced("topk")
    (before,) = (value.name for value in model.graph.outputs)
    kept, turned = (convert(model, precision="fp16", keep_io=keep).model for keep in (True, False))
    assert {value.dtype for value in (*kept.graph.inputs, *kept.graph.outputs)} == {FULL}
    assert {value.dtype for value in (*turned.graph.inputs, *turned.graph.outputs)} == {FP16}
    assert (
        [value.name for value in kept.graph.outputs]
        == [value.name for value in turned.graph.outputs]
        == [before]
    )
    pixels = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float16)
    wide = run(kept, {"pixel_values": pixels.astype(np.float32)})[0]
    narrow = run(turned, {"pixel_values": pixels})[0]
    assert narrow.dtype == np.float16
    np.testing.assert_allclose(narrow, wide, rtol=2e-3, atol=2e-3)


def test_what_a_subgraph_takes_from_outside_stays_as_it_knows_it() -> None:
    model = parse("""<ir_version: 8, opset_import: ["": 18]>
        main (float[2,4,4] x, bool c) => (float[2,4,4] y) {
          s = MatMul (x, x)
          t = If (c) <
            then_branch = a () => (float[2,4,4] p) { p = Neg (s) },
            else_branch = b () => (float[2,4,4] q) { q = Abs (s) } >
          y = MatMul (t, s)
        }""")
    made = convert(model, precision="fp16", keep_io=True).model
    sound(made)
    x = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
    for truth in (True, False):
        feeds = {"x": x, "c": np.array(truth)}
        np.testing.assert_allclose(run(made, feeds)[0], run(model, feeds)[0], rtol=0.02, atol=0.02)


def test_an_embedding_is_a_table_in_half() -> None:
    model = weighted("""<ir_version: 8, opset_import: ["": 18]>
        main (int64[B,4] ids, float[8,8] w) => (float[B,4,8] y) {
          e = Gather (w, ids)
          y = MatMul (e, w)
        }""")
    made = convert(model, precision="fp16", keep_io=True).model
    sound(made)
    assert types(made)["Gather"] == "FLOAT16"
    assert {value.dtype for value in made.graph.initializers.values()} == {FP16}


def test_half_the_bytes_and_no_copy_of_a_weight() -> None:
    model = reduced("tome")
    made = convert(model, precision="fp16").model

    def size(item: ir.Model) -> int:
        return sum(
            value.const_value.nbytes for value in item.graph.initializers.values() if value.const_value
        )

    assert 0.45 * size(model) < size(made) < 0.56 * size(model)


def test_the_callers_model_stays_and_the_result_says_how_it_was_made(tmp_path: Path) -> None:
    model = reduced("tome")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    made = convert(model, precision="fp16", keep_io=True, output=tmp_path / "h.onnx")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert made.model.metadata_props["tokenrt.passes"].endswith("; convert{fp16,keep_io}")
    assert made.as_dict()["half_nodes"] == made.half > made.full > 0
    assert made.casts == len([node for node in made.model.graph if node.op_type == "Cast"])
    plain = lower(tmp_path / "h.onnx", inline=True).model
    assert {node.domain for node in plain.graph.all_nodes()} <= set(STANDARD)
    pixels = {"pixel_values": np.random.default_rng(0).standard_normal((2, 3, 64, 64), np.float32)}
    np.testing.assert_array_equal(run(plain, pixels)[0], run(made.model, pixels)[0])


def test_the_model_of_text_converts_too() -> None:
    model = ir.from_proto(tiny.model())
    made = convert(model, precision="fp16", keep_io=True).model
    sound(made)


def test_what_cannot_be_half_is_said() -> None:
    with pytest.raises(TokenrtError, match="precision is 'fp8'; there are fp16 and bf16"):
        convert(reduced("tome"), precision="fp8")
    done = convert(reduced("tome"), precision="fp16").model
    with pytest.raises(UnsupportedError, match="nothing in the model can be fp16"):
        convert(done, precision="fp16")


@pytest.mark.parametrize(
    "target",
    ["rtx-sm89", *(pytest.param(f"rtx-{sm}", marks=pytest.mark.slow) for sm in ("sm80", "sm86", "sm120"))],
)
@pytest.mark.parametrize("method", METHODS)
def test_tensorrt_rtx_builds_it_with_attention_nodes(tmp_path: Path, method: str, target: str) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra rtx)")
    model = convert(reduced(method, 23), precision="fp16").model
    assert [node.op_type for node in model.graph].count("Attention") == 4
    report = tokenrt.build(model, target=target, output=tmp_path / "m.engine", batch="1:2:4")
    assert {change.action for change in report.changes} == {"given the body for GPUs", *FUSED[method]}
    assert {port.dtype for port in (*report.inputs, *report.outputs)} == {"half"}
