"""The front door: light to import, complete, and the same whatever was imported before."""

from __future__ import annotations

import runpy
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tokenrt

ROOT = Path(__file__).parents[2]
HEAVY = {
    "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "onnxslim", "polygraphy", "torch",
    "transformers", "timm", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "matplotlib", "rich",
    "typer", "tomlkit",
}  # fmt: skip


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return done.stdout


def seconds(code: str) -> float:
    start = time.perf_counter()
    python(code)
    return time.perf_counter() - start


def test_import_pulls_in_nothing_heavy() -> None:
    loaded = set(python("import sys, tokenrt; print(*sys.modules)").split())
    assert "tokenrt" in loaded
    assert not loaded & HEAVY


def test_import_costs_little_beside_the_interpreter_itself() -> None:
    """In pairs, since what else the machine does changes from one second to the next."""
    ratios = [seconds("import tokenrt") / seconds("pass") for _ in range(9)]
    assert statistics.median(ratios) < 2.5


def test_command_line_loads_only_what_prints() -> None:
    loaded = set(python("import sys, tokenrt.cli; print(*sys.modules)").split())
    assert not loaded & (HEAVY - {"rich", "typer"})


@pytest.mark.parametrize("name", tokenrt.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(tokenrt, name) is not None
    assert name in dir(tokenrt)


def test_every_error_is_one_tree_and_public() -> None:
    from tokenrt import errors

    tree = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert tree <= set(tokenrt.__all__)
    assert all(issubclass(getattr(tokenrt, name), tokenrt.TokenrtError) for name in tree)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        tokenrt.no_such_name  # noqa: B018  # the access is the test


@pytest.mark.parametrize("name", ["export", "targets"])
@pytest.mark.parametrize("before", ["", "import tokenrt.{0}; ", "tokenrt.{0}; import tokenrt.{0}; "])
def test_packages_named_like_verbs_answer_calls(name: str, before: str) -> None:
    code = f"import tokenrt; {before.format(name)}print(callable(tokenrt.{name}), tokenrt.{name}.__name__)"
    assert python(code).split() == ["True", f"tokenrt.{name}"]


def test_every_folder_of_code_is_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", told.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    rooms = ("tokenrt", "passes", "export", "targets", "perf", "plugins")
    folders = {path.parent.relative_to(ROOT) for room in rooms for path in (ROOT / room).rglob("*.py")}
    names = {folder.as_posix().replace("/", ".") for folder in folders}
    assert set(told["packages"]) == {
        name if name.split(".")[0] == "tokenrt" else f"tokenrt.{name}" for name in names
    }
    assert set(told["package_dir"].values()) == set(rooms)


def test_extras_and_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    everything = " ".join(project["optional-dependencies"]["all"])
    assert "tensorrt" not in everything
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{tokenrt.__version__}]" in changelog or "## [Unreleased]" in changelog
