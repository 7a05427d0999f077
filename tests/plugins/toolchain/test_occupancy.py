"""Occupancy as computed, against NVIDIA's own calculator, a header of the CUDA toolkit."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from tokenrt.errors import TokenrtError
from tokenrt.plugins.toolchain import nvcc, occupancy
from tokenrt.plugins.toolchain.compiler import compiler, kept
from tokenrt.targets import load

ORACLE = Path(__file__).with_name("occupancy_oracle.cpp")


def test_known_cases() -> None:
    assert occupancy.occupancy(89, 256, 128, 16448) == 16 / 48
    assert occupancy.occupancy(90, 128, 32, 1048) == 1
    assert occupancy.blocks(75, 1024, 64, 0) == 1


def test_nvidia_counts_the_same() -> None:
    try:
        include = nvcc.toolkit().root / "include"
        program = compiler()
    except TokenrtError as missing:
        pytest.skip(str(missing))
    if not (include / "cuda_occupancy.h").is_file():
        pytest.skip("this CUDA toolkit has no cuda_occupancy.h")
    oracle = kept((program, "-std=c++17", f"-isystem{include}"), [ORACLE], "occupancy")
    cases = list(
        itertools.product(
            occupancy.LIMITS,
            (32, 64, 128, 256, 512, 1024),
            (16, 32, 33, 64, 90, 128),
            (0, 16, 9472, 16448, 48 * 1024),
        )
    )
    lines = [
        f"{arch} {has.threads} {has.shared} {has.reserved} {threads} {registers} {shared}\n"
        for arch, threads, registers, shared in cases
        for has in (occupancy.LIMITS[arch],)
    ]
    told = subprocess.run(
        [oracle], input="".join(lines), capture_output=True, text=True, check=True
    ).stdout.split()
    for case, status, counted in zip(cases, told[::2], told[1::2], strict=True):
        assert status == "0", case
        assert occupancy.blocks(*case) == int(counted), case


@pytest.mark.parametrize("name", ["a100", "agx-orin", "l4", "h100", "b200", "thor", "rtx-5090", "dgx-spark"])
def test_target_profiles_say_the_same_of_shared_memory(name: str) -> None:
    target = load(name)
    arch = int((target.compute_capability or "").replace(".", ""))
    assert target.fact("shared_memory_kib") == occupancy.LIMITS[arch].shared
