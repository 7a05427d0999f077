"""A device behind a real sshd on loopback: the fixtures and the looks at it that tests of the ssh route share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.targets.conftest import Fake
from tests.targets.helpers import sshd
from tests.targets.helpers.models import reduction
from tests.tokenrt.conftest import Run
from tokenrt.passes.graph.model import save
from tokenrt.targets.trtexec import workplace

Profile = Callable[..., Any]

needs_sshd = pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing() or "sshd is here")


@pytest.fixture
def device(tmp_path: Path, fake: Fake) -> Iterator[sshd.Server]:
    with sshd.server(tmp_path / "device", f"{fake('10.3.0')}:{os.defpath}") as one:
        (tmp_path / "device" / "work").mkdir()
        yield one


@pytest.fixture
def wire(device: sshd.Server) -> Iterator[sshd.Wire]:
    one = sshd.Wire(device.port)
    device.trust(device.folder / "host_key", one.port)
    yield one
    one.close()


@pytest.fixture
def profile(run: Run, tmp_path: Path, device: sshd.Server, monkeypatch: pytest.MonkeyPatch) -> Profile:
    """`tokenrt profile` of the small reduction on the device, in folders of their own on both sides."""
    monkeypatch.setattr(workplace, "PULSE_S", 0.05)
    save(reduction(), tmp_path / "r.onnx")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def call(*extra: Any, port: int = 0, address: str = "", place: Path | None = None) -> Any:
        return run(
            "profile", tmp_path / "r.onnx", "--target", "orin-nano", "--host", address or device.address, "--port",
            port or device.port, "--ssh-config", device.config, "--device-folder", place or device.folder / "work",
            "--out", tmp_path / "out", "--reconnect", 5, *extra,
        )  # fmt: skip

    return call


def nothing_left(device: sshd.Server, place: Path | None = None) -> None:
    """Neither files nor processes on the device, nor files of half a result here."""
    folder = place or device.folder / "work"
    end = time.monotonic() + 60
    while time.monotonic() < end and (list(folder.iterdir()) or working(folder)):
        time.sleep(0.1)
    assert list(folder.iterdir()) == []
    assert working(folder) == []
    here = device.folder.parent
    assert list((here / "tmp").iterdir()) == []
    assert not (here / "out").exists()


def working(folder: Path) -> list[str]:
    """Processes whose directory is in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if os.readlink(entry / "cwd").startswith(f"{folder}/"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def refused(done: Any) -> str:
    """The one line of an error."""
    assert done.exit_code == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    text: str = done.stderr
    return text
