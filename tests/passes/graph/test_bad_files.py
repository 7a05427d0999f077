"""Files that are no model, and places nothing can be written to."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import onnx
import pytest

import tokenrt
from tests.passes.helpers import tiny
from tests.passes.helpers.refusals import refused_call, refused_line, state
from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget


def good() -> bytes:
    data: bytes = tiny.model().SerializeToString()
    return data


def corrupt(data: bytes) -> bytes:
    broken = bytearray(data)
    chosen = random.Random(0)
    for _ in range(60):
        broken[chosen.randrange(len(broken))] ^= 0xFF
    return bytes(broken)


def write(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(content)
        return path

    return make


def directory(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


def external(folder: Path, length: int | None) -> Path:
    """A model whose weights lie beside it; only `length` bytes of them, or none at all."""
    path = folder / "model.onnx"
    onnx.save(tiny.model(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    data = folder / "model.data"
    if length is None:
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:length])
    return path


def outside(folder: Path) -> Path:
    model = tiny.model()
    onnx.save(
        model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0
    )
    made = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.data"
    onnx.save(made, folder / "model.onnx")
    return folder / "model.onnx"


FILES = {
    "truncated": (write(good()[: len(good()) // 2]), r"model\.onnx.*(truncated|not a readable ONNX)"),
    "without-its-last-bytes": (write(good()[:-3]), r"model\.onnx.*(truncated|not a readable ONNX)"),
    "corrupt": (write(corrupt(good())), r"model\.onnx"),
    "text": (write(b"a picture of a cat\n" * 9), r"model\.onnx.*not a readable ONNX"),
    "empty": (write(b""), r"model\.onnx is empty"),
    "directory": (directory, r"model\.onnx is a directory"),
    "missing": (lambda folder: folder / "model.onnx", r"no such model file: .*model\.onnx"),
    "weights-missing": (lambda folder: external(folder, None), r"model\.onnx.*model\.data.*missing"),
    "weights-truncated": (
        lambda folder: external(folder, 40),
        r"model\.data is truncated: \w+ needs \d+ bytes",
    ),
    "weights-outside": (outside, r"outside\.data|outside the model"),
    "opset-12": (write(tiny.model(opset=12).SerializeToString()), r"opset 12.*needs 13"),
    "no-outputs": (write(onnx.ModelProto().SerializeToString() + b"\x08\x08"), r"model\.onnx"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_model(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    path, target = make(tmp_path), tmp_path / "out.onnx"
    refused_call(
        tmp_path,
        message,
        lambda: tokenrt.reduce(path, method="tome", budget=Budget.remove(1), output=target),
    )
    refused_line(tmp_path, message, "reduce", path, "-o", target, "--method", "tome", "--remove", 1)


@pytest.mark.parametrize("kind", ["truncated", "directory", "missing", "weights-missing"])
@pytest.mark.parametrize(
    "verb",
    [["inspect"], ["plan", "--method", "tome", "--remove", "1"], ["lower", "--inline", "-o", "l.onnx"]],
)
def test_the_other_verbs_say_so_too(kind: str, verb: list[str], tmp_path: Path) -> None:
    make, message = FILES[kind]
    path = make(tmp_path)
    words = [str(tmp_path / word) if word == "l.onnx" else word for word in verb[1:]]
    refused_line(tmp_path, message, verb[0], path, *words)


TARGETS = {
    "a-directory": ("there.onnx", r"there\.onnx: it is a directory"),
    "folder-missing": ("nowhere/out.onnx", r"nowhere does not exist"),
    "another-ending": ("out.pb", r"out\.pb.*\.onnx"),
    "the-input-itself": ("model.onnx", r"model\.onnx: it is the model that is read"),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    name, message = TARGETS[kind]
    path = write(good())(tmp_path)
    target = tmp_path / name
    (tmp_path / "there.onnx").mkdir()
    refused_call(
        tmp_path,
        message,
        lambda: tokenrt.reduce(path, method="tome", budget=Budget.remove(1), output=target),
    )
    refused_line(tmp_path, message, "reduce", path, "-o", target, "--method", "tome", "--remove", 1)


def test_a_folder_that_takes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, target = write(good())(tmp_path), tmp_path / "out.onnx"
    monkeypatch.setattr(tempfile, "mkstemp", Mock(side_effect=PermissionError(13, "Permission denied")))
    message = (
        rf"out\.onnx: no file can be made in .*{tmp_path.name} \(Permission denied\); name another folder"
    )
    refused_line(tmp_path, message, "reduce", path, "-o", target, "--method", "tome", "--remove", 1)


def test_a_plan_is_not_written_over_a_directory(tmp_path: Path) -> None:
    path = write(good())(tmp_path)
    refused_line(tmp_path, "is a directory", "plan", path, "--method", "tome", "--remove", 1, "-o", tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_damage_never_ends_in_a_traceback(seed: int, tmp_path: Path) -> None:
    """Some bytes of the graph changed or cut away: a right answer or one of tokenrt's own errors."""
    chosen, data = random.Random(seed), bytearray(good())
    if seed % 4 == 0:
        del data[chosen.randrange(len(data)) :]
    else:
        for _ in range(1 + seed % 3):
            data[chosen.randrange(len(data))] = chosen.randrange(256)
    path = write(bytes(data))(tmp_path)
    before = state(tmp_path)
    with contextlib.suppress(TokenrtError):
        tokenrt.reduce(path, method="tome", budget=Budget.remove(1))
    assert state(tmp_path) == before
