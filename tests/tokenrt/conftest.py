"""The command line in process, a stand-in for the functions behind it, and a folder to run it in."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import tokenrt
from tokenrt.cli import app
from tokenrt.perf.demo import subject

Run = Callable[..., Result]


@dataclass
class Answer:
    """Stands for any result; remembers how the function behind the verb was called."""

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    saved: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    noise: str = ""
    ok: bool = True

    def __call__(self, *args: Any, **kwargs: Any) -> Answer:
        self.calls.append((args, kwargs))
        if self.noise:
            print(self.noise)
        if self.error is not None:
            raise self.error
        return self

    def save(self, path: Any) -> None:
        self.saved.append(path)

    def as_dict(self) -> dict[str, Any]:
        return {"answer": 42}

    def __rich__(self) -> str:
        return "[bold]the answer[/bold]"

    @property
    def options(self) -> dict[str, Any]:
        ((_, kwargs),) = self.calls
        return kwargs


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the reader's folder, the one we are in, with these photographs in `pictures`."""

    def made(*names: str) -> Path:
        if subject.version(subject.PICTURES) is None:
            pytest.skip("scikit-image, which carries the photographs, is not installed")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "pictures").mkdir()
        for name in names:
            shutil.copy(subject.photograph(name).file, tmp_path / "pictures")
        return tmp_path

    return made


@pytest.fixture
def run() -> Run:
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    def replace(name: str, **settings: Any) -> Answer:
        answer = Answer(**settings)
        monkeypatch.setitem(vars(tokenrt), name, answer)
        return answer

    return replace
