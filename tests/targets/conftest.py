"""The command line in process, as the tests of the front door have it, and a trtexec that is none."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tokenrt.conftest import run as run

FAKE = Path(__file__).parent / "helpers" / "fake_trtexec.py"
Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Write a `trtexec` of a release, with faults, into a folder of its own, and return that folder."""

    def write(release: str = "11.4.1", *faults: str, engine_mib: int = 0) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        settings = {
            "FAKE_RELEASE": release,
            "FAKE_FAULTS": " ".join(faults),
            "FAKE_ENGINE_MIB": str(engine_mib),
        }
        words = [
            *(f"{name}={shlex.quote(value)}" for name, value in settings.items()),
            "exec",
            sys.executable,
        ]
        program = folder / "trtexec"
        program.write_text(f'#!/bin/sh\n{" ".join(words)} {shlex.quote(str(FAKE))} "$@"\n')
        program.chmod(0o755)
        return folder

    return write


@pytest.fixture
def here(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """As `fake`, and on the path of this machine."""

    def write(*settings: str, **more: int) -> Path:
        folder = fake(*settings, **more)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        return folder

    return write


@pytest.fixture(autouse=True, scope="module")
def silent() -> Iterator[None]:
    """On a busy machine too an error is the only line, since what work is going on is told much later than here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenrt.cli.boundary.SILENT", 3600.0)
        yield
