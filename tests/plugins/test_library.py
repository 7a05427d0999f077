"""The plugin library as nvcc builds it: the verbs, both routes by which TensorRT finds it, and no GPU anywhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.passes.ops.helpers.cases import cases
from tests.plugins.helpers import built
from tests.plugins.helpers.interface import KINDS, inputs_of, made
from tests.plugins.helpers.needs import has_nvcc, needs_nvcc
from tests.plugins.helpers.node import BUILD, RUNTIME, Node, told
from tokenrt.cli import app
from tokenrt.errors import BuildError, DependencyError, TokenrtError, UnsupportedError
from tokenrt.passes.ops import OPERATORS
from tokenrt.plugins import build, contracts, info, library, load
from tokenrt.plugins.toolchain import nvcc as toolchain
from tokenrt.plugins.toolchain.compiler import HERE
from tokenrt.plugins.toolchain.headers import headers

NAMES = set(contracts.contracts())
ONE = 89


needs_registry = pytest.mark.skipif(find_spec("tensorrt_rtx_bindings") is None, reason="no TensorRT-RTX")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library for one architecture; nvcc runs once, the cache has it from then on."""
    return build(arch=[ONE], output=tmp_path_factory.mktemp("built") / "plugins.so").path


def in_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@needs_nvcc
@needs_registry
def test_tensorrts_own_registry_takes_every_creator_once(compiled: Path) -> None:
    nodes = {name: OPERATORS[name].settle(cases()[name][1]) for name in NAMES}
    bad = {name: bad_fields(fields) for name, fields in nodes.items()}
    told = in_process(
        "-m", "tests.plugins.helpers.in_registry", str(compiled), json.dumps(nodes), json.dumps(bad)
    )
    seen = json.loads(told.splitlines()[-1])
    assert seen["before"] == 0
    assert sorted(seen["creators"]) == sorted(NAMES) == sorted(seen["names"])
    for name in NAMES:
        assert seen["fields"][name] == list(OPERATORS[name].attributes)
        assert seen["made"][name]
        assert seen["refused"][name] == [True] * len(bad[name])


def bad_fields(good: dict[str, Any]) -> list[dict[str, Any]]:
    """Each field left out, of another type, and out of its range; and one too many."""
    kinds = [{**good, name: 1 if isinstance(value, float) else 1.5} for name, value in good.items()]
    ranges = [
        {**good, name: float("nan") if isinstance(value, float) else [-1]} for name, value in good.items()
    ]
    less = [{key: value for key, value in good.items() if key != name} for name in good]
    return [*less, *kinds, *ranges, {**good, "unknown": 1}]


@needs_nvcc
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(NAMES))
def test_fields_travel_through_the_library_for_gpus(name: str, kind: str, compiled: Path) -> None:
    """As a registry makes a plugin, and an engine makes it again from what it wrote; nothing of this needs a GPU."""
    attributes = inputs_of(name, kind)[1]
    for phase in (BUILD, RUNTIME):
        node = Node.create(compiled, name, attributes, phase)
        assert node is not None, told()
        again, copy = node.again(), node.clone()
        assert again is not None
        assert copy is not None
        assert node.fields == again.fields == copy.fields == made(built.host_library(), name, kind).fields
        assert node.texts == again.texts == copy.texts
    for fields in bad_fields(attributes):
        assert Node.create(compiled, name, fields) is None, fields
        assert f"{name} node 'node'" in told()


