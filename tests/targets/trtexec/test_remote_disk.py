"""A disk on the device that is too small: told before or while it fills up, and nothing half is taken."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.targets.conftest import Fake
from tests.targets.helpers import sshd
from tests.targets.helpers.remote import Profile, needs_sshd, nothing_left, refused
from tests.targets.helpers.remote import device as device
from tests.targets.helpers.remote import profile as profile
from tokenrt.errors import BuildError, DeviceError
from tokenrt.targets.trtexec import workplace
from tokenrt.targets.trtexec.machine import host
from tokenrt.targets.trtexec.workplace import Step

pytestmark = needs_sshd


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
