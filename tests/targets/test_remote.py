"""Profiles over ssh, against a real sshd: whole, or one clear message, and nothing left on either side."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.targets import sshd
from tests.targets.conftest import Fake
from tests.targets.models import reduction
from tests.tokenrt.conftest import Run
from tokenrt.errors import BuildError, DeviceError
from tokenrt.passes.model import save
from tokenrt.targets import workplace
from tokenrt.targets.machine import Host, host
from tokenrt.targets.workplace import Step, Workplace

pytestmark = pytest.mark.skipif(bool(sshd.missing()), reason=sshd.missing() or "sshd is here")

Profile = Callable[..., Any]


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


def test_a_connection_that_breaks_goes_on_where_it_was(
    profile: Profile, device: sshd.Server, wire: sshd.Wire
) -> None:
    # Every one of the first connections after the first is cut: early, in the middle, and one lives in between.
    wire.cut_after(0, 2500, 3500, 0, 4500, 2500, 0, 2500, 2500)
    done = profile("--json", port=wire.port)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["model"]["layers"] > 1
    assert not wire.cuts
    assert list((device.folder / "work").iterdir()) == []


def test_the_run_outlives_its_connection(
    profile: Profile, device: sshd.Server, wire: sshd.Wire, fake: Fake
) -> None:
    fake("10.3.0")
    stop = threading.Event()

    def cut_while_it_runs() -> None:
        for _ in range(2):
            while not stop.is_set() and not list((device.folder / "work").glob(".*/now")):
                time.sleep(0.02)
            time.sleep(0.3)
            wire.cut()

    thread = threading.Thread(target=cut_while_it_runs)
    thread.start()
    try:
        done = profile("--json", port=wire.port)
    finally:
        stop.set()
        thread.join()
    assert done.exit_code == 0, done.stderr
    assert list((device.folder / "work").iterdir()) == []


def test_an_upload_goes_on_from_where_it_broke_off(
    tmp_path: Path, device: sshd.Server, wire: sshd.Wire
) -> None:
    source = tmp_path / "big"
    source.write_bytes(os.urandom(8 << 20))
    machine = host(device.address, folder=f"{device.folder}/work", port=wire.port, config=device.config)
    asked: list[int] = []
    with workplace.workplace(machine, patience=20) as work:
        send = work._send

        def watched(path: Path, name: str, size: int) -> None:
            asked.append(int(work.ask("held", name)))
            send(path, name, size)

        work._send = watched  # type: ignore[method-assign]
        # Two questions what is there go before every part.
        wire.cut_after(0, 0, 3 << 20)
        work.put(source, "big")
        assert asked[0] == 0
        assert len(asked) == 2
        assert 0 < asked[1] < 8 << 20
        assert Path(work.facts["folder"], "big").read_bytes() == source.read_bytes()
    assert list((device.folder / "work").iterdir()) == []


def test_a_connection_that_never_comes_back_leaves_nothing_behind(
    profile: Profile, device: sshd.Server, wire: sshd.Wire, monkeypatch: pytest.MonkeyPatch, fake: Fake
) -> None:
    fake("10.3.0", "hang")
    begin = Workplace.begin
    monkeypatch.setattr(Workplace, "begin", lambda self, trtexec, lease: begin(self, trtexec, 10))
    stop = threading.Event()

    def gone_once_it_runs() -> None:
        while not stop.is_set() and not list((device.folder / "work").glob(".*/now")):
            time.sleep(0.02)
        wire.close()

    thread = threading.Thread(target=gone_once_it_runs)
    thread.start()
    try:
        text = refused(profile("--reconnect", 1, port=wire.port))
    finally:
        stop.set()
        thread.join()
    assert "was lost and did not come back within 1 s" in text
    assert "run the same command again" in text
    nothing_left(device)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ("fail-build", "building r on .* failed with status 1: .*Could not find any implementation"),
        ("fail-run", "timing r, 1 of 3 on .* failed with status 1: .*out of memory"),
        ("liar", "ended building r without having passed"),
        ("unread", "ended timing r, 1 of 3 without having passed: .*deserialization failed"),
        ("missing:profile", "did not write profile_r.json"),
        ("truncate:times", "times_r_0.json is not what trtexec writes with --exportTimes: it breaks off"),
        ("truncate:layers", "layers_r.json is not what trtexec writes with --exportLayerInfo: it breaks off"),
        ("empty:profile", "profile_r.json is not what trtexec writes with --exportProfile: it is empty"),
        ("no-start", "does not start, or does not tell its release"),
    ],
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


def test_a_host_key_that_changed_is_told(profile: Profile, device: sshd.Server) -> None:
    (device.folder / "known_hosts").write_text("")
    assert "host key of" in refused(profile())
    device.trust(sshd.key(device.folder / "other"), device.port)
    assert "shows another host key than the one on record" in refused(profile())
    nothing_left(device)


def test_a_key_that_is_not_taken_is_told(profile: Profile, device: sshd.Server) -> None:
    other = sshd.key(device.folder / "other")
    device.config.write_text(device.config.read_text().replace(str(device.folder / "user_key"), str(other)))
    text = refused(profile("--identity", other))
    assert "takes none of the keys it was offered" in text
    assert other.read_text().splitlines()[1] not in text
    nothing_left(device)


def test_a_device_that_is_off_is_told_at_once(profile: Profile, device: sshd.Server) -> None:
    device.stop()
    assert "cannot be reached: " in refused(profile())
    nothing_left(device)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_too_small_for_the_model_is_told_before_it_is_sent(
    tmp_path: Path, device: sshd.Server, small_disk: Path
) -> None:
    source = tmp_path / "big.onnx"
    source.write_bytes(bytes(4 << 20))
    machine = host(device.address, folder=str(small_disk), port=device.port, config=device.config)
    with (
        pytest.raises(DeviceError, match=r"has 2 MiB free where big\.onnx with its 4 MiB is to go"),
        workplace.workplace(machine) as work,
    ):
        work.put(source, "big.onnx")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_while_a_file_is_sent(
    tmp_path: Path, device: sshd.Server, small_disk: Path
) -> None:
    source = tmp_path / "big.onnx"
    source.write_bytes(bytes(4 << 20))
    machine = host(device.address, folder=str(small_disk), port=device.port, config=device.config)

    def send() -> None:
        with workplace.workplace(machine) as work:
            work.facts = {**work.facts, "free_kib": "1000000"}
            work.put(source, "big.onnx")

    with pytest.raises(DeviceError, match="No space left on device"):
        send()
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_while_building(
    profile: Profile, device: sshd.Server, small_disk: Path, fake: Fake
) -> None:
    fake("10.3.0", engine_mib=8)
    text = refused(profile(place=small_disk))
    assert "building r" in text
    assert "the disk there is full" in text
    nothing_left(device, small_disk)


def test_a_disk_that_fills_up_while_reports_are_written_gives_no_half_report(
    tmp_path: Path, device: sshd.Server, small_disk: Path
) -> None:
    machine = host(device.address, folder=str(small_disk), port=device.port, config=device.config)
    fill = "head -c 4000000 /dev/zero >out/report; true"

    def fetch() -> None:
        with workplace.workplace(machine) as work:
            work.run([Step("writing", ("sh", "-c", fill))])
            work.fetch(tmp_path)

    with pytest.raises(BuildError, match="the disk there is full"):
        fetch()
    assert list(small_disk.iterdir()) == []
    assert not (tmp_path / "report").exists()


def test_a_result_that_changed_on_its_way_is_not_taken(tmp_path: Path, device: sshd.Server) -> None:
    machine = host(device.address, folder=f"{device.folder}/work", port=device.port, config=device.config)

    def fetch() -> None:
        with workplace.workplace(machine) as work:
            work.run([Step("writing", ("sh", "-c", "echo one >out/report"))])
            Path(work.facts["folder"], "out", "report").write_text("two")
            work.fetch(tmp_path)

    with pytest.raises(DeviceError, match="report came back damaged"):
        fetch()


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a b", "$(id)", "", "x;y"])
def test_what_ssh_would_take_for_an_option_or_the_shell_for_a_command_is_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="expected a host as ssh takes it"):
        host(name)


@pytest.mark.parametrize("folder", ["~/work", "a b", "$HOME", "-x"])
def test_a_folder_the_shell_there_would_read_otherwise_is_refused(folder: str) -> None:
    with pytest.raises(DeviceError, match="expected a path of letters"):
        host("jetson", folder=folder)


def test_the_users_options_come_first_and_nothing_secret_is_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret_key"
    secret.write_text("x")
    one = host("me@jetson", port=2222, identity=secret, options=["ConnectTimeout=99"])
    words = one.command("true")
    assert words.index("ConnectTimeout=99") < words.index("ConnectTimeout=15")
    assert words[-3:] == ["--", "me@jetson", "true"]
    assert "secret" not in repr(one)
    assert isinstance(one, Host)
