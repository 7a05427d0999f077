"""The kernels' own tests again, with the host build under sanitizers: in a process of its own, their runtime loaded first."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.plugins.helpers import built
from tokenrt.plugins.host import kernels
from tokenrt.plugins.toolchain.compiler import HERE

OWN = Path(__file__).parent
TESTS = [*sorted(OWN.glob("test_*kernels.py")), *sorted((OWN.parent / "kernels").glob("test_*.py"))]
INTERFACE = sorted(OWN.parent.glob("test_interface_*.py"))
QUICK = [OWN.parent / "test_quick.py"]
MEMORY = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
RACES = ("-O1", "-DSIMT_THREADS", "-fsanitize=thread")
PLAIN = ("-O2",)
CONTRACTED = ("-O2", "-ffp-contract=fast", "-mfma")
"""Products and sums in one rounding, as nvcc makes them for GPUs."""
RUNTIMES: dict[tuple[str, ...], tuple[str, ...]] = {
    MEMORY: ("libasan.so", "libubsan.so"),
    RACES: ("libtsan.so",),
    PLAIN: (),
    CONTRACTED: (),
}
FIXED = ("setarch", "-R") if shutil.which("setarch") else ()
"""Addresses are not drawn: where they fall outside of what ThreadSanitizer divides memory into, it gives up now and then."""
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0:exitcode=67", "TSAN_OPTIONS": "exitcode=66"}

PATIENCE = 3600
"""Seconds after which threads that wait for each other are given up: far beyond the quarter of an hour of the longest."""

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux",
    reason="no g++, whose sanitizer runtimes are used, on PATH",
)


def run(flags: tuple[str, ...], tests: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run the tests that `tests` selects with a host build of these flags."""
    extra = (*flags, *more)
    kernels.built(extra)  # here, where no runtime slows the compiler down
    preload = " ".join(map(_runtime, RUNTIMES[flags]))
    return _pytest(TESTS, tests, {kernels.EXTRA_FLAGS: " ".join(extra), "LD_PRELOAD": preload})


def _runtime(name: str) -> str:
    done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _pytest(paths: Sequence[Path], tests: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_XDIST")},
        **OPTIONS,
        **settings,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [
        *FIXED,
        sys.executable,
        "-m",
        "pytest",
        *map(str, paths),
        "-q",
        "-s",
        "-n",
        "0",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        tests,
    ]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment,
        cwd=OWN.parents[2],
    )


def check(done: subprocess.CompletedProcess[str]) -> None:
    told = done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0, told
    assert "Sanitizer" not in told, told
    assert " passed" in done.stdout


def test_no_kernel_reads_or_writes_beside_its_memory() -> None:
    check(
        run(
            MEMORY,
            "every_type or any_element or odd or masked or misaligned or out_of_range or refused or 33 or equal or bad_input",
        )
    )


@pytest.mark.parametrize(
    "types", ["not bfloat16", pytest.param("bfloat16", marks=pytest.mark.slow)], ids=["two", "bfloat16"]
)
def test_no_kernel_has_a_race(types: str) -> None:
    """The two half types have their code in common."""
    check(run(RACES, f"every_type and {types}"))


@pytest.mark.slow
def test_no_kernel_has_a_race_past_a_boundary() -> None:
    """Larger blocks, stages, tiles and forms than those of the small cases: minutes, a thread of a GPU is one of this machine."""
    check(run(RACES, "past_a_boundary or (over_a_boundary and 65)"))


@pytest.mark.slow
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="fused multiply-add is asked for by the name it has on x86-64"
)
def test_kernels_hold_with_products_and_sums_in_one_rounding() -> None:
    """GPUs run them so, and the other tests do not: two roundings there, one here."""
    check(run(CONTRACTED, "test"))


@pytest.mark.slow
def test_no_plugin_reads_or_writes_beside_its_memory() -> None:
    """The plugin classes too: every field, shape, copy and run of test_interface_*.py."""
    libraries = " ".join(_runtime(name) for name in RUNTIMES[MEMORY])
    with pytest.MonkeyPatch.context() as patch:  # built here, where no runtime slows the compiler down
        patch.setenv(built.EXTRA, " ".join(MEMORY))
        built.host_library(), built.driver()
    settings = {built.EXTRA: " ".join(MEMORY), "LD_PRELOAD": libraries}
    check(_pytest(INTERFACE, "test", settings))


@pytest.mark.slow
def test_two_contexts_on_two_threads_have_no_race() -> None:
    libraries = " ".join(_runtime(name) for name in RUNTIMES[RACES])
    with pytest.MonkeyPatch.context() as patch:  # built here, where no runtime slows the compiler down
        patch.setenv(built.EXTRA, " ".join(RACES))
        built.host_library(), built.driver()
    check(_pytest(INTERFACE, "two_threads", {built.EXTRA: " ".join(RACES), "LD_PRELOAD": libraries}))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [MEMORY, RACES], ids=["memory", "races"])
