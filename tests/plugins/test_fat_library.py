"""The plugin library for every architecture: how long it takes to build, and what its machine code holds."""

from __future__ import annotations

import resource
import subprocess
from pathlib import Path

import pytest

from tests.plugins.helpers.needs import needs_nvcc
from tests.plugins.toolchain.test_device import check_rows
from tokenrt.plugins import build, contracts, library
from tokenrt.plugins.toolchain import nvcc as toolchain
from tokenrt.plugins.toolchain import sass
from tokenrt.plugins.toolchain.headers import headers

pytestmark = [needs_nvcc, pytest.mark.slow]

CORES = 2
"""Of the machine that the limits of building are for; nvcc runs once a core."""


def anew(arch: list[int] | None, folder: Path) -> tuple[library.Library, float]:
    """A library built with an empty cache, and the time: of processors, so that what else runs counts for little."""
    nvcc, here = toolchain.toolkit(), headers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENRT_CACHE", str(folder / "cache"))
        patch.setattr(toolchain, "toolkit", lambda: nvcc)
        patch.setattr(library, "headers", lambda: here)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        made = build(arch=arch, output=folder / "plugins.so")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / CORES
    print(
        f"{len(made.architectures)} architectures: {seconds:.0f} s on {CORES} cores, {made.seconds:.0f} s here"
    )
    return made, seconds


@pytest.fixture(scope="module")
def fat(tmp_path_factory: pytest.TempPathFactory) -> tuple[library.Library, float]:
    return anew(None, tmp_path_factory.mktemp("fat"))


def test_building_for_all_takes_minutes(fat: tuple[library.Library, float]) -> None:
    assert fat[1] < 600


def test_building_for_one_takes_a_minute(tmp_path: Path) -> None:
    assert anew([89], tmp_path)[1] < 90


def test_every_architecture_is_in_the_fat_library(fat: tuple[library.Library, float]) -> None:
    made = fat[0]
    assert made.architectures == toolchain.look().architectures
    for kind in ("elf", "ptx"):
        command = [toolchain.look().tool("cuobjdump"), f"--list-{kind}", made.path]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if kind == "ptx":
            assert f"sm_{max(made.architectures)}.ptx" in listed
            continue
        for arch in made.architectures:
            assert listed.count(f".sm_{arch}.") >= len(contracts.contracts())


@pytest.mark.parametrize("arch", toolchain.ARCHITECTURES)
def test_rows_are_read_16_bytes_at_a_time_in_the_library(
    arch: int, fat: tuple[library.Library, float]
) -> None:
    if arch in toolchain.look().dropped:
        pytest.skip(f"nvcc {toolchain.look().version} does not know sm_{arch}")
    check_rows(sass.listing(fat[0].path, arch))
