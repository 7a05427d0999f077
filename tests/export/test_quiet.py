"""Silence holds down to the descriptor, ends with the block, and lets a progress display through."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr

import pytest
from rich.console import Console

from tokenrt.export.quiet import quiet


def noise() -> None:
    print("print")
    print("print", file=sys.stderr)
    os.write(1, b"descriptor\n")
    subprocess.run(["echo", "child"], check=True)
    logging.getLogger("loud").critical("log")
    warnings.warn("warning", stacklevel=1)


def test_all_channels_are_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        noise()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_everything_is_back_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    streams, disabled = (sys.stdout, sys.stderr), logging.root.manager.disable
    with pytest.raises(ValueError, match="inside"), quiet():
        raise ValueError("inside")
    assert (sys.stdout, sys.stderr) == streams
    assert logging.root.manager.disable == disabled
    with pytest.warns(UserWarning, match="warning"):
        noise()
    assert "descriptor" in capfd.readouterr().out


def test_descriptors_do_not_leak() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with quiet():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_rich_console_of_the_caller_still_writes() -> None:
    stream = io.StringIO()
    with redirect_stderr(stream):
        console = Console(stderr=True)
        with quiet():
            print("noise", file=sys.stderr)
            console.print("progress")
    assert stream.getvalue() == "progress\n"
