"""The library's sources against the headers of TensorRT from 10.3 to 11: those at hand, and rebuilt ones (releases.py)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.helpers import built, releases
from tokenrt.plugins import library
from tokenrt.plugins.toolchain import headers
from tokenrt.plugins.toolchain.compiler import FLAGS, HERE, INCLUDES, compiler

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")

TAKEN = [release for release in releases.RELEASES if release != "10.2.0"]
COMMON = [path for path in library.sources() if path.parent.name == "common"]


def checked(source: Path, release: str) -> str:
    """What the compiler says of a source with the headers of a release."""
    includes = [*(f"-I{folder}" for folder in INCLUDES), "-isystem", str(releases.rebuilt(release))]
    command = [compiler(), *FLAGS, "-Werror", *includes, "-x", "c++", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr


@pytest.mark.parametrize("release", TAKEN)
@pytest.mark.parametrize("source", COMMON, ids=lambda path: path.stem)
def test_the_common_sources_compile(source: Path, release: str) -> None:
    assert checked(source, release) == ""


@pytest.mark.slow
@pytest.mark.parametrize("release", TAKEN)
@pytest.mark.parametrize("source", [*library.sources()], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_source_compiles(source: Path, release: str) -> None:
    assert checked(source, release) == ""


@pytest.mark.parametrize("release", TAKEN)
def test_the_release_is_read_from_its_headers(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(headers.ROOT, str(releases.rebuilt(release)))
    assert headers.headers().version == release


def test_an_older_release_is_refused() -> None:
    told = checked(HERE / "common" / "creator.cpp", "10.2.0")
    assert "the tokenrt plugins need the headers of TensorRT 10.3 or later" in told


@pytest.mark.parametrize(
    ("release", "text", "told"),
    [
        ("10.3.0", "auto kind = nvinfer1::DataType::kFP4;", "kFP4"),
        ("11.2.1", "namespace nvinfer1 { class ILoggerFinder; }", "ILoggerFinder"),
        (
            "11.2.1",
            "auto f(nvinfer1::IPluginRegistry& r) { return r.getPluginCreatorList(nullptr); }",
            "getPluginCreatorList",
        ),
    ],
)
def test_what_a_release_has_not_is_refused(release: str, text: str, told: str, tmp_path: Path) -> None:
    """The net holds: these compile with the headers at hand."""
    source = tmp_path / "uses.cpp"
    source.write_text(f"#include <NvInferRuntime.h>\n{text}\n")
    assert told in checked(source, release)


def test_versions_are_looked_at_in_one_header() -> None:
    ours = [*HERE.glob("common/*"), *HERE.glob("*/plugin.cu"), *HERE.glob("kernels/*")]
    assert [path.name for path in ours if "NV_TENSORRT" in path.read_text()] == ["version.h"]
    asked = {name for path in ours for name in re.findall(r"#include <(Nv\w+\.h)>", path.read_text())}
    assert asked == {"NvInferRuntime.h"}  # others move from release to release
    forward = [path.name for path in ours if re.search(r"namespace nvinfer1 \{", path.read_text())]
    assert not forward  # a class of one release is an alias in another


@pytest.mark.slow
@pytest.mark.parametrize("release", TAKEN)
def test_plugins_behave_alike(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of the interface, with library and driver compiled against the release."""
    monkeypatch.setenv(headers.ROOT, str(releases.rebuilt(release)))
    own = Path(__file__).parent
    tests = [
        *own.glob("test_interface_*.py"),
        f"{own / 'test_library.py'}::test_opening_the_library_registers_each_creator_once",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *map(str, tests)],
        capture_output=True, text=True, check=False, timeout=900, cwd=HERE.parent, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert library.described(built.host_library())["tensorrt"] == release
