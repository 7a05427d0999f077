"""An engine that is there is taken only when it is the very engine asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import tokenrt
from tests.targets.helpers.models import parse
from tokenrt.errors import BuildError

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed (extra rtx)")


def linear(weight: float) -> ir.Model:
    """One product with a weight; two of them differ in its value alone."""
    model = parse("""<ir_version: 10, opset_import: ["": 18]>
        main (float[B,4] x, float[4,4] w) => (float[B,4] y) { y = MatMul (x, w) }""")
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(np.full((4, 4), weight, np.float32), name="w")
    model.graph.register_initializer(value)
    return model


def build(folder: Path, weight: float = 1.0, name: str = "m.engine", **options: Any) -> Any:
    source = folder / "m.onnx"
    ir.save(linear(weight), source)
    return tokenrt.build(source, **{"target": "rtx-sm89", "output": folder / name, "batch": 2, **options})


def test_the_same_again_is_taken(tmp_path: Path) -> None:
    first = build(tmp_path)
    again = build(tmp_path)
    assert (first.reused, again.reused) == (False, True)
    assert again.engine_sha256 == first.engine_sha256
    assert again.inputs == first.inputs
    assert json.loads(again.manifest.read_text()) == again.as_dict()
    assert not build(tmp_path, force=True).reused


def test_an_engine_built_anew_has_the_same_bytes(tmp_path: Path) -> None:
    first, again = build(tmp_path), build(tmp_path, force=True)
    assert not again.reused
    assert again.engine_sha256 == first.engine_sha256


def test_another_model_of_the_same_shapes_is_built(tmp_path: Path) -> None:
    first, second = build(tmp_path, 1.0), build(tmp_path, 2.0)
    assert not second.reused
    assert second.key != first.key
    assert second.model_sha256 != first.model_sha256


def test_weights_beside_the_model_count(tmp_path: Path) -> None:
    keys = set()
    for weight in (1.0, 2.0):
        ir.save(linear(weight), tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
        report = tokenrt.build(tmp_path / "m.onnx", target="rtx-sm89", output=tmp_path / "m.engine")
        assert not report.reused
        keys.add(report.key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    "other",
    [{"batch": 3}, {"batch": "1:2:4"}, {"target": "rtx-sm86"}, {"target": "rtx-portable"}, {"workspace": 64}],
)
def test_another_option_is_built(tmp_path: Path, other: dict[str, Any]) -> None:
    build(tmp_path)
    assert not build(tmp_path, **other).reused


def test_other_bodies_of_operators_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path)
    monkeypatch.setattr("tokenrt.targets.engines.cache.code", lambda: "other")
    assert not build(tmp_path).reused


def test_another_version_of_a_tool_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path)
    monkeypatch.setattr("tokenrt.targets.build.__version__", "9.9.9")
    assert not build(tmp_path).reused


@pytest.mark.parametrize("damage", ["cut", "changed", "no manifest", "bad manifest", "list"])
def test_a_damaged_engine_is_built_anew(tmp_path: Path, damage: str) -> None:
    first = build(tmp_path)
    data = first.engine.read_bytes()
    match damage:
        case "cut":
            first.engine.write_bytes(data[: len(data) // 2])
        case "changed":
            first.engine.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "no manifest":
            first.manifest.unlink()
        case "bad manifest":
            first.manifest.write_text(first.manifest.read_text()[:-20])
        case "list":
            first.manifest.write_text("[]")
    again = build(tmp_path)
    assert not again.reused
    assert build(tmp_path).reused


def test_a_folder_keeps_engines_for_other_places(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "engines"
    first = build(tmp_path, 1.0, cache=kept)
    other = build(tmp_path, 2.0, cache=kept)
    assert not other.reused
    again = build(tmp_path, 1.0, name="n.engine", cache=kept)
    assert again.reused
    assert again.engine == tmp_path / "n.engine"
    assert again.engine.read_bytes() == (kept / f"{first.key}.engine").read_bytes()
    assert json.loads(again.manifest.read_text())["engine"] == str(again.engine)
    assert len(list(kept.iterdir())) == 4


def test_a_cache_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"the cache folder .* cannot be made"):
        build(tmp_path, cache=tmp_path / "file" / "cache")
