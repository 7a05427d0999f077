"""Engines built by trtexec where that is all there is of TensorRT: taken whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tokenrt
from tests.targets.conftest import Fake
from tests.targets.helpers.models import reduction
from tests.tokenrt.conftest import Run
from tokenrt.errors import BuildError, DeviceError, TokenrtError
from tokenrt.passes.graph.model import save
from tokenrt.targets import load
from tokenrt.targets.trtexec.options import read

RELEASES = {"l4": "11.4.1", "orin-nano": "10.3.0"}


@pytest.fixture(autouse=True)
def no_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenrt.targets.build.find_spec", lambda name: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    return place


@pytest.mark.parametrize("target", RELEASES)
def test_the_engine_its_manifest_and_the_timing_cache(here: Fake, folder: Path, target: str) -> None:
    here(RELEASES[target])
    engine = folder / "r.engine"
    report = tokenrt.build(reduction(), target=target, output=engine, batch="1:4:8", workspace=64)
    assert sorted(path.name for path in folder.iterdir()) == [f"{target}.timing", "r.engine", "r.engine.json"]
    assert json.loads(engine.read_text())["profile"] == {"tokens": [[1, 6, 8], [4, 6, 8], [8, 6, 8]]}
    assert json.loads((folder / "r.engine.json").read_text()) == report.as_dict()
    assert report.versions["trtexec"] == RELEASES[target]
    assert report.inputs[0].shapes == ((1, 6, 8), (4, 6, 8), (8, 6, 8))
    assert report.inputs[0].dtype == "float"
    given = read(report.options["trtexec"], int(RELEASES[target].split(".")[0]))
    assert given["memPoolSize"] == ["workspace:64"]
    again = tokenrt.build(reduction(), target=target, output=engine, batch="1:4:8", workspace=64)
    assert again.reused
    other = tokenrt.build(reduction(), target=target, output=engine, batch="1:4:4", workspace=64)
    assert not other.reused


def test_every_stage_is_told_even_one_that_came_and_went_between_two_looks(
    here: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("11.4.1")
    monkeypatch.setattr("tokenrt.targets.trtexec.workplace.PULSE_S", 5)
    told: list[str] = []
    tokenrt.build(reduction(), target="l4", output=folder / "r.engine", progress=told.append)
    assert told == [
        "reading the model",
        "making it legal for l4",
        "reaching this machine",
        "building for l4",
        "keeping the timing cache",
        "bringing engine back",
        "bringing timing back",
        "writing",
    ]


def test_another_release_is_another_engine(here: Fake, folder: Path) -> None:
    here("11.4.1")
    assert not tokenrt.build(reduction(), target="l4", output=folder / "r.engine").reused
    here("11.4.2")
    again = tokenrt.build(reduction(), target="l4", output=folder / "r.engine")
    assert not again.reused
    here("11.5.0")
    assert "has TensorRT 11.5; the model was made for 11.4" in tokenrt.build(
        reduction(), target="l4", output=folder / "r.engine"
    ).warnings[0]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "fail-build",
            r"failed with status 1: .*Could not find any implementation.*Engine could not be created",
        ),
        ("liar", "ended building without having passed"),
        ("empty:engine", "wrote an empty engine"),
        ("missing:engine", "did not write engine"),
        ("no-start", "--help does not tell its release: .*libnvinfer"),
    ],
)
def test_a_failed_engine_is_never_taken(here: Fake, folder: Path, fault: str, message: str) -> None:
    here("11.4.1", fault)
    with pytest.raises(TokenrtError, match=message):
        tokenrt.build(reduction(), target="l4", output=folder / "r.engine")
    assert list(folder.iterdir()) == []


def test_an_engine_that_is_there_outlives_a_failed_build(here: Fake, folder: Path) -> None:
    here("11.4.1")
    engine = folder / "r.engine"
    tokenrt.build(reduction(), target="l4", output=engine)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    here("11.4.1", "fail-build")
    with pytest.raises(BuildError):
        tokenrt.build(reduction(), target="l4", output=engine, force=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_trtexec_of_another_major_is_refused_with_the_remedy(here: Fake, folder: Path) -> None:
    here("10.3.0")
    with pytest.raises(
        DeviceError, match=r"has TensorRT 10\.3, and l4 is profiled with 11\.4.*--tensorrt 10\.3"
    ):
        tokenrt.build(reduction(), target="l4", output=folder / "r.engine")
    report = tokenrt.build(reduction(), target=load("l4", tensorrt="10.3"), output=folder / "r.engine")
    assert "--stronglyTyped" in report.options["trtexec"]


def test_a_library_that_is_not_there_is_said_before_anything_runs(here: Fake, folder: Path) -> None:
    here("11.4.1")
    with pytest.raises(BuildError, match=r"--plugins lib\.so: no such file"):
        tokenrt.build(reduction(), target="l4", output=folder / "r.engine", plugins=["lib.so"])


def test_plugins_are_named_by_their_whole_path(
    here: Fake, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here("11.4.1")
    monkeypatch.chdir(folder)
    Path("lib.so").write_bytes(b"library")
    report = tokenrt.build(reduction(), target="l4", output="r.engine", plugins=["lib.so"])
    assert f"--dynamicPlugins={folder / 'lib.so'}" in report.options["trtexec"]


def test_the_verb_tells_it_in_one_line(here: Fake, folder: Path, run: Run) -> None:
    here("11.4.1", "fail-build")
    source = save(reduction(), folder / "r.onnx")
    done = run("build", source, "--target", "l4", "-o", folder / "r.engine")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: building for l4 on this machine failed")
    assert [path.name for path in folder.iterdir()] == ["r.onnx"]