def test_the_kernels_of_quick_plugins_are_clean(flags: tuple[str, ...]) -> None:
    """Their own sources, in one launch each; `in_one_launch` and `merging` are the tests that run them."""
    names = "in_one_launch or merging"
    kernels.built(flags)  # here, where no runtime slows the compiler down
    preload = " ".join(map(_runtime, RUNTIMES[flags]))
    check(_pytest(QUICK, names, {kernels.EXTRA_FLAGS: " ".join(flags), "LD_PRELOAD": preload}))


@pytest.mark.slow
def test_every_kernel_test_is_clean() -> None:
    check(run(MEMORY, "test"))


BREAKS = {
    "a barrier less": (
        RACES,
        "TokenCombine and every_type",
        "combine.cuh",
        "        __syncthreads();\n        for (int part",
        "        for (int part",
        "ThreadSanitizer: data race",
    ),
    "a race in the radix search": (
        RACES,
        "TokenGroupSelect and every_type",
        "select.cuh",
        "atomicAdd(&histogram[key >> shift & (kBins - 1)], 1u)",
        "histogram[key >> shift & (kBins - 1)] += 1u",
        "ThreadSanitizer: data race",
    ),
    "keys of a warp read before all have come": (
        RACES,
        "TokenSelect and every_type",
        "sort.cuh",
        "                __syncwarp();\n",
        "                ;\n",
        "ThreadSanitizer: data race",
    ),
    "keys of another warp read before all have come": (
        RACES,
        "selection_over_a_boundary and 65",
        "sort.cuh",
        "const int next = apart > 1 ? apart / 2 : run;",
        "const int next = 1;",
        "ThreadSanitizer: data race",
    ),
    "one place for the bests of two turns": (
        RACES,
        "choices_over_a_boundary and 65",
        "greedy_rows.cuh",
        "slots[turn % 2]",
        "slots[0]",
        "ThreadSanitizer: data race",
    ),
    "a turn that begins while the last one's factors are read": (
        RACES,
        "determinants_over_a_boundary and 65",
        "token_determinant_select.cuh",
        "        __syncthreads();\n        const float a =",
        "        const float a =",
        "ThreadSanitizer: data race",
    ),
    "one row too many": (
        MEMORY,
        "TokenRestore and every_type",
        "token_gather.cuh",
        "if (row >= count) {",
        "if (row > count) {",
        "AddressSanitizer: heap-buffer-overflow",
    ),
    "16 bytes at once from rows that do not start there": (
        MEMORY,
        "covers_every_channel",
        "common.cuh",
        "return width * sizeof(T) % kAlignment == 0 &&",
        "return width * sizeof(T) % 4 == 0 &&",
        "misaligned address",
    ),
    "a histogram that nobody cleared": (
        PLAIN,
        "TokenGroupSelect and every_type",
        "select.cuh",
        "            histogram[bin] = 0;",
        "            (void)bin;",
        "Arrays are not equal",
    ),
    "a block that leans on another": (
        PLAIN,
        "another_order and restore",
        "token_gather.cuh",
        "    Vector* target = out + row * length;",
        "    Vector* target = out + row * length;\n    source = blockIdx.x > 0 ? out : source;",
        "AssertionError",
    ),
    "bests of a cluster read before all have come": (
        PLAIN,
        "cluster_past_a_boundary",
        "merge_image.cuh",
        "        cluster_barrier();\n        float* values",
        "        __syncthreads();\n        float* values",
        "AssertionError",
    ),
    "a block that returns before others have read its bests": (
        MEMORY,
        "cluster_past_a_boundary",
        "merge_image.cuh",
        "        cluster_leave();\n    }\n}",
        "    }\n}",
        "ERROR: AddressSanitizer",
    ),
    "16 bytes at once from a part of a larger tensor": (
        MEMORY,
        "any_element and TokenMatch",
        "common.cuh",
        " && (... && starts_on(starts, kAlignment))",
        " && (... && (starts != nullptr))",
        "misaligned address",
    ),
}
"""Breaks of the real kernels, one each: under what, in which tests, where, what is replaced by what, what must be reported."""


@pytest.mark.slow
@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_kernel_is_caught(what: str, tmp_path: Path) -> None:
    flags, tests, name, right, wrong, told = BREAKS[what]
    for path in (HERE / "kernels").iterdir():
        text = path.read_text()
        if path.name == name:
            assert text.count(right) == 1
            text = text.replace(right, wrong)
        (tmp_path / path.name).write_text(text)
    done = run(flags, tests, f"-I{tmp_path}")
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
