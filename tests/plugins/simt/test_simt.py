"""The host layer on kernels that are right and on ones broken on purpose: each sanitizer must see what is its business."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tokenrt.plugins.toolchain.compiler import COMPILERS, compiled

PROBE = Path(__file__).with_name("simt_probe.cpp")
MODES = {
    "fibers": ("-O1",),
    "threads": ("-O1", "-pthread", "-DSIMT_THREADS"),
    "address": ("-O1", "-g", "-fsanitize=address"),
    "undefined": ("-O1", "-g", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"),
    "race": ("-O1", "-g", "-pthread", "-DSIMT_THREADS", "-fsanitize=thread"),
}
RIGHT = "0 64 1520 496 63\n"
"""status, votes, sums over the two warps of block 0, and 64 numbers reversed: 63 first."""

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in COMPILERS), reason="no C++ compiler on PATH"
)


def run(mode: str, kernel: str) -> subprocess.CompletedProcess[str]:
    program = compiled(PROBE, MODES[mode], "probe")
    options = {"TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "exitcode=67:detect_leaks=0"}
    return subprocess.run(
        [program, kernel], capture_output=True, text=True, timeout=120, check=False, env=os.environ | options
    )


@pytest.mark.parametrize("mode", MODES)
def test_right_kernels_are_right_and_clean(mode: str) -> None:
    done = run(mode, "right")
    assert (done.returncode, done.stdout, done.stderr) == (0, RIGHT, "")
    done = run(mode, "neighbour")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("mode", "kernel", "told"),
    [
        ("race", "no-barrier", "ThreadSanitizer: data race"),
        ("race", "unordered-neighbour", "ThreadSanitizer: data race"),
        ("address", "off-by-one", "AddressSanitizer: global-buffer-overflow"),
        ("address", "dynamic-off-by-one", "AddressSanitizer: heap-buffer-overflow"),
        ("address", "global-off-by-one", "AddressSanitizer: heap-buffer-overflow"),
        ("undefined", "off-by-one", "out of bounds for type"),
        ("undefined", "misaligned", "misaligned address"),
    ],
)
def test_broken_kernels_are_caught_by_sanitizers(mode: str, kernel: str, told: str) -> None:
    done = run(mode, kernel)
    assert done.returncode != 0
    assert told in done.stderr


@pytest.mark.parametrize("mode", ["fibers", "threads"])
@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        ("divergent", "threads of one block wait at different barriers"),
        ("early", "a thread returned while others of its block wait at a barrier"),
    ],
)
def test_barriers_that_some_threads_miss_stop_the_program(mode: str, kernel: str, told: str) -> None:
    done = run(mode, kernel)
    assert done.returncode != 0
    assert told in done.stderr


@pytest.mark.parametrize("mode", ["fibers", "threads", "race", "undefined"])
def test_shared_memory_begins_as_nan_in_every_block(mode: str) -> None:
    """Block 0 gives 0 and 32 for its first and 32nd number; block 1 finds nothing of it."""
    *first, second = run(mode, "unwritten").stdout.split()
    assert first == ["0", "0", "0", "32"]
    assert "nan" in second


@pytest.mark.parametrize("mode", ["fibers", "threads"])
def test_blocks_run_in_another_order_too(mode: str) -> None:
    """1, then 1 + 1, then 2 + 4 one after another; from the last on, the first leaves its 1."""
    assert run(mode, "chained").stdout.split()[2] == "6"
    assert run(mode, "chained-backwards").stdout.split()[2] == "1"


@pytest.mark.parametrize("mode", MODES)
def test_blocks_of_a_cluster_read_what_others_show(mode: str) -> None:
    """The first two numbers of each block are 1 and 0 of the other one, 33 and 32 of its second warp."""
    for kernel in ("clusters", "clusters-backwards"):
        done = run(mode, kernel)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0 0 101 133 1\n", "")


@pytest.mark.parametrize("mode", ["fibers", "threads", "race", "address"])
def test_a_barrier_of_a_cluster_that_is_missing_leaves_nothing_to_read(mode: str) -> None:
    """Block 0 reads before block 1 has written; or block 0 has returned when block 1 reads."""
    first, _, second = run(mode, "no-barrier-of-clusters").stdout.split()[2:]
    assert ("nan" in first, second) == (True, "1")
    first, _, second = run(mode, "return-from-clusters").stdout.split()[2:]
    assert (first, "nan" in second) == ("101", True)


@pytest.mark.parametrize("mode", ["fibers", "threads"])
@pytest.mark.parametrize(
    ("kernel", "told"),
    [
        ("apart", "blocks of a cluster wait at different barriers of it"),
        ("stranger", "no place of the memory that the blocks of a cluster show each other"),
    ],
)
def test_broken_clusters_stop_the_program(mode: str, kernel: str, told: str) -> None:
    done = run(mode, kernel)
    assert done.returncode != 0
    assert told in done.stderr


def test_clusters_are_refused_where_there_are_none() -> None:
    assert run("fibers", "no-clusters").stdout == "912 0 -1 -1 -1\n"


@pytest.mark.parametrize("mode", ["fibers", "threads", "undefined"])
def test_copies_come_when_they_are_waited_for(mode: str) -> None:
    """Thread 0 adds 0 and 3, thread 32 too; the last ones copy zeros."""
    assert run(mode, "copied").stdout.split()[2:] == ["3", "3", "0"]
    assert run(mode, "copied-unwaited").stdout.split()[2:4] == ["0", "0"]


def test_a_launch_beyond_the_limits_is_refused_and_writes_nothing() -> None:
    assert run("fibers", "too-many-threads").stdout == "9 0 -1 -1 -1\n"


def test_half_types_convert_as_ieee_says() -> None:
    lines = [line.split() for line in run("fibers", "halves").stdout.splitlines()]
    words = np.array([[int(word, 16) for word in line] for line in lines[:65536]], np.uint32)
    bits = np.arange(65536, dtype=np.uint16)
    half = bits.view(np.float16)
    number = ~np.isnan(half)
    np.testing.assert_array_equal(words[number, 0], half.astype(np.float32).view(np.uint32)[number])
    np.testing.assert_array_equal(words[number, 1], bits[number])
    assert np.isnan(words[~number, 0].view(np.float32)).all()
    np.testing.assert_array_equal(words[:, 2], bits.astype(np.uint32) << 16)

    given = np.array([[int(word, 16) for word in line] for line in lines[65536:]], np.uint32)
    value = np.ascontiguousarray(given[:, 0]).view(np.float32)
    number = ~np.isnan(value)
    with np.errstate(over="ignore"):
        wanted = value.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(given[number, 1], wanted[number])
    with np.errstate(invalid="ignore"):
        brain = value.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(given[number, 2], brain[number])
    assert (given[~number, 1] == 0x7FFF).all()
    assert (given[~number, 2] == 0x7FFF).all()
