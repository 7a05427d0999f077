"""Methods that sit at no block, each as a graph of its own: TensorRT-RTX builds an engine of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.conformance.test_methods import fitting
from tokenrt import apply_method
from tokenrt.passes import methods
from tokenrt.targets.rtx.builder import TENSORRT_RTX

SLOW = ("aim",)
"""What the builder takes minutes over: matching in the frames of a clip, as of tempme and testa too."""

NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW or bool(methods.get(name).pending)))
    for name in methods.of_tokens()
    if methods.get(name).home != "block" or methods.get(name).pending
]


class Seen(Exception):
    """The graph is written."""


def written(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of this method's graph on 36 tokens, without the inputs that nothing reads."""
    import onnxruntime

    def session(graph: bytes, *_: Any, **__: Any) -> None:
        raise Seen(graph)

    given = fitting(name, 36, 20, 0, 2)
    del given["tensors"]["size"]
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(Seen) as seen:
        apply_method(name, backend="onnxruntime", **given)
    model = onnx.load_from_string(seen.value.args[0])
    read = {value for node in model.graph.node for value in node.input}
    inputs = [value for value in model.graph.input if value.name in read]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip(TENSORRT_RTX.module, reason="TensorRT-RTX is not installed (extra rtx)")
    from tokenrt.targets.build import build

    model = written(name, tmp_path / f"{name}.onnx", monkeypatch)
    assert build(model, target="rtx-sm89", output=tmp_path / f"{name}.engine").engine.stat().st_size > 0
