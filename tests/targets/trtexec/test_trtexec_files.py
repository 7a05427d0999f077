"""trtexec's files of both majors are read whole; what is cut short or of another kind is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.targets.conftest import FAKE
from tests.targets.helpers.models import reduction
from tokenrt.errors import DeviceError
from tokenrt.passes.graph.model import save
from tokenrt.targets.trtexec.files import (
    Layer,
    LayerTime,
    read_layers,
    read_profile,
    read_times,
    release,
)

READERS: dict[str, Callable[[Path], object]] = {
    "times": read_times, "profile": read_profile, "layers": read_layers,
}  # fmt: skip


def written(folder: Path, version: str = "11.4.1", *faults: str) -> dict[str, Path]:
    """What the fake writes of the small reduction."""
    save(reduction(batch="2"), folder / "r.onnx")
    files = {kind: folder / f"{kind}.json" for kind in READERS}
    typed = ["--stronglyTyped"] if version.startswith("10") else []
    words = [
        f"--onnx={folder / 'r.onnx'}", *typed, "--iterations=7", f"--exportTimes={files['times']}",
        f"--exportProfile={files['profile']}", f"--exportLayerInfo={files['layers']}",
    ]  # fmt: skip
    environment = {**os.environ, "FAKE_RELEASE": version, "FAKE_FAULTS": " ".join(faults)}
    subprocess.run([sys.executable, FAKE, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    return files


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])
def test_both_majors_say_the_same(tmp_path: Path, version: str) -> None:
    files = written(tmp_path, version)
    times = read_times(files["times"])
    assert len(times.compute) == len(times.latency) == 7
    assert all(0 < compute <= latency for compute, latency in zip(times.compute, times.latency, strict=True))
    profile, engine = read_profile(files["profile"]), read_layers(files["layers"])
    assert [time.name for time in profile] == [layer.name for layer in engine.layers]
    assert engine.tensors == ("tokens", "kept")
    assert engine.layers[0].reformats
    assert not any(layer.reformats for layer in engine.layers[1:])
    assert len({node for layer in engine.layers for node in layer.nodes}) > 3


def test_an_engine_with_names_alone(tmp_path: Path) -> None:
    engine = read_layers(written(tmp_path, "10.3.0", "names-only")["layers"])
    assert engine.layers[0].name.startswith("Reformatting CopyNode for Input Tensor 0")
    assert engine.layers[0].reformats
    assert {layer.nodes for layer in engine.layers} == {()}


def test_shares_of_no_time_are_no_numbers_and_no_hindrance(tmp_path: Path) -> None:
    assert len(read_profile(written(tmp_path, "11.4.1", "nan")["profile"])) > 1


def test_older_profiles_have_a_mean_only(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text('[{ "count" : 3 }, { "name" : "a", "timeMs" : 3, "averageMs" : 1, "percentage" : 100 }]')
    assert read_profile(path) == (LayerTime("a", 1.0),)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = written(tmp_path)[kind]
    text = path.read_text().rstrip()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(
        DeviceError, match=rf"{kind}\.json is not what trtexec writes with --export\w+: it (breaks|is empty)"
    ):
        READERS[kind](path)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "text", ["{}", "[]", "3", '[{"count": 0}]', '[{"what": 1}]', '{"Layers": []}', '{"Layers": [1]}']
)
def test_another_kind_of_file_is_refused(tmp_path: Path, kind: str, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DeviceError, match=r"x\.json is not what trtexec writes with --export"):
        READERS[kind](path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"none\.json.*No such file"):
        read_times(tmp_path / "none.json")


@pytest.mark.parametrize("kind", ["profile", "layers"])
def test_names_with_quotes_are_told_as_what_they_are(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DeviceError, match="a name with a quote or backslash does that too"):
        READERS[kind](written(tmp_path, "11.4.1", "quotes")[kind])


def test_one_bad_number_spoils_the_file(tmp_path: Path) -> None:
    path = written(tmp_path)["times"]
    path.write_text(
        path.read_text()
        .replace('"computeMs" : 0', '"computeMs" : "0', 1)
        .replace(', "d2hMs"', '", "d2hMs"', 1)
    )
    with pytest.raises(DeviceError, match="computeMs is '0"):
        read_times(path)


def test_a_layer_of_metadata_names_its_nodes(tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(
        '{"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: /x/MatMul]\x1e[ONNX Layer: y]"}], "Bindings": []}'
    )
    assert read_layers(path).layers == (Layer("a", nodes=("/x/MatMul", "y")),)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help", (10, 3, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec", (10, 13, 3)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110401]", (11, 4, 1)),
        ("command not found", None),
    ],
)
def test_the_release_is_in_the_first_line(text: str, found: tuple[int, int, int] | None) -> None:
    assert release(text) == found
