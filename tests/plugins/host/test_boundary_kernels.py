"""Kernels just over each boundary inside them, where another warp, block, stage or form takes part: against the references.

Small enough to run under ThreadSanitizer, which does; see test_sanitizers.py.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.cases import alternate
from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import needs_compiler, random, run, wide
from tokenrt.plugins.host import kernels
from tokenrt.plugins.toolchain import compiler

pytestmark = needs_compiler


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("tokens", [64, 65, 129, 257, 260, 530])
def test_selection_over_a_boundary(tokens: int, order: int) -> None:
    """64 keys are sorted by a warp; 256 unprotected tokens by the small block, more by the large one."""
    score = np.round(random((2, tokens)), 1)
    score[0, ::5], score[1, 1::4] = np.nan, np.inf
    for protect, keep in ((1, 2), (3, tokens // 2), (0, tokens)):
        attributes = {"keep": keep, "protect": protect, "order": order}
        (found,) = run("TokenSelect", [score], attributes)
        np.testing.assert_array_equal(found, expect("TokenSelect", wide([score]), attributes)[0])


def test_selection_of_the_most_that_are_sorted() -> None:
    score = np.round(random((1, 4097)), 2)
    for tokens, order in itertools.product((4096, 4097), (0, 1)):
        attributes = {"keep": 4000, "protect": 0, "order": order}
        (found,) = run("TokenSelect", [score[:, :tokens]], attributes)
        np.testing.assert_array_equal(found, expect("TokenSelect", [score[:, :tokens]], attributes)[0])


def tied(tokens: int, width: int, images: int = 2) -> np.ndarray:
    """Rows of few different directions and lengths that are powers of two, so that cosines are exact and tie often."""
    rng = np.random.default_rng(tokens)
    directions = np.eye(width, dtype=np.float32)[rng.integers(0, 3, (images, tokens))]
    return directions * 2.0 ** rng.integers(-3, 4, (images, tokens, 1)).astype(np.float32)


@pytest.mark.parametrize(("tokens", "width", "removed"), [(65, 4, 32), (131, 20, 7), (1027, 8, 300)])
def test_matching_over_a_boundary(tokens: int, width: int, removed: int) -> None:
    """Tied rows over several tiles of sources, stretches of destinations, warps of the sort; 513 sources take large tiles."""
    metric = tied(tokens, width, 1)
    for kind, order in itertools.product(("float32", "float16"), (0, 1)):
        attributes = alternate(tokens, 1, removed, order)
        given = metric.astype(kind)
        for found, wanted in zip(
            run("TokenMatch", [given], attributes),
            expect("TokenMatch", wide([given]), attributes),
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)


def test_matching_of_more_sources_than_are_sorted() -> None:
    metric = tied(8200, 4, 1)
    attributes = alternate(8200, 2, 700, 0)
    for found, wanted in zip(
        run("TokenMatch", [metric], attributes), expect("TokenMatch", [metric], attributes), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


CHOICE: dict[str, Any] = {"protect": 1, "power": 1.0, "mix": 0.0}


def chosen(name: str, metric: Any, importance: Any, keep: int, **options: Any) -> Any:
    return run(name, [metric, importance], CHOICE | {"keep": keep} | options)[0]


def check_choices(tokens: int, width: int, keep: int, images: int = 1) -> None:
    """Tied rows: cosines are 0 and 1 exactly, so that every choice is the reference's."""
    metric, importance = tied(tokens, width, images), np.ones((images, tokens), np.float32)
    importance[:, ::3] = 0.5
    for order, options in itertools.product(
        (0, 1), ({}, {"objective": 0, "seed": 2}, {"objective": 1, "seed": 1})
    ):
        name = "TokenGreedySelect" if options else "TokenCoverSelect"
        found = chosen(name, metric, importance, keep, order=order, **options)
        attributes = CHOICE | {"keep": keep, "order": order} | options
        np.testing.assert_array_equal(found, expect(name, wide([metric, importance]), attributes)[0])


@pytest.mark.parametrize(("tokens", "keep"), [(65, 20), (514, 9), (1030, 5)])
def test_choices_over_a_boundary(tokens: int, keep: int) -> None:
    """513 tokens are two of a thread; from 1,025 on a thread holds eight and tiles of cosines are larger."""
    check_choices(tokens, 4, keep, 2 if tokens < 500 else 1)


