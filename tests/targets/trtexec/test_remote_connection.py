"""The connection to a device: it breaks, goes on, never comes back, or is refused."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.targets.conftest import Fake
from tests.targets.helpers import sshd
from tests.targets.helpers.remote import Profile, needs_sshd, nothing_left, refused
from tests.targets.helpers.remote import device as device
from tests.targets.helpers.remote import profile as profile
from tests.targets.helpers.remote import wire as wire
from tokenrt.errors import DeviceError
from tokenrt.targets.trtexec import workplace
from tokenrt.targets.trtexec.machine import Host, host
from tokenrt.targets.trtexec.workplace import Step, Workplace

pytestmark = needs_sshd


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
