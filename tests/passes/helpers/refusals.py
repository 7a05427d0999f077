"""Bad input through the Python API and the command line: one message, exit status 2, nothing written or changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tokenrt.cli import app
from tokenrt.errors import TokenrtError

State = dict[str, str]


def state(folder: Path) -> State:
    """Every file under a folder and a digest of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def refused_call(folder: Path, message: str, call: Callable[[], Any]) -> None:
    """`call` raises one of tokenrt's errors whose text matches, and leaves the folder as it was."""
    before = state(folder)
    with pytest.raises(TokenrtError) as caught:
        call()
    assert re.search(message, str(caught.value)), f"{message!r} is not in: {caught.value}"
    assert state(folder) == before


def refused_line(folder: Path, message: str, *words: object) -> None:
    """The command line says the same once, without a traceback, and exits with 2."""
    before = state(folder)
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 2, f"exit {done.exit_code}: {done.stderr}{done.exception!r}"
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    text = " ".join(done.stderr.replace("│", " ").split())
    assert re.search(message, text) or re.search(message, done.stderr), (
        f"{message!r} is not in: {done.stderr}"
    )
    assert state(folder) == before