@pytest.mark.parametrize(("tokens", "keep"), [(65, 20), (514, 9), (1030, 5)])
def test_determinants_over_a_boundary(tokens: int, keep: int) -> None:
    """The same; past the three directions that there are nothing is left."""
    images = 2 if tokens < 500 else 1
    given = [tied(tokens, 4, images), np.ones((images, tokens), np.float32)]
    given[1][:, ::3] = 0.5
    for order in (0, 1):
        attributes = {"keep": keep, "protect": 1, "order": order, "mix": 0.5, "epsilon": 0.0}
        (found,) = run("TokenDeterminantSelect", given, attributes)
        np.testing.assert_array_equal(found, expect("TokenDeterminantSelect", wide(given), attributes)[0])


@pytest.mark.slow
def test_choices_among_more_tokens_than_have_cosines_in_memory() -> None:
    check_choices(4099, 4, 3)


def check_peaks(tokens: int, neighbours: int, images: int = 1) -> None:
    """Whole numbers, so that distances are exact and tie often."""
    metric = np.random.default_rng(tokens).integers(-2, 3, (images, tokens, 4)).astype(np.float32)
    attributes = {"keep": tokens // 3, "neighbours": neighbours}
    found = run("TokenPeaks", [metric], attributes)
    for actual, wanted in zip(found, expect("TokenPeaks", wide([metric]), attributes), strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize(("tokens", "neighbours"), [(65, 8), (65, 9), (130, 64), (1029, 3)])
def test_peaks_over_a_boundary(tokens: int, neighbours: int) -> None:
    """Nine neighbours take the longer lists; from 1,024 tokens on tiles of distances are larger."""
    check_peaks(tokens, neighbours)


@pytest.mark.parametrize("name", ["TokenMeans", "TokenMedoids"])
@pytest.mark.parametrize(("tokens", "keep"), [(65, 33), (130, 130), (1100, 1025)])
def test_joining_over_a_boundary(name: str, tokens: int, keep: int) -> None:
    """Equally near centres in several stretches: the first one takes the token. 1,025 centres are 11 stretches."""
    rng = np.random.default_rng(tokens)
    metric = rng.integers(-1, 2, (1, tokens, 4)).astype(np.float32)
    start = rng.permutation(tokens)[None, :keep]
    given = [metric, np.ones((1, tokens), np.float32), start]
    attributes = {"rounds": 1} if name == "TokenMeans" else {"rounds": 1, "power": 1}
    center, assign = run(name, given, attributes)
    right, joined = expect(name, wide(given), attributes)
    np.testing.assert_array_equal(assign, joined)
    np.testing.assert_allclose(center, right, atol=1e-6)


@pytest.mark.slow
def test_images_in_turns_are_chosen_from_as_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (compiler.HERE / "kernels").iterdir():
        text = path.read_text()
        if path.name == "gram.cuh":
            held = "return static_cast<std::size_t>(batch) < most ? batch : static_cast<int>(most);"
            assert text.count(held) == 1
            text = text.replace(held, "return batch < 2 || most < 2 ? 1 : 2;")
        (tmp_path / path.name).write_text(text)
    monkeypatch.setenv(kernels.EXTRA_FLAGS, f"-I{tmp_path}")
    check_choices(70, 8, 20, 5)
    check_peaks(70, 5, 5)


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize(("tokens", "rows"), [(65, 2), (65, 65), (260, 4), (260, 260), (1030, 2)])
def test_scores_over_a_boundary(tokens: int, rows: int, kind: str) -> None:
    """Several stretches of keys, of columns and of rows; 1,025 tokens have long stretches. The batch changes no bit."""
    queries, keys = (random((2, 2, tokens, 8), kind, seed) for seed in (0, 1))
    attributes = {"scale": 0.5, "first_row": 0, "end_row": rows}
    given = [queries, keys, random((2, 1, 1, tokens))]
    (found,) = run("TokenScore", given, attributes)
    np.testing.assert_allclose(found, expect("TokenScore", wide(given), attributes)[0], rtol=4e-6)
    (alone,) = run("TokenScore", [item[1:] for item in given], attributes)
    np.testing.assert_array_equal(found[1:], alone)