@needs_compiler
def test_opening_the_library_registers_each_creator_once(tmp_path: Path) -> None:
    names = sorted(NAMES)
    major = int(headers().version.split(".")[0])
    stub = built.stub(Path(__file__).with_name("registry.cpp"), f"libnvinfer.so.{major}")
    later = built.stub(Path(__file__).with_name("registry.cpp"), f"libnvinfer.so.{major + 1}")
    script = tmp_path / "routes.py"
    script.write_text(
        f"""
import _ctypes, ctypes, json
def names(stub):
    stub.registry_names.restype = ctypes.c_char_p
    return sorted(stub.registry_names().decode().split())
later = ctypes.CDLL({str(later)!r})
first = ctypes.CDLL({str(built.host_library())!r})
alone = names(later)  # no TensorRT of the right major is loaded
_ctypes.dlclose(first._handle)
stub = ctypes.CDLL({str(stub)!r})
plugins = ctypes.CDLL({str(built.host_library())!r})
opened = names(stub)
taken = stub.registry_take(ctypes.cast(plugins.getCreators, ctypes.c_void_p))
both = names(stub)
print(json.dumps([alone, opened, taken, both, names(later)]))
""",
        encoding="utf-8",
    )
    alone, opened, taken, both, wrong = json.loads(in_process(str(script)))
    assert alone == wrong == []
    assert opened == both == names
    assert taken == len(names)


@needs_compiler
def test_closing_the_library_leaves_the_registry(tmp_path: Path) -> None:
    major = headers().version.split(".")[0]
    stub = built.stub(Path(__file__).with_name("registry.cpp"), f"libnvinfer.so.{major}")
    script = tmp_path / "close.py"
    script.write_text(
        f"""
import _ctypes, ctypes
stub = ctypes.CDLL({str(stub)!r})
stub.registry_names.restype = ctypes.c_char_p
plugins = ctypes.CDLL({str(built.host_library())!r})
print(len(stub.registry_names().split()))
_ctypes.dlclose(plugins._handle)
print(len(stub.registry_names().split()))
""",
        encoding="utf-8",
    )
    before, after = in_process(str(script)).split()
    assert (int(before), int(after)) == (len(NAMES), 0)


@needs_nvcc
def test_the_library_needs_no_driver_and_exports_three_names(compiled: Path) -> None:
    needed = subprocess.run(
        ["readelf", "-d", str(compiled)], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r"NEEDED.*(libcuda|libcudart|libnvinfer)", needed)
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", str(compiled)], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in exported.stdout.splitlines() if " T " in line}
    assert {"getCreators", "setLoggerFinder", library.SYMBOL} <= names
    assert not [name for name in names if "tokenrt" in name and name != library.SYMBOL]


@needs_nvcc
def test_a_library_says_what_it_is(compiled: Path) -> None:
    told = info(compiled)
    assert told.architectures == (ONE,)
    assert {contract.operator for contract in told.operators} == NAMES
    assert told.versions == {"TensorRT": headers().version, "CUDA": toolchain.look().version}


