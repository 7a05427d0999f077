"""Tiles on tensor cores, and the nearest destination that is filtered by them: to the bit what float32 alone finds.

The tensor cores are those of the host layer, which rounds as badly as any that was measured, or in another way that PTX allows.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.plugins.helpers.running import KINDS, needs_compiler, random, run
from tokenrt.plugins.host import kernels, symbols
from tokenrt.plugins.toolchain import compiler

pytestmark = needs_compiler

SOURCE = Path(__file__).with_name("filter_probe.cpp")
PART = np.dtype([("value", np.float32), ("nearest", np.int32)])
MOST_CANDIDATES = 12
OTHER = ("-DSIMT_OTHER_TENSOR_CORE",)


@functools.cache
def library(flags: tuple[str, ...]) -> ctypes.CDLL:
    path = compiler.linked((SOURCE, compiler.recorder()), (*kernels.FLAGS, *flags), "filter_probe.so")
    loaded = ctypes.CDLL(str(path))
    if not any("address" in flag for flag in flags):  # shared memory is then nobody's in every block
        found = symbols.shared(path)
        places, sizes = ((ctypes.c_ulonglong * len(found))(*each) for each in zip(*found, strict=True))
        loaded.host_shared(len(found), places, sizes)
    return loaded


def probe(name: str, flags: Sequence[str], *given: Any) -> None:
    usual = os.environ.get(kernels.EXTRA_FLAGS, "").split()
    passed = [ctypes.c_void_p(item.ctypes.data) if isinstance(item, np.ndarray) else item for item in given]
    assert getattr(library((*usual, *flags)), name)(*passed) == 0


@dataclass(frozen=True)
class Found:
    """Bests by stretch and source; settled: of each tile of sources in a stretch, whether the filter settled it."""

    filtered: Any
    exact: Any
    settled: Any
    tile: int

    def check(self) -> Found:
        """What the filter settled is float32's, value and place, bit by bit."""
        told = np.repeat(self.settled == 1, self.tile, axis=1)[:, : self.exact.shape[1]]
        np.testing.assert_array_equal(
            self.filtered.view(np.int64)[told], self.exact.view(np.int64)[told], strict=True
        )
        return self


