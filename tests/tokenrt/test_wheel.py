"""What a wheel takes along: every file of the rooms that is not Python, by the patterns of pyproject.toml."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.helpers.documents import ROOT

ROOMS = ("tokenrt", "export", "passes", "perf", "plugins", "targets")


def taken() -> set[Path]:
    """The files that the patterns match, each below the folder of its package."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    found: set[Path] = set()
    for package, patterns in tool["setuptools"]["package-data"].items():
        folder = ROOT.joinpath(*(package.split(".")[1:] or ["tokenrt"]))
        assert (folder / "__init__.py").is_file(), f"{package} is no package, so its files are left behind"
        for pattern in patterns:
            matched = {path for path in folder.glob(pattern) if path.is_file()}
            assert matched, f"{package}: {pattern} matches nothing"
            found |= matched
    return found


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z", *ROOMS], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout: which files belong to the rooms is not known")
    return [ROOT / name for name in done.stdout.split("\0") if name]


def test_every_file_that_is_not_python_is_taken_along() -> None:
    files = [path for path in tracked() if path.suffix != ".py" and path.exists()]
    assert {".toml", ".sh", ".cuh", ".cu", ".h", ".cpp", ".md", ".txt"} <= {path.suffix for path in files}
    assert not sorted(path.relative_to(ROOT).as_posix() for path in set(files) - taken())


@pytest.mark.parametrize(
    "name",
    [
        "tokenrt/py.typed",
        "targets/profiles/h100.toml",
        "targets/trtexec/device.sh",
        "plugins/kernels/token_select.cuh",
        "plugins/simt/simt.h",
        "plugins/common/version.h",
        "plugins/token_select/contract.toml",
        "plugins/token_select/host.cpp",
        "plugins/token_select/plugin.cu",
        "plugins/token_select/README.md",
        "plugins/CMakeLists.txt",
    ],
)
def test_what_the_code_reads_is_taken_along(name: str) -> None:
    assert ROOT / name in taken()
