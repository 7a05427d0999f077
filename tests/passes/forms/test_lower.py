"""The form of the reduction nodes: functions, bare nodes for plugins, or inlined."""

from __future__ import annotations

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
from tokenrt import lower
from tokenrt.errors import ModelError, TokenrtError, UnsupportedError
from tokenrt.passes.forms.legalize import Accepts, legalize
from tokenrt.passes.graph.model import on_disk

REDUCTION = """<ir_version: 10, opset_import: ["": 18, "tokenrt": 1]>
main (float[B,6,4] tokens, float[B,6] score) => (float[B,3,4] kept, float[B,2,4] fewer) {
  kept, index = tokenrt.Keep <keep = [3]> (tokens, score)
  short = GatherElements <axis = 1> (score, index)
  fewer, again = tokenrt.Keep <keep = [2]> (kept, short)
}
<domain: "tokenrt", opset_import: ["": 18]>
Keep <keep> (tokens, score) => (kept, index) {
  count = Constant <value_ints: ints = @keep> ()
  value, index = TopK <axis = -1> (score, count)
  axis = Constant <value_ints = [2]> ()
  deep = Unsqueeze (index, axis)
  kept = GatherND <batch_dims = 1> (tokens, deep)
}
"""

NESTED = """<ir_version: 10, opset_import: ["": 18, "own": 1]>
main (float[B,6] x) => (float[B,2] y) {
  y = own.Outer <keep = [2]> (x)
}
<domain: "own", opset_import: ["": 18, "own": 1]>
Outer <keep> (a) => (b) {
  c = Relu (a)
  b = own.Inner <count: ints = @keep> (c)
}
<domain: "own", opset_import: ["": 18]>
Inner <count> (x) => (value) {
  k = Constant <value_ints: ints = @count> ()
  value, index = TopK (x, k)
}
"""

PARTIAL = """<ir_version: 10, opset_import: ["": 18, "own": 1]>
main (float[B,6] x) => (float[B,6] y) {
  y = own.Bound (x)
}
<domain: "own", opset_import: ["": 18]>
Bound (a, low) => (b, c) {
  b = Clip (a, low)
  c = Neg (a)
}
"""

DEFAULT = """<ir_version: 10, opset_import: ["": 18, "own": 1]>
main (float[B,6] x) => (float[B,6] y) { y = own.Scaled (x) }
<domain: "own", opset_import: ["": 18]>
Scaled <by: float = 1.0> (a) => (b) {
  c = Constant <value_float: float = @by> ()
  b = Mul (a, c)
}
"""

FLAT = Accepts(nested_attributes=False, optional_values=False, plugins=False, contrib=False)


def parse(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def run(model: ir.Model, feeds: dict[str, Any]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph.all_nodes()]


def reduction_feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "tokens": rng.standard_normal((2, 6, 4), np.float32),
        "score": rng.standard_normal((2, 6), np.float32),
    }