def filtered(
    rows: Any, tile: int, stretch: int, sources: Any = None, flags: Sequence[str] = (), others: Any = None
) -> Found:
    rows = kernels.ready(rows)
    tokens, width = rows.shape
    sources = np.arange(0, tokens, 2) if sources is None else np.asarray(sources)
    others = np.setdiff1d(np.arange(tokens), sources) if others is None else np.asarray(others)
    sources, others = sources.astype(np.int32), others.astype(np.int32)
    stretches = -(-len(others) // stretch)
    first, second = (np.full((stretches, len(sources)), -2, PART) for _ in range(2))
    settled = np.full((stretches, -(-len(sources) // tile)), -1, np.int32)
    probe(
        "host_filter", flags, kernels.TYPES[rows.dtype.name], tile, rows, sources, others, first, second, settled,
        tokens, width, len(sources), len(others), stretch,
    )  # fmt: skip
    assert set(settled.ravel()) <= {0, 1}
    return Found(first, second, settled, tile)


def directions(tokens: int, width: int, count: int, step: float, seed: int = 0) -> Any:
    """Rows near `count` directions of positive elements, `step` apart from them, of many lengths."""
    rng = np.random.default_rng([seed, tokens, width, count])
    base = rng.uniform(0.5, 1.5, (count, width))[rng.integers(0, count, tokens)]
    return base * (1 + step * rng.standard_normal((tokens, width))) * rng.uniform(0.5, 2, (tokens, 1))


def growing(tokens: int, width: int) -> Any:
    """Rows that turn slowly, so that each destination is nearer to the last source than the one before."""
    angle = np.linspace(0, 1.5, tokens)[:, None] + np.linspace(0, 0.3, width)
    return np.cos(angle)


FAMILIES: Mapping[str, Any] = {
    "random": lambda n, d: random((n, d)),
    "alike": lambda n, d: random((n, d)) + 3,
    "near ties": lambda n, d: directions(n, d, 5, 1e-3),
    "copies": lambda n, d: directions(n, d, 9, 0),
    "growing": growing,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize("width", [8, 72, 136])
def test_products_of_whole_numbers_are_exact_over_a_boundary(width: int, tile: int, kind: str) -> None:
    """Slices of 128 bytes, the last in part; tiles in part; more than the stages of a tile."""
    rng = np.random.default_rng(width)
    for first, others in ((1, 1), (tile - 1, tile + 1), (17, 3 * tile + 9)):
        rows = rng.integers(-3, 4, (first + others, width)).astype(KINDS[kind])
        made = np.full((first, others), np.nan, np.float32)
        lefts, rights = np.full(first, np.nan, np.float32), np.full(others, np.nan, np.float32)
        given = kernels.ready(rows)
        probe(
            "host_products", (), kernels.TYPES[kind], tile, given, made, lefts, rights, first, others, width
        )
        wide = rows.astype(np.float64)
        np.testing.assert_array_equal(made, wide[:first] @ wide[first:].T)
        np.testing.assert_array_equal(lefts, (wide[:first] ** 2).sum(1))
        np.testing.assert_array_equal(rights, (wide[first:] ** 2).sum(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tile", [32, 64])
@pytest.mark.parametrize(("tokens", "width"), [(65, 24), (131, 136)])
def test_the_filter_is_float32_to_the_bit_over_a_boundary(
    tokens: int, width: int, tile: int, family: str, kind: str
) -> None:
    rows = FAMILIES[family](tokens, width).astype(KINDS[kind])
    for stretch, flags in itertools.product((tile, 3 * tile), ((), OTHER)):
        found = filtered(rows, tile, stretch, flags=flags).check()
        if family == "random":
            assert found.settled.all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1e-3, 1e-2])
def test_long_rows_that_nearly_tie_are_filtered(step: float, kind: str) -> None:
    for seed in range(3):
        filtered(directions(64, 1024, 4, step, seed).astype(KINDS[kind]), 32, 32).check()


@pytest.mark.parametrize("kind", KINDS)
def test_lists_in_any_order_are_filtered(kind: str) -> None:
    rows = directions(150, 40, 6, 1e-3).astype(KINDS[kind])
    order = np.random.default_rng(3).permutation(150)
    for count in (1, 33, 149):
        filtered(rows, 32, 64, order[:count], others=order[count:]).check()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rows_are_left_to_float32(kind: str) -> None:
    """Up to MOST_CANDIDATES that tie are settled, the first of them wins; one more, and the block says so."""
    for copies, settled in ((MOST_CANDIDATES, 1), (MOST_CANDIDATES + 1, 0)):
        rows = random((2 * copies + 20, 48), seed=copies).astype(KINDS[kind])
        rows[: 2 * copies] = rows[0]
        found = filtered(rows, 32, 32, range(copies), others=range(copies, 2 * copies + 20)).check()
        assert found.settled[0].tolist() == [settled]
        assert (found.exact["nearest"][0] == 0).all()
    assert not filtered(np.ones((100, 16), KINDS[kind]), 64, 64).settled.any()


def test_candidates_that_are_ruled_out_make_room() -> None:
    """Five destinations in each of 40 tiles are nearer than all before, and as near as each other."""
    rows = np.zeros((33 + 40 * 32, 8), np.float32)
    rows[:, 0] = 1
    others = rows[33:].reshape(40, 32, 8)
    others[..., 1] = 9
    others[:, 3:8, 1] = np.arange(4.2, 0.2, -0.1)[:, None]
    found = filtered(rows, 32, 40 * 32, range(33), others=range(33, len(rows))).check()
    assert found.settled.all()
    assert (found.exact["nearest"] == 39 * 32 + 3).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
def test_odd_rows_are_left_to_float32_and_odd_destinations_are_candidates(bad: float, kind: str) -> None:
    rows = random((96, 24)).astype(KINDS[kind])
    odd = rows.copy()
    odd[10] = 0 if bad == 0 else np.where(np.arange(24) == 5, bad, rows[10].astype(np.float32))
    found = filtered(odd, 32, 32, range(48), others=range(48, 96)).check()
    assert found.settled.tolist() == [[0, 1], [0, 1]]
    odd[10], odd[60:63] = rows[10], odd[10]
    found = filtered(odd, 32, 32, range(48), others=range(48, 96)).check()
    assert found.settled.all()
    odd[60 : 60 + MOST_CANDIDATES + 1] = odd[60]
    assert not filtered(odd, 32, 32, range(48), others=range(48, 96)).check().settled[0].any()


@pytest.mark.parametrize("factor", [1e-9, 1e-4, 1e4])
def test_lengths_of_any_range_are_compared(factor: float) -> None:
    """Rows below the range of the bound, in which elements are subnormal, are left to float32."""
    rows = random((80, 32)) * factor
    for kind in ("float16", "bfloat16", "float32"):
        found = filtered(rows.astype(KINDS[kind]), 32, 32).check()
        filtered(rows.astype(KINDS[kind]), 32, 32, flags=OTHER).check()
        assert found.settled.all() == (kind != "float16" or factor > 1e-3)


def error(width: int, length: float, kind: str) -> float:
    """The bound of filter.cuh for two rows of this length."""
    usual = 6 * (width + 32) * 2.0**-24
    return usual + {"float32": 2.0**-10, "float16": 2 * 2.0**-14 * width**0.5 / length}.get(kind, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("share", "settled"), [(0.5, 0), (0.9, 0), (1.3, 1), (4.0, 1)])
def test_what_is_just_within_the_bound_is_a_candidate(share: float, settled: int, kind: str) -> None:
    """One destination as the sources, others a share of twice the bound below it."""
    width, apart = 256, share * 2 * error(256, 2, kind)
    rows = np.zeros((40, width), np.float64)
    rows[:, :4] = 1
    rows[21:, 8] = 2 * ((1 - apart) ** -2 - 1) ** 0.5
    found = filtered(rows.astype(KINDS[kind]), 32, 32, range(20), others=range(20, 40)).check()
    assert found.settled.tolist() == [[settled]]
    assert (found.exact["nearest"] == 0).all()


def tails(width: int, kind: str) -> Any:
    """A destination whose small products float32 rounds up, each, and tensor cores cut off; and one that has none."""
    rows = np.zeros((40, width))
    rows[:, 0] = 1
    rows[:20, 1:], rows[39, 1:] = 1.5 * 2.0**-12, 2.0**-12
    return (1024 * rows).astype(KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_what_tensor_cores_cut_off_is_within_the_bound(kind: str) -> None:
    rows = tails(2048, kind)
    order = [20, 39]
    found = filtered(rows, 32, 32, range(20), others=order).check()
    assert found.settled.all()
    assert (found.exact["nearest"] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_that_is_a_hundredth_is_noticed(kind: str, tmp_path: Path) -> None:
    """A fault planted in a copy of the kernels: the tests above then fail."""
    for path in (compiler.HERE / "kernels").iterdir():
        text = path.read_text()
        if path.name == "filter.cuh":
            held = "    return 6.0f * static_cast<float>(width + 32) * kUnit + rounding;"
            assert text.count(held) == 1
            text = text.replace(held, held.replace("return 6.0f", "return 0.01f * (6.0f").replace(";", ");"))
        (tmp_path / "kernels").mkdir(exist_ok=True)
        (tmp_path / "kernels" / path.name).write_text(text)
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "limits.h").write_text((compiler.HERE / "common" / "limits.h").read_text())
    flags = (f"-I{tmp_path / 'kernels'}",)
    with pytest.raises(AssertionError, match="not equal"):
        filtered(tails(2048, kind), 32, 32, range(20), others=[20, 39], flags=flags).check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_match_is_the_same_with_tensor_cores_and_without(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole operator, of widths that are filtered and widths that are not, blocks in either order."""
    jobs = [
        (np.stack([FAMILIES[family](tokens, width) for family in FAMILIES]).astype(KINDS[kind]), removed)
        for tokens, width, removed in ((67, 64, 9), (67, 68, 30), (130, 160, 40), (34, 4104, 3))
    ]
    usual = os.environ.get(kernels.EXTRA_FLAGS, "")

    def results(flags: str) -> list[Any]:
        monkeypatch.setenv(kernels.EXTRA_FLAGS, f"{usual} {flags}".strip())
        return [
            run("TokenMatch", [metric], alternate(metric.shape[1], 1, removed, 0)) for metric, removed in jobs
        ]

    plain = results("-DTOKENRT_SCALAR")
    with kernels.backwards():
        turned = results("")
    for one in (results(""), results(OTHER[0]), turned):
        for found, wanted in zip(itertools.chain(*one), itertools.chain(*plain), strict=True):
            np.testing.assert_array_equal(found.view(np.uint8), wanted.view(np.uint8))
