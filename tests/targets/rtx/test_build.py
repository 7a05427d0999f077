"""Engines built by TensorRT-RTX on a machine without a GPU."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import tokenrt
from tests.targets.helpers.models import ATTENTION, REDUCTION, parse, reduction
from tokenrt.errors import (
    BuildError,
    DependencyError,
    ShapeError,
    TargetError,
    TokenrtError,
    UnsupportedError,
)
from tokenrt.targets import load
from tokenrt.targets.rtx import builder

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra rtx)")

TARGETS = ["rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120", "rtx-portable"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_functions_build_for_every_capability(tmp_path: Path, target: str, kind: str) -> None:
    engine = tmp_path / "r.engine"
    report = tokenrt.build(reduction(kind), target=target, output=engine)
    assert engine.stat().st_size == report.engine_bytes > 0
    assert report.changes == ()
    assert report.batch == (1, 8, 8)
    assert [shape[0] for shape in report.inputs[0].shapes] == [1, 8, 8]
    assert report.outputs[0].dtype == ("float" if kind == "float" else "half")
    assert json.loads((tmp_path / "r.engine.json").read_text()) == report.as_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.engine", "r.engine.json"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "split"), [("float", True), ("float16", False)])
def test_attention_builds_for_every_capability(tmp_path: Path, target: str, kind: str, split: bool) -> None:
    model = parse(ATTENTION.replace("KIND", kind))
    report = tokenrt.build(model, target=target, output=tmp_path / "a.engine", batch=2)
    assert [change.operator for change in report.changes] == ["Attention"] * split
    assert report.batch == (2, 2, 2)


def test_the_manifest_names_the_model_by_its_bytes(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    ir.save(reduction(), source)
    report = tokenrt.build(
        source, target="rtx-sm89", output=tmp_path / "m.engine", batch="1:2:4", workspace=64
    )
    assert report.model == str(source)
    assert report.model_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert report.batch == (1, 2, 4)
    assert report.options["workspace_mib"] == 64
    assert set(report.versions) == {"tokenrt", "onnx", "tensorrt_rtx"}


def test_weights_beside_the_model_are_read_and_count(tmp_path: Path) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (float[B,4] x, float[4,4] w) => (float[B,4] y) { y = MatMul (x, w) }""")
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(np.eye(4, dtype=np.float32), name="w")
    model.graph.register_initializer(weight)
    ir.save(model, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    report = tokenrt.build(tmp_path / "m.onnx", target="rtx-sm80", output=tmp_path / "m.engine")
    both = (tmp_path / "m.onnx").read_bytes() + (tmp_path / "m.data").read_bytes()
    assert report.model_sha256 == hashlib.sha256(both).hexdigest()


def test_stages_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    tokenrt.build(reduction(), target="rtx-sm86", output=tmp_path / "r.engine", progress=told.append)
    assert told[-2:] == ["building for SM86", "writing"]
    assert "parsing" in told


def test_the_builders_log_is_silent_unless_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenrt.build(reduction(), target="rtx-sm89", output=tmp_path / "r.engine")
    assert capfd.readouterr() == ("", "")
    tokenrt.build(reduction(), target="rtx-sm89", output=tmp_path / "v.engine", verbose=True)
    assert "tensorrt-rtx info: " in capfd.readouterr().err


def test_a_fixed_batch_keeps_its_size_and_refuses_another(tmp_path: Path) -> None:
    model = reduction(batch="4")
    report = tokenrt.build(model, target="rtx-sm89", output=tmp_path / "r.engine")
    assert report.batch is None
    assert report.inputs[0].shapes == ((4, 6, 8),)
    assert tokenrt.build(model, target="rtx-sm89", output=tmp_path / "r.engine", batch=4).batch is None
    with pytest.raises(
        BuildError, match=r"batch 1:2:4 was asked for.* fixed: tokens \(4\).*leave --batch out"
    ):
        tokenrt.build(model, target="rtx-sm89", output=tmp_path / "r.engine", batch=(1, 2, 4))


@pytest.mark.parametrize("batch", ["", "4:2:1", "1:2", "a:b:c", 0, (0, 1, 2), "1:2:3:4"])
def test_a_wrong_batch_is_refused(tmp_path: Path, batch: Any) -> None:
    with pytest.raises(BuildError, match="expected a number or MIN:OPT:MAX"):
        tokenrt.build(reduction(), target="rtx-sm89", output=tmp_path / "r.engine", batch=batch)


def test_another_dynamic_dimension_is_refused_with_the_remedy(tmp_path: Path) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (int64[B,S] ids) => (int64[B,S] y) { y = Neg (ids) }""")
    with pytest.raises(ShapeError, match=r"axis 1 of input 'ids' is dynamic \(S\).*--shape ids=Bx128"):
        tokenrt.build(model, target="rtx-sm89", output=tmp_path / "r.engine")


@pytest.mark.parametrize("name", ["", "tail/nonzero"])
def test_the_parsers_refusal_names_the_node(tmp_path: Path, name: str) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (float[B,4] x) => (int64[2,S] y) { y = NonZero (x) }""")
    model.graph.node(0).name = name
    with pytest.raises(
        BuildError, match=rf"does not take NonZero node '{name or 'y'}' \(domain ai\.onnx\): ."
    ):
        tokenrt.build(model, target="rtx-sm89", output=tmp_path / "r.engine")
    assert not list(tmp_path.iterdir())