@needs_nvcc
def test_the_verbs(compiled: Path, tmp_path: Path) -> None:
    made = tmp_path / "again.so"
    done = CliRunner().invoke(app, ["plugins", "build", "--arch", str(ONE), "-o", str(made), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert made.read_bytes() == compiled.read_bytes()
    assert (told["architectures"], told["status"]) == ([ONE], "compiled")
    done = CliRunner().invoke(app, ["plugins", "info", str(made), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["architectures"], told["namespace"], told["version"]) == ([ONE], "tokenrt", "1")
    assert {operator["operator"] for operator in told["operators"]} == NAMES
    done = CliRunner().invoke(app, ["plugins", "info"])
    assert done.exit_code == 0
    assert "unverified" in done.stdout


def test_bad_requests_are_told(tmp_path: Path) -> None:
    for arguments, reason in (
        (["build", "--arch", "89x"], "is no architecture"),
        (["build", "--arch", "12"], "does not compile for sm_12" if has_nvcc() else "needs nvcc"),
        (
            ["build", "--arch", "89", "-o", str(tmp_path / "no" / "p.so")],
            "does not exist" if has_nvcc() else "nvcc",
        ),
        (["info", str(tmp_path / "none.so")], "is no tokenrt plugin library"),
        (["info", str(Path(__file__))], "is no tokenrt plugin library"),
    ):
        done = CliRunner().invoke(app, ["plugins", *arguments])
        assert done.exit_code == 2, arguments
        assert reason in done.stderr
        assert not [*tmp_path.iterdir()]


@needs_nvcc
def test_what_nvcc_refuses_is_told_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRT_CACHE", str(tmp_path / "cache"))
    here = headers()
    monkeypatch.setattr(library, "headers", lambda: here)
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-Dtokenrt=%"))
    with pytest.raises(BuildError, match=r"nvcc refused [\w/]+\.cu: .* -Dtokenrt=%"):
        build(arch=[ONE], output=tmp_path / "plugins.so")
    assert not [*tmp_path.rglob("*.so")]


def test_no_architecture_is_refused(tmp_path: Path) -> None:
    if has_nvcc():
        with pytest.raises(UnsupportedError, match="no architecture to build for"):
            build(arch=[], output=tmp_path / "plugins.so")


# Loading -----------------------------------------------------------------------------------------------------------------


class FakeRegistry:
    """A registry that opens a library and takes what it is told to."""

    def __init__(self, takes: set[str]) -> None:
        self.takes, self.held, self.loaded = takes, set[str](), list[str]()

    def load_library(self, path: str) -> object:
        self.loaded.append(path)
        self.held |= self.takes
        return object()

    def get_creator(self, name: str, version: str, namespace: str) -> object | None:
        return object() if (version, namespace) == ("1", "tokenrt") and name in self.held else None


@needs_compiler
def test_loading_into_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = FakeRegistry(NAMES)
    fake: Any = ModuleType("tensorrt")
    fake.get_plugin_registry = lambda: registry
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    assert set(load(built.host_library())) == NAMES
    assert set(load(built.host_library())) == NAMES
    assert registry.loaded == [str(built.host_library())]


@needs_compiler
def test_loading_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenrtError, match=r"TensorRT did not take TokenMatch from .*; its log says why"):
        load(built.host_library(), FakeRegistry(NAMES - {"TokenMatch"}))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DependencyError, match="loading plugins into TensorRT"):
        load(built.host_library())
    with pytest.raises(TokenrtError, match="is no tokenrt plugin library"):
        load(__file__, FakeRegistry(NAMES))


def test_an_old_nvcc_drops_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = (75, 80, 86, 87, 89, 90)
    orin = toolchain.Toolkit(Path("nvcc"), "12.6.68", known, Path(), "PATH")
    monkeypatch.setattr(toolchain, "toolkit", lambda: orin)
    monkeypatch.setattr(library, "headers", lambda: SimpleNamespace(folder=Path("headers"), version="10.3.0"))
    asked = []

    def kept(nvcc: Any, here: Any, architectures: Any, tell: Any) -> Path:
        asked.append(tuple(architectures))
        return Path(__file__)

    monkeypatch.setattr(library, "_built", kept)
    made = build(output=tmp_path / "plugins.so")
    assert asked == [known]
    assert made.dropped == (100, 103, 110, 120, 121)
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as shown:
        console.print(made)
    assert "left out, because this nvcc does not know them: 100, 103" in shown.get()


# CMake -------------------------------------------------------------------------------------------------------------------


def test_cmake_builds_what_the_verb_builds() -> None:
    text = (HERE / "CMakeLists.txt").read_text()
    wanted = re.search(r"set\(wanted ([\d ]+)\)", text)
    assert wanted
    assert tuple(map(int, wanted[1].split())) == toolchain.ARCHITECTURES
    assert "common/*.cpp token_*/plugin.cu" in text
    for flag in library.FLAGS:
        for word in flag.removeprefix("-Xcompiler=").split(","):
            own = {
                "-std=c++17": "CUDA_STANDARD 17",
                "-fvisibility=hidden": "VISIBILITY_PRESET hidden",
                "-fPIC": "SHARED",
            }
            assert own.get(word, word) in text
    assert "CUDA_RUNTIME_LIBRARY Static" in text


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on PATH")
def test_cmake_makes_the_library(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    for command in (
        [
            "cmake", "-S", str(HERE), "-B", str(folder), f"-DTENSORRT_INCLUDE={headers().folder}",
            f"-DTOKENRT_ARCHITECTURES={ONE}", f"-DCMAKE_CUDA_COMPILER={toolchain.toolkit().nvcc}",
        ],
        ["cmake", "--build", str(folder), "--parallel"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "warning" not in done.stderr
    assert info(folder / library.NAME).architectures == (ONE,)
