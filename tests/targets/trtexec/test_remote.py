"""Profiles over ssh, against a real sshd: whole, or one clear message, and nothing left on either side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.targets.conftest import Fake
from tests.targets.helpers import sshd
from tests.targets.helpers.remote import Profile, needs_sshd, nothing_left, refused, working
from tests.targets.helpers.remote import device as device
from tests.targets.helpers.remote import profile as profile

pytestmark = needs_sshd


def test_times_layers_and_clocks_come_back_and_nothing_stays(
    profile: Profile, device: sshd.Server, fake: Fake, tmp_path: Path
) -> None:
    for tool, text in (("nvpmodel", "NV Power Mode: MAXN\\n0"), ("nvidia-smi", "name, pstate\\nOrin, P0")):
        (fake("10.3.0") / tool).write_text(f"#!/bin/sh\nprintf '{text}\\n'\n")
        (fake("10.3.0") / tool).chmod(0o755)
    done = profile("--json", "--batch", 2)
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["machine"] == device.address
    assert told["tensorrt"] == "10.3.0"
    assert told["model"]["batch"] == 2
    assert told["model"]["milliseconds"] > 0
    assert told["device"] == {"nvpmodel": "NV Power Mode: MAXN\n0", "nvidia-smi": "name, pstate\nOrin, P0"}
    assert json.loads((tmp_path / "out" / "profile.json").read_text()) == told
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"layers_r.json", "profile_r.json", "times_r_0.json", "orin-nano.timing"}
    assert list((device.folder / "work").iterdir()) == []
    secret = (device.folder / "user_key").read_text().splitlines()[1]
    for path in (tmp_path / "out").iterdir():
        text = path.read_text(errors="replace")
        assert secret not in text
        assert str(device.folder) not in text
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_folder_stays_when_asked_for(profile: Profile, device: sshd.Server) -> None:
    assert profile("--keep").exit_code == 0
    (kept,) = (device.folder / "work").iterdir()
    assert {path.name for path in kept.iterdir()} >= {"r.onnx", "r.engine", "out", "log"}
    assert working(device.folder / "work") == []


FAULTS = {
    "fail-run": "timing r, 1 of 3 on .* failed with status 1: .*out of memory",
    "liar": "ended building r without having passed",
    "truncate:times": "times_r_0.json is not what trtexec writes with --exportTimes: it breaks off",
    "no-start": "does not start, or does not tell its release",
}
MORE = {
    "fail-build": "building r on .* failed with status 1: .*Could not find any implementation",
    "unread": "ended timing r, 1 of 3 without having passed: .*deserialization failed",
    "missing:profile": "did not write profile_r.json",
    "truncate:layers": "layers_r.json is not what trtexec writes with --exportLayerInfo: it breaks off",
    "empty:profile": "profile_r.json is not what trtexec writes with --exportProfile: it is empty",
}
"""Those that look alike from outside: seconds each, most of them to connect."""


@pytest.mark.parametrize(
    ("faults", "message"),
    [*FAULTS.items(), *(pytest.param(*fault, marks=pytest.mark.slow) for fault in MORE.items())],
)
def test_what_fails_there_is_one_message(
    profile: Profile, device: sshd.Server, fake: Fake, faults: str, message: str
) -> None:
    fake("10.3.0", faults)
    assert re.search(message, refused(profile()))
    nothing_left(device)


def test_a_hanging_trtexec_is_ended(profile: Profile, device: sshd.Server, fake: Fake) -> None:
    fake("10.3.0", "hang-run")
    text = refused(profile("--timeout", 4))
    assert "timing r, 1 of 3" in text
    assert "was ended after 4 s" in text
    assert "--timeout" in text
    nothing_left(device)


def test_a_device_without_trtexec_says_where_it_was_looked_for(
    profile: Profile, device: sshd.Server, fake: Fake
) -> None:
    (fake("10.3.0") / "trtexec").unlink()
    text = refused(profile())
    assert "has no trtexec" in text
    assert "/usr/src/tensorrt/bin/trtexec" in text
    assert "--trtexec" in text
    nothing_left(device)


def test_a_trtexec_elsewhere_is_named(profile: Profile, fake: Fake, tmp_path: Path) -> None:
    (fake("10.3.0") / "trtexec").rename(tmp_path / "other-trtexec")
    assert profile("--trtexec", tmp_path / "other-trtexec").exit_code == 0


def test_another_major_than_the_profiles_is_refused(
    profile: Profile, device: sshd.Server, fake: Fake
) -> None:
    fake("11.4.1")
    assert "has TensorRT 11.4, and orin-nano is profiled with 10.3" in refused(profile())
    nothing_left(device)
    done = profile("--tensorrt", "11.4", "--json")
    assert done.exit_code == 0, done.stderr
