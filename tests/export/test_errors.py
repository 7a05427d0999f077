"""Every mistake gets one message that says what to do, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenrt.errors import DependencyError, ExportError
from tokenrt.export import export
from tokenrt.export.sources import table

Folder = Callable[[str], Path]
FORMS = "FILE.py:FUNCTION, hf:NAME_OR_DIR, timm:NAME, torchvision:NAME"
RANDOM = {"random_weights": True}


def refused(source: str, tmp_path: Path, **options: Any) -> str:
    """The message of the error that exporting `source` raises."""
    with pytest.raises(ExportError) as caught:
        export(source, tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("tim:vit_tiny", "; did you mean timm:vit_tiny?"),
        ("vit_tiny", "; did you mean timm:vit_tiny or hf:vit_tiny?"),
        ("model.onnx", "; model.onnx is ONNX already: use it as it is"),
        ("model.py", "; name the function that returns the model: model.py:FUNCTION"),
        ("", ""),
        ("gopher:x", ""),
    ],
)
def test_unknown_source(source: str, hint: str, tmp_path: Path) -> None:
    message = refused(source, tmp_path)
    assert message == f"{source!r} names no model source; the forms are {FORMS}{hint}"


def test_folder_without_prefix(folder: Folder, tmp_path: Path) -> None:
    assert f"for a Hugging Face folder write hf:{folder('vit')}" in refused(str(folder("vit")), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "does not write opset 17; choose one from 18 to 23, or use the torchscript exporter"),
        ({"opset": 99}, "the dynamo exporter does not write opset 99; choose one from 18 to 23"),
        ({"opset": 23, "exporter": "torchscript"}, "from 14 to 20, or use the dynamo exporter"),
        ({"exporter": "jit"}, "exporter 'jit' is unknown; torch has dynamo and torchscript"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown; export writes fp32 or fp16"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"image_size": -1}, "image_size is -1; it must be at least 1"),
        ({"sequence_length": 0}, "sequence_length is 0; it must be at least 1"),
    ],
)
def test_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refused("timm:vit_tiny_patch16_224", tmp_path, **options)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("timm:vit_tiny_patch16_22", RANDOM, "did you mean vit_tiny_patch16_224 or"),
        ("timm:qqqqqqqq", RANDOM, "timm has no model called 'qqqqqqqq'; it has"),
        ("torchvision:vit_b_15", RANDOM, "torchvision has no model called 'vit_b_15'; did you mean vit_b_16"),
        ("hf:vitt", RANDOM, "Hugging Face transformers has no model called 'vitt'; did you mean vit"),
        ("hf:vit", {}, "'vit' is a model type, which has no weights: add --random-weights"),
        ("hf:nobody/nothing", {}, "without a network give a folder, or a model type with --random-weights"),
        ("nowhere/models.py:make", {}, "no such file: nowhere/models.py"),
    ],
)
def test_unknown_names(source: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refused(source, tmp_path, **options)


def test_a_file_onnxruntime_refuses(folder: Folder, tmp_path: Path) -> None:
    # The TorchScript exporter mixes fp32 and fp16 in the attention of this half-precision model.
    message = refused(f"hf:{folder('bert')}", tmp_path, dtype="fp16", exporter="torchscript", opset=17)
    assert message.startswith("ONNX Runtime does not load the exported model: Fail: ")
    assert message.endswith("nothing was written. Try the other exporter, another opset or fp32")


def test_weights_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.hub

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Name or service not known.")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "../cache"))
    for name in ("timm:vit_tiny_patch16_224", "torchvision:squeezenet1_1"):
        message = refused(name, tmp_path)
        assert message.startswith(f"cannot load the weights of {name}: ")
        assert message.endswith("check the network, or export the architecture alone with --random-weights")


def test_hugging_face_folder_without_weights(folder: Folder, tmp_path: Path) -> None:
    message = refused(f"hf:{folder('wav2vec2')}", tmp_path)
    assert "cannot load the weights of hf:" in message
    assert message.endswith("or export the architecture alone with --random-weights")


def test_hugging_face_folder_without_configuration(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert refused(f"hf:{empty}", tmp_path).endswith("holds no config.json, so it is no Hugging Face model")


def test_hugging_face_models_of_other_kinds(folder: Folder, tmp_path: Path) -> None:
    assert "an encoder and a decoder" in refused(f"hf:{folder('t5')}", tmp_path, **RANDOM)
    assert "takes input_values; export knows" in refused(f"hf:{folder('wav2vec2')}", tmp_path, **RANDOM)
    message = refused(f"hf:{folder('bert')}", tmp_path, sequence_length=50)
    assert message == f"sequence_length is 50; {folder('bert')} has positions for 40"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("positionel", "has no function 'positionel'; it has positional"),
        ("not_a_module", "returned int; it must return a torch.nn.Module, or (module, inputs)"),
        ("no_inputs", "returned a Add whose forward takes a, b; return (module, inputs)"),
        ("bad_inputs", "returned inputs that are not tensors (b: str); give a tensor"),
        ("fails", "fails() failed: ValueError: no luck today; it is called without arguments"),
        ("numbers", "Numbers of numbers() returned no tensor for x [1, 3]"),
        ("fixed_rows", "FixedRows of fixed_rows() does not run in torch on x [1, 3]: RuntimeError: shape"),
        (
            "noise",
            "the exported model differs from torch in 2 of 2 comparisons; worst: output output at batch",
        ),
        ("branch", "; try --exporter torchscript --opset 17 or a fixed --batch 1"),
    ],
)
def test_python_files(python_file: Path, function: str, message: str, tmp_path: Path) -> None:
    assert message in refused(f"{python_file}:{function}", tmp_path)


def test_python_file_that_cannot_be_imported(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    broken = tmp_path_factory.mktemp("broken") / "broken.py"
    broken.write_text("import no_such_package_of_anybody")
    message = refused(f"{broken}:make", tmp_path)
    assert message == (
        f"importing {broken} failed: ModuleNotFoundError: No module named 'no_such_package_of_anybody'"
    )


def test_exporter_failure_is_one_quiet_line(
    python_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refused(f"{python_file}:antialias", tmp_path, exporter="torchscript", opset=17)
    assert message.startswith("the torchscript exporter cannot export Antialias of antialias() at opset 17: ")
    assert "aten::_upsample_bicubic2d_aa" in message
    assert "\n" not in message
    refused(f"{python_file}:branch", tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.txt", "a model's file name ends in .onnx"),
        ("missing/m.onnx", "does not exist; create it first"),
        ("taken.onnx", "it is a directory; name a file inside it"),
    ],
)
def test_output_is_checked_before_the_work(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "taken.onnx").mkdir()
    with pytest.raises(ExportError, match=r"cannot write") as caught:
        export("timm:vit_tiny_patch16_224", tmp_path / name)
    assert message in str(caught.value)


def test_a_failure_leaves_the_old_file(python_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")
    with pytest.raises(ExportError):
        export(f"{python_file}:noise", target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("timm:vit_tiny_patch16_224", "timm", "vision"),
        ("torchvision:vit_b_16", "torchvision", "vision"),
        ("hf:vit", "transformers", "export"),
        ("models.py:make", "torch", "export"),
        ("models.py:make", "onnxscript", "export"),
    ],
)
def test_missing_packages(
    source: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=package) as caught:
        export(source, tmp_path / "m.onnx")
    assert str(caught.value).endswith(f"pip install 'tokenrt[{extra}]'")


def test_importing_the_room_is_light() -> None:
    heavy = "torch transformers timm torchvision onnx onnxruntime onnx_ir numpy".split()
    program = f"import sys, tokenrt.export; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_sources_say_their_forms() -> None:
    assert ", ".join(source.form for source in table()) == FORMS
