"""What a target takes only so far: TopK, opsets, names; and the form of the nodes by TensorRT release."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from tests.targets.helpers import models
from tokenrt import lower
from tokenrt.errors import UnsupportedError
from tokenrt.passes.forms.legalize import Accepts, legalize
from tokenrt.targets import load

PRUNED = (
    """<ir_version: 10, opset_import: ["": 18, "tokenrt": 1]>
main (float[B,5000,4] tokens, float[B,5000] score) => (float[B,COUNT,4] kept) {
  kept, index = tokenrt.Keep <keep = [COUNT]> (tokens, score)
}
"""
    + models.KEEP
)

ATTENTION = """<ir_version: 11, opset_import: ["": 23]>
main (KIND[B,SHAPE] x, KIND[B,SHAPE] z) => (KIND[B,SHAPE] y) {
  y = Attention HEADS (x, z, z)
}
"""
FLAT = {"SHAPE": "6,32", "HEADS": "<q_num_heads = 2, kv_num_heads = 2>"}
DEEP = {"SHAPE": "2,6,16", "HEADS": ""}


def parse(text: str, **words: str) -> ir.Model:
    for word, value in words.items():
        text = text.replace(word, value)
    return ir.from_proto(onnx.parser.parse_model(text))


def run(model: ir.Model, feeds: dict[str, Any]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feeds)[0]
    return found


def actions(model: ir.Model, target: str, **options: Any) -> list[str]:
    return [change.action for change in lower(model, target=target, **options).changes]


def test_k_is_counted_in_functions_and_outside() -> None:
    assert legalize(parse(PRUNED, COUNT="3840"), Accepts(top_k=3840)) == ()
    for inlined in (False, True):
        model = parse(PRUNED, COUNT="3841")
        with pytest.raises(UnsupportedError, match=r"takes the 3841 largest.*stops at 3840: keep fewer"):
            legalize(model, Accepts(functions=not inlined, top_k=3840))


def test_the_form_follows_the_release() -> None:
    model = parse(PRUNED, COUNT="9")
    assert actions(model, "l4") == []
    assert actions(model, "agx-orin") == ["inlined"]
    assert actions(model, "l4", plugin=True) == []
    bare = lower(model, target="agx-orin", plugin=True)
    assert [change.action for change in bare.changes] == ["left without a body"]
    assert "function body rather than the plugin" in bare.changes[0].reason
    assert bare.form == "lower{plugin,target=agx-orin}"
    (node,) = bare.model.graph.all_nodes()
    assert node.attributes.get_string("plugin_namespace") == node.domain == "tokenrt"
    assert node.attributes.get_string("plugin_version") == "1"
    assert not bare.model.functions


def test_plugins_are_refused_where_none_load() -> None:
    with pytest.raises(UnsupportedError, match=r"loads no plugin library.*leave --plugin out"):
        lower(parse(PRUNED, COUNT="9"), target="rtx-sm89", plugin=True)


@pytest.mark.parametrize(
    ("target", "kind", "form", "split"),
    [
        ("l4", "float16", DEEP, False),
        ("l4", "float16", FLAT, True),
        ("l4", "bfloat16", DEEP, False),
        ("l4", "float", DEEP, True),
        ("agx-orin", "float16", DEEP, True),
        ("rtx-sm89", "float16", FLAT, False),
    ],
)
def test_attention_stays_where_the_target_takes_its_form(
    target: str, kind: str, form: dict[str, str], split: bool
) -> None:
    lowered = lower(parse(ATTENTION, KIND=kind, **form), target=target)
    assert ("Attention" in [node.op_type for node in lowered.model.graph]) == (not split)
    reasons = " ".join(change.reason for change in lowered.changes)
    if (target, form) == ("l4", FLAT):
        assert "with an axis of heads only" in reasons


def test_an_older_opset_is_declared_when_everything_means_the_same() -> None:
    model = parse(ATTENTION, KIND="float", **FLAT)
    lowered = lower(model, target="agx-orin").model
    assert lowered.opset_imports[""] == 20
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 6, 32), np.float32) for name in "xz"}
    np.testing.assert_allclose(run(lowered, feeds), run(model, feeds), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("line", "opset", "message"),
    [
        ("y = RMSNormalization (x, w)", 23, "RMSNormalization node 'y': the operator is newer"),
        ('y = Gelu <approximate = "tanh"> (x)', 18, ""),
        ('y = Cast <to = 1, round_mode = "up"> (x)', 24, "its attribute round_mode is newer"),
        ("y = GroupNormalization <num_groups = 2> (x, w, w)", 23, "its meaning changed in opset 21"),
    ],
)
def test_what_is_newer_is_refused_by_name(line: str, opset: int, message: str) -> None:
    model = parse(f"""<ir_version: 10, opset_import: ["": {opset}]>
        main (float[B,4] x, float[4] w) => (float[B,4] y) {{ {line} }}""")
    accepts = Accepts(opset=20)
    if not message:
        assert legalize(model, accepts) == ()
        return
    with pytest.raises(UnsupportedError) as caught:
        legalize(model, accepts)
    assert message in str(caught.value)
    assert "--opset 20" in str(caught.value)


def test_a_type_of_a_newer_opset_is_refused() -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 21]>
        main (float[4] x) => (uint4[4] y) { y = Cast <to = 21> (x) }""")
    with pytest.raises(UnsupportedError, match="it takes no UINT4 there"):
        legalize(model, Accepts(opset=20))


def test_names_json_cannot_hold_are_replaced() -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (float[B,4] x) => (float[B,4] y) { a_ = Neg (x)  b = Relu (a_)  y = Abs (b) }""")
    first, second, _ = model.graph
    first.name, second.name = 'layer "one"', "layer _one_"
    first.outputs[0].name = "in\\side"
    second.outputs[0].name = "in_side"
    feeds = {"x": np.ones((2, 4), np.float32)}
    before = run(model, feeds)
    changes = legalize(model, Accepts(any_names=False))
    assert first.name == "layer _one__1"
    assert [value.name for value in (*first.outputs, *second.outputs)] == ["in_side_1", "in_side"]
    assert [change.node for change in changes] == ['layer "one"', "in\\side"]
    np.testing.assert_array_equal(run(model, feeds), before)
    assert legalize(model, Accepts(any_names=False)) == ()


def test_a_bad_name_of_an_input_is_refused() -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (float[B,4] x) => (float[B,4] y) { y = Neg (x) }""")
    model.graph.inputs[0].name = 'x"'
    with pytest.raises(UnsupportedError, match="rename it where the model is exported"):
        legalize(model, Accepts(any_names=False))


@pytest.mark.parametrize("name", ["orin-nano", "thor", "h100", "rtx-sm120", "ort-cpu", "ort-tensorrt"])
def test_lowering_twice_changes_nothing_more(name: str) -> None:
    once = lower(parse(ATTENTION, KIND="float", **FLAT), target=name).model
    assert legalize(once, load(name).accepts()) == ()
