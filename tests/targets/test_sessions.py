"""Sessions on the provider that was asked for, or a clear word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets.helpers.models import reduction
from tokenrt.errors import TargetError
from tokenrt.passes.graph.model import save
from tokenrt.targets import sessions
from tokenrt.targets.sessions import PROVIDERS, missing, session

X = {"tokens": np.random.default_rng(0).standard_normal((2, 6, 8), np.float32)}


@pytest.mark.parametrize("from_file", [True, False])
def test_the_cpu_runs_files_and_objects(tmp_path: Path, from_file: bool) -> None:
    path = save(reduction(), tmp_path / "m.onnx")
    found = session(path if from_file else reduction(), threads=1)
    assert found.get_providers() == ["CPUExecutionProvider"]
    assert found.run(None, X)[0].shape == (2, 3, 8)


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_cannot_be_had_is_an_error_or_a_fallback(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not missing(name):
        pytest.skip(f"{name} can be had here")
    with pytest.raises(TargetError) as caught:
        session(reduction(), name)
    assert PROVIDERS[name].remedy in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert session(reduction(), name, fallback=["cpu"]).get_providers() == ["CPUExecutionProvider"]
    assert capfd.readouterr() == ("", "")


def test_every_provider_tried_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "missing", lambda name: f"no {name} here")
    with pytest.raises(TargetError, match=r"tensorrt: no tensorrt here .* cuda: no cuda here"):
        session(reduction(), "tensorrt", fallback=["cuda"])


def test_a_silent_fall_to_the_cpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "missing", lambda name: "")
    if not missing("cuda"):
        pytest.skip("cuda can be had here")
    with pytest.raises(TargetError, match=r"cuda: the session runs on CPUExecutionProvider instead"):
        session(reduction(), "cuda")


def test_a_model_the_runtime_refuses_says_why() -> None:
    model = reduction()
    del model.functions[next(iter(model.functions))]
    with pytest.raises(TargetError, match=r"cpu: .*Keep"):
        session(model)


def test_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    class Opened:
        def __init__(self, path: str, settings: Any, providers: list[Any]) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return [name for name, _ in asked]

    monkeypatch.setattr(sessions, "missing", lambda name: "")
    monkeypatch.setattr("onnxruntime.InferenceSession", Opened)
    session(reduction(), "tensorrt", plugins=["a.so", "b.so"], cache=tmp_path, device=1)
    assert [name for name, _ in asked] == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ]  # fmt: skip
    options = asked[0][1]
    assert options["device_id"] == "1"
    assert options["trt_extra_plugin_lib_paths"] == "a.so;b.so"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    asked.clear()
    session(reduction(), "tensorrt-rtx", cache=tmp_path)
    assert asked[0] == (
        "NvTensorRTRTXExecutionProvider", {"device_id": "0", "nv_runtime_cache_path": str(tmp_path)},
    )  # fmt: skip


def test_wrong_use_is_said() -> None:
    with pytest.raises(TargetError, match="no provider 'gpu'; there are cpu, cuda, tensorrt, tensorrt-rtx"):
        session(reduction(), "gpu")
    with pytest.raises(
        TargetError, match=r"plugins \(a.so\) are loaded by the provider tensorrt, not by cuda"
    ):
        session(reduction(), "cuda", plugins=["a.so"])