def test_the_parsers_refusal_inside_a_function_names_the_function(tmp_path: Path) -> None:
    text = REDUCTION.replace("kept = GatherND <batch_dims = 1> (tokens, deep)", "kept = NonZero (tokens)")
    model = parse(text.replace("KIND[BATCH,3,8] kept", "int64[3,S] kept").replace("KIND", "float"))
    with pytest.raises(BuildError, match=r"NonZero node 'kept' \(domain ai\.onnx\), in function .*Keep"):
        tokenrt.build(model, target="rtx-sm89", output=tmp_path / "r.engine", batch=1)


def test_the_builders_refusal_names_the_node(tmp_path: Path) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (float[B,5000] x) => (float[B,4000] y, int64[B,4000] i) {
          k = Constant <value_ints = [4000]> ()
          y, i = TopK (x, k) }""")
    target = load("rtx-sm89")
    with pytest.raises(UnsupportedError, match=r"TopK node 'y' takes the 4000 largest.*stops at 3840"):
        tokenrt.build(model, target=target, output=tmp_path / "r.engine")
    unsaid = {name: fact for name, fact in target.facts.items() if name != "top_k"}
    with pytest.raises(BuildError, match=r"cannot build the model: TopK node 'y' .*3840"):
        tokenrt.build(model, target=replace(target, facts=unsaid), output=tmp_path / "r.engine")
    assert not list(tmp_path.iterdir())


def test_foreign_nodes_never_reach_the_parser(tmp_path: Path) -> None:
    # The parser ignores the domain and dies of this one.
    model = parse("""<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        main (float[B,16,128] x) => (float[B,16,128] y) {
          y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x) }""")
    with pytest.raises(UnsupportedError, match=r"com\.microsoft\.MultiHeadAttention node 'y'"):
        tokenrt.build(model, target="rtx-sm89", output=tmp_path / "r.engine")
    bare = tokenrt.lower(reduction(), plugin=True).model
    with pytest.raises(UnsupportedError, match=r"tokenrt\.Keep node .* no plugins"):
        tokenrt.build(bare, target="rtx-sm89", output=tmp_path / "r.engine")


def test_a_nested_attribute_is_taken_out_before_it_crashes_the_parser(tmp_path: Path) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18, "own": 1]>
        main (float[B,6] x) => (float[B,2] y) { y = own.Outer <keep = [2]> (x) }
        <domain: "own", opset_import: ["": 18, "own": 1]>
        Outer <keep> (a) => (b) { b = own.Inner <count: ints = @keep> (a) }
        <domain: "own", opset_import: ["": 18]>
        Inner <count> (x) => (value) { k = Constant <value_ints: ints = @count> ()
          value, index = TopK (x, k) }""")
    report = tokenrt.build(model, target="rtx-sm120", output=tmp_path / "r.engine")
    assert [change.action for change in report.changes] == ["inlined"]