def test_inline_leaves_standard_operators_and_the_same_numbers() -> None:
    model = parse(REDUCTION)
    lowered = lower(model, inline=True)
    assert {node.domain for node in lowered.model.graph.all_nodes()} == {""}
    assert not lowered.model.functions
    assert "tokenrt" not in lowered.model.opset_imports
    assert [change.action for change in lowered.changes] == ["inlined", "inlined"]
    names = [value.name for node in lowered.model.graph for value in node.outputs]
    assert len(names) == len(set(names))
    onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
    for before, after in zip(
        run(model, reduction_feeds()), run(lowered.model, reduction_feeds()), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_the_callers_model_stays_as_it_is() -> None:
    model = parse(REDUCTION)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    lower(model, inline=True)
    lower(model, plugin=True)
    lower(model, target="ort-cpu")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_inline_resolves_nested_attributes_defaults_and_missing_values() -> None:
    x = np.random.default_rng(0).standard_normal((2, 6), np.float32)
    for text in (NESTED, PARTIAL, DEFAULT):
        lowered = lower(parse(text), inline=True)
        assert not lowered.model.functions
        onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
        (y,) = run(lowered.model, {"x": x})
        expected = np.sort(np.maximum(x, 0))[:, :-3:-1] if text is NESTED else x
        np.testing.assert_array_equal(y, expected)


def test_plugin_leaves_bare_nodes_and_the_opset_import() -> None:
    lowered = lower(parse(REDUCTION), plugin=True)
    assert not lowered.model.functions
    assert lowered.model.opset_imports["tokenrt"] == 1
    assert operators(lowered.model).count("Keep") == 2
    assert "plugin library" in str(lowered.changes[0])


def test_written_models_say_how_they_were_made(tmp_path: Path) -> None:
    source = tmp_path / "reduced.onnx"
    model = parse(REDUCTION)
    model.metadata_props["tokenrt.passes"] = "reduce{method=topk}"
    ir.save(model, source)
    lowered = tokenrt.lower(source, inline=True, output=tmp_path / "plain.onnx")
    assert lowered.output == tmp_path / "plain.onnx"
    again = ir.load(tmp_path / "plain.onnx")
    assert again.metadata_props["tokenrt.passes"] == "reduce{method=topk}; lower{inline}"
    assert lowered.as_dict()["form"] == "lower{inline}"


@pytest.mark.parametrize(
    "choice", [{}, {"inline": True, "plugin": True}, {"inline": True, "target": "ort-cpu"}]
)
def test_exactly_one_form_is_chosen(choice: dict[str, Any]) -> None:
    with pytest.raises(TokenrtError, match="exactly one"):
        lower(parse(REDUCTION), **choice)


def test_functions_of_another_opset_are_refused_with_the_versions() -> None:
    text = REDUCTION.replace('tokenrt", opset_import: ["": 18]', 'tokenrt", opset_import: ["": 17]')
    with pytest.raises(ModelError, match=r"version 18 .* version 17"):
        lower(parse(text), inline=True)


def test_nothing_changes_for_a_target_that_takes_functions() -> None:
    lowered = lower(parse(REDUCTION), target="rtx-sm89")
    assert lowered.changes == ()
    assert len(lowered.model.functions) == 1


@pytest.mark.parametrize(
    ("text", "reason"), [(NESTED, "attribute of its own"), (PARTIAL, "without some inputs")]
)
def test_functions_the_parser_cannot_take_are_inlined(text: str, reason: str) -> None:
    model = parse(text)
    changes = legalize(model, FLAT)
    assert [change.action for change in changes] == ["inlined"]
    assert reason in changes[0].reason
    assert run(model, {"x": np.ones((2, 6), np.float32)})[0].shape[0] == 2


@pytest.mark.parametrize(("operator", "channels"), [("Conv", 2), ("ConvTranspose", 9)])
def test_a_missing_bias_beside_an_empty_constant_becomes_zeros(operator: str, channels: int) -> None:
    weight = np.random.default_rng(0).standard_normal((2, 3, 2, 2) if channels == 2 else (3, 9, 2, 2))
    text = f"""<ir_version: 10, opset_import: ["": 18, "own": 1]>
    main (float[B,3,4,4] x, float[{",".join(map(str, weight.shape))}] w) => (float[B,{channels},N,M] y, int64[2] n) {{
      y = {operator} (x, w)
      n = own.Listed <left: ints = [], right = [1, 2]> ()
    }}
    <domain: "own", opset_import: ["": 18]>
    Listed <left, right> () => (both) {{
      a = Constant <value_ints: ints = @left> ()
      b = Constant <value_ints: ints = @right> ()
      both = Concat <axis = 0> (a, b)
    }}"""
    feeds = {"x": np.ones((2, 3, 4, 4), np.float32), "w": weight.astype(np.float32)}
    model = parse(text)
    before = run(model, feeds)
    (change,) = legalize(model, Accepts(empty_constants=False))
    assert (change.operator, change.action) == (operator, "given a bias of zeros")
    for expected, got in zip(before, run(model, feeds), strict=True):
        np.testing.assert_array_equal(got, expected)
    full = parse(text.replace("[], right", "[3], right").replace("int64[2]", "int64[3]"))
    assert legalize(full, Accepts(empty_constants=False)) == ()


def test_a_bare_node_is_refused_by_name_where_there_are_no_plugins() -> None:
    bare = lower(parse(REDUCTION), plugin=True).model
    with pytest.raises(UnsupportedError, match=r"tokenrt\.Keep node .* no function body .* --plugin"):
        lower(bare, target="rtx-sm80")


def test_a_contributed_operator_is_refused_by_name() -> None:
    text = """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
    main (float[B,6] x) => (float[B,6] y) { y = com.microsoft.FastGelu (x) }"""
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.FastGelu node 'y'.*transformer optimizer"):
        lower(parse(text), target="rtx-sm80")
    assert lower(parse(text), target="ort-cpu").changes == ()


def test_on_disk_gives_a_file_for_an_object_and_its_own_for_a_path(tmp_path: Path) -> None:
    with on_disk(parse(REDUCTION)) as path:
        assert path.is_file()
    assert not path.exists()
    with on_disk(tmp_path / "m.onnx") as path:
        assert path == tmp_path / "m.onnx"
