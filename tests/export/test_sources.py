"""Every source exports, and ONNX Runtime agrees with torch on the file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from rich.console import Console

import tokenrt
from tokenrt.export import ExportReport, export

Folder = Callable[[str], Path]


def interface(report: ExportReport) -> tuple[list[str], list[str]]:
    return [str(info) for info in report.inputs], [str(info) for info in report.outputs]


def test_hugging_face_folder(folder: Folder, tmp_path: Path) -> None:
    report = tokenrt.export(f"hf:{folder('vit')}", tmp_path / "m.onnx")
    assert report.model == "ViTForImageClassification"
    assert report.weights == "pretrained"
    assert interface(report) == (["pixel_values: float32 [batch, 3, 32, 32]"], ["logits: float32 [batch, 2]"])
    assert {row.batch for row in report.parity} == {1, 3}
    assert all(row.passed and row.difference < 1e-5 for row in report.parity)
    model = onnx.load(tmp_path / "m.onnx")
    assert model.opset_import[0].version == 18
    assert {prop.key: prop.value for prop in model.metadata_props}["tokenrt.export"] == (
        f"hf:{folder('vit')} export{{exporter=dynamo,opset=18,dtype=fp32,batch=dynamic}}"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_weights_of_the_folder_are_the_ones_exported(folder: Folder, tmp_path: Path) -> None:
    from transformers import ViTForImageClassification

    export(f"hf:{folder('vit')}", tmp_path / "m.onnx", exporter="torchscript", opset=17)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        want = ViTForImageClassification.from_pretrained(folder("vit"))(pixels).logits
    session = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(got, want.numpy(), atol=1e-6)


def test_hugging_face_configuration_file(folder: Folder, tmp_path: Path) -> None:
    report = export(
        f"hf:{folder('vit') / 'config.json'}",
        tmp_path / "m.onnx",
        random_weights=True,
        image_size=48,
        exporter="torchscript",
        opset=17,
    )
    assert report.weights == "random (seed 0)"
    assert report.inputs[0].shape == ("batch", 3, 48, 48)


def test_pretrained_positions_are_resized(folder: Folder, tmp_path: Path) -> None:
    report = export(f"hf:{folder('vit')}", tmp_path / "m.onnx", image_size=48)
    assert report.inputs[0].shape == ("batch", 3, 48, 48)


def test_text_encoder_has_a_mask_and_a_fixed_length(folder: Folder, tmp_path: Path) -> None:
    report = export(f"hf:{folder('bert')}", tmp_path / "m.onnx")
    assert interface(report)[0] == ["input_ids: int64 [batch, 40]", "attention_mask: int64 [batch, 40]"]
    assert report.notes == ("sequence length fixed at 40; --sequence-length sets it",)
    shorter = export(
        f"hf:{folder('bert')}", tmp_path / "s.onnx", sequence_length=16, exporter="torchscript", opset=17
    )
    assert shorter.inputs[0].shape == ("batch", 16)
    assert shorter.notes == ()


def test_vision_tower_of_a_two_tower_model(folder: Folder, tmp_path: Path) -> None:
    report = export(f"hf:{folder('clip')}", tmp_path / "m.onnx", exporter="torchscript", opset=17)
    assert report.model == "CLIPVisionModel"
    assert [info.name for info in report.outputs] == ["last_hidden_state", "pooler_output"]
    assert "the vision tower CLIPVisionModel was exported" in report.notes[0]


def test_weights_missing_from_the_checkpoint_are_named(folder: Folder, tmp_path: Path) -> None:
    report = export(f"hf:{folder('encoder')}", tmp_path / "m.onnx", exporter="torchscript", opset=17)
    assert report.notes == (
        "not in the checkpoint, initialised at random: pooler.dense.bias, pooler.dense.weight",
    )


def test_timm(tmp_path: Path) -> None:
    report = export("timm:test_vit", tmp_path / "m.onnx", random_weights=True, image_size=32)
    assert interface(report) == (
        ["pixel_values: float32 [batch, 3, 32, 32]"],
        ["logits: float32 [batch, 1000]"],
    )


def test_timm_through_torchscript_at_its_own_size(tmp_path: Path) -> None:
    report = export(
        "timm:test_vit", tmp_path / "m.onnx", random_weights=True, exporter="torchscript", opset=17
    )
    assert report.inputs[0].shape == ("batch", 3, 160, 160)


def test_timm_model_without_a_size_argument(tmp_path: Path) -> None:
    report = export("timm:test_resnet", tmp_path / "m.onnx", random_weights=True, image_size=64, batch=1)
    assert report.inputs[0].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 18), ("torchscript", 17)])
def test_torchvision(vit_small: str, tmp_path: Path, exporter: str, opset: int) -> None:
    report = export(
        f"torchvision:{vit_small}",
        tmp_path / "m.onnx",
        random_weights=True,
        image_size=32,
        exporter=exporter,
        opset=opset,
    )
    assert interface(report) == (["pixel_values: float32 [batch, 3, 32, 32]"], ["logits: float32 [batch, 5]"])


def test_python_function_with_positional_inputs(python_file: Path, tmp_path: Path) -> None:
    report = export(f"{python_file}:positional", tmp_path / "m.onnx")
    assert interface(report) == (
        ["a: float32 [batch, 4]", "b: float32 [batch, 4]"],
        ["sum: float32 [batch, 4]", "pair_0: float32 [batch, 4]", "pair_1: float32 [batch, 4]"],
    )


def test_python_function_with_named_inputs(python_file: Path, tmp_path: Path) -> None:
    report = export(f"{python_file}:mapping", tmp_path / "m.onnx", batch=5, exporter="torchscript", opset=17)
    assert [str(info) for info in report.inputs] == ["b: float32 [5, 4]", "a: float32 [5, 4]"]


def test_python_function_with_an_input_that_has_no_batch(python_file: Path, tmp_path: Path) -> None:
    report = export(f"{python_file}:table", tmp_path / "m.onnx", exporter="torchscript", opset=17)
    assert [str(info) for info in report.inputs] == ["a: float32 [batch, 4]", "b: float32 [4]"]
    assert [str(info) for info in report.outputs][2] == "pair_1: float32 [4]"


def test_python_function_without_inputs_gets_a_picture(python_file: Path, tmp_path: Path) -> None:
    report = export(
        f"{python_file}:alone", tmp_path / "m.onnx", image_size=16, exporter="torchscript", opset=17
    )
    assert report.inputs[0].shape == ("batch", 3, 16, 16)
    assert report.notes == ("no example inputs given: exported with one picture input of 16 x 16",)


@pytest.mark.parametrize(("opset", "attention"), [(20, 0), (23, 2)])
def test_opsets(folder: Folder, tmp_path: Path, opset: int, attention: int) -> None:
    export(f"hf:{folder('vit')}", tmp_path / "m.onnx", opset=opset)
    model = ir.load(tmp_path / "m.onnx")
    assert model.opset_imports[""] == opset
    assert sum(node.op_type == "Attention" for node in model.graph) == attention


@pytest.mark.parametrize(
    ("name", "exporter", "dtypes"),
    [
        ("bert", "dynamo", ["int64", "int64", "float16"]),
        ("vit", "torchscript", ["float16", "float16"]),
    ],
)
def test_half_precision(folder: Folder, tmp_path: Path, name: str, exporter: str, dtypes: list[str]) -> None:
    report = export(f"hf:{folder(name)}", tmp_path / "m.onnx", dtype="fp16", exporter=exporter)
    assert [info.dtype for info in (*report.inputs, *report.outputs)] == dtypes
    weights = ir.load(tmp_path / "m.onnx").graph.initializers.values()
    large = {
        value.dtype for value in weights if value.const_value is not None and value.const_value.size > 64
    }
    assert ir.DataType.FLOAT not in large


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_fixed_batch(folder: Folder, tmp_path: Path, exporter: str) -> None:
    report = export(f"hf:{folder('vit')}", tmp_path / "m.onnx", batch=1, exporter=exporter)
    assert report.inputs[0].shape == (1, 3, 32, 32)
    assert [row.batch for row in report.parity] == [1]


def test_seed_decides_the_weights_and_nothing_else_is_touched(folder: Folder, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()

    def weights(seed: int) -> np.ndarray:
        export(
            f"hf:{folder('vit')}",
            tmp_path / "m.onnx",
            random_weights=True,
            seed=seed,
            exporter="torchscript",
            opset=17,
        )
        values = ir.load(tmp_path / "m.onnx").graph.initializers.values()
        return np.concatenate(
            [value.const_value.numpy().ravel() for value in values if "proj" in str(value.name)]
        )

    first, again, other = weights(0), weights(0), weights(1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_model_too_large_for_one_file(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exporter: str
) -> None:
    from tokenrt.export import exporter as writers
    from tokenrt.passes.graph import model

    monkeypatch.setattr(writers, "EMBEDDED_LIMIT", 0)
    monkeypatch.setattr(model, "PROTOBUF_LIMIT", 0)
    report = export(f"hf:{folder('vit')}", tmp_path / "m.onnx", exporter=exporter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size >= 4 * report.parameters * 0.9
    ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])


def test_report_as_json_and_as_a_table(folder: Folder, tmp_path: Path) -> None:
    report = export(f"hf:{folder('vit')}", tmp_path / "m.onnx", exporter="torchscript", opset=17)
    document = json.loads(json.dumps(report.as_dict()))
    assert document["batch"] is None
    assert document["inputs"] == [{"name": "pixel_values", "dtype": "float32", "shape": ["batch", 3, 32, 32]}]
    assert document["parity"][0]["passed"] is True
    stream = io.StringIO()
    Console(width=120, file=stream).print(report)
    text = stream.getvalue()
    assert "pixel_values: float32 [batch, 3, 32, 32]" in text
    assert "ViTForImageClassification" in text
    assert text.count("equal") == 2


def test_nothing_is_printed(folder: Folder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(f"hf:{folder('vit')}", tmp_path / "m.onnx")
    export(f"hf:{folder('vit')}", tmp_path / "m.onnx", exporter="torchscript", opset=17)
    assert capfd.readouterr() == ("", "")