def test_an_empty_list_after_a_convolution_without_bias_builds(tmp_path: Path) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18, "own": 1]>
        main (float[B,3,8,8] x) => (float[B,1,4,4] y, int64[2] n)
        <float[1,3,2,2] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
          y = Conv <strides = [2, 2]> (x, w)
          n = own.Listed <left: ints = [], right = [1, 2]> () }
        <domain: "own", opset_import: ["": 18]>
        Listed <left, right> () => (both) { a = Constant <value_ints: ints = @left> ()
          b = Constant <value_ints: ints = @right> ()
          both = Concat <axis = 0> (a, b) }""")
    report = tokenrt.build(model, target="rtx-sm80", output=tmp_path / "r.engine")
    assert [change.action for change in report.changes] == ["given a bias of zeros"]


def test_attention_the_profile_is_wrong_about_is_split_in_a_second_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    (folder / "rtx-sm89.toml").write_text(
        """name = "rtx-sm89"
        summary = "too much promised"
        builder = "tensorrt-rtx"
        extends = ["rtx-sm89"]
        facts.attention = { value = ["fp32", "fp16"], source = "a guess", date = 2026-11-22 }"""
    )
    monkeypatch.setenv("TOKENRT_TARGETS", str(folder))
    model = parse(ATTENTION.replace("KIND", "float"))
    report = tokenrt.build(model, target="rtx-sm89", output=tmp_path / "a.engine")
    assert [change.reason for change in report.changes] == [
        "the builder found no kernel for it, or crashed where it was one node"
    ]


def test_attention_is_split_where_the_builder_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of DivPrune behind the vision part of Qwen3-VL at opset 23, whose Attention it takes without the loop."""
    seen: list[int] = []

    def compiled(model: Path, output: Path, **options: Any) -> builder.Engine:
        seen.append(sum(node.op_type == "Attention" for node in ir.load(model).graph))
        if len(seen) == 1:
            raise BuildError("TensorRT-RTX crashed (SIGSEGV) while building for SM89")
        return builder.compile_engine(model, output, **options)

    monkeypatch.setattr("tokenrt.targets.build.compile_engine", compiled)
    model = parse(ATTENTION.replace("KIND", "float16"))
    report = tokenrt.build(model, target="rtx-sm89", output=tmp_path / "a.engine")
    assert seen == [1, 0]
    assert [change.action for change in report.changes] == ["split into MatMul, Softmax and MatMul"]


def test_one_tensor_as_queries_and_keys_never_reaches_the_builder(tmp_path: Path) -> None:
    # The builder dies of it, in fp16 as well.
    model = parse(ATTENTION.replace("KIND", "float16").replace("(x, z, z)", "(x, x, z)"))
    report = tokenrt.build(model, target="rtx-sm89", output=tmp_path / "a.engine")
    assert "one tensor as queries and keys" in report.changes[0].reason


def test_a_crash_of_the_builder_is_an_error(tmp_path: Path) -> None:
    model = parse("""<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        main (float[B,16,128] x) => (float[B,16,128] y) {
          y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x) }""")
    ir.save(model, tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"crashed \(SIG(SEGV|ABRT)\) while .*fault of the builder"):
        builder.compile_engine(
            tmp_path / "m.onnx", tmp_path / "m.engine", capabilities=["8.9"], batch=(1, 1, 1), nodes={}
        )


def test_an_unknown_capability_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"builds for .*SM120.*not for 8\.7"):
        builder.compile_engine(
            tmp_path / "m.onnx", tmp_path / "m.engine", capabilities=["8.7"], batch=None, nodes={}
        )


def test_nothing_is_built_for_a_target_that_runs_onnx(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"nothing is built for ort-cpu.*rtx-sm80, .*rtx-sm120"):
        tokenrt.build(reduction(), target="ort-cpu", output=tmp_path / "r.engine")


def test_a_missing_builder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(DependencyError, match=r"pip install 'tokenrt\[rtx\]'"):
        tokenrt.build(reduction(), target="rtx-sm89", output=tmp_path / "r.engine")


@pytest.mark.parametrize("output", ["none/r.engine", ".", "r.onnx"])
def test_an_impossible_output_is_refused_before_the_build(tmp_path: Path, output: str) -> None:
    with pytest.raises(TokenrtError):
        tokenrt.build(reduction(), target="rtx-sm89", output=tmp_path / output)
    assert not list(tmp_path.iterdir())
