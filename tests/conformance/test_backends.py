"""Every method over every backend: sizes at the boundaries, one and most tokens removed, ties, NaN, infinities.

Numbers follow one rule: at most twice the error of a plain float32 implementation against float64. Choices
follow another: they may differ from the float64 reference only where the scores tie after rounding to
float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import plain
from tests.helpers.tolerance import within_twice
from tests.plugins.helpers.running import needs_compiler
from tokenrt import apply_method
from tokenrt.passes import methods

C, D, H = 12, 8, 2
TIE = 2.0**-20
"""Scores this close, relative to the largest, may be rounded into a tie by float32 arithmetic."""

SMALL, LARGE = (2, 3, 31, 32, 33), (196, 197, 257, 577, 1025)
SCORED = ("topk", "evit")
BACKENDS = ["onnxruntime", pytest.param("plugin-host", marks=needs_compiler)]
NAMES = ("evit", "random", "slice", "tome", "topk")


def settings() -> Iterator[Any]:
    """Method, tokens, kept, protected, batch: every legal combination of the small sizes, the large ones sparsely."""
    for name, tokens, protect in itertools.product(NAMES, SMALL + LARGE, (0, 1, 5)):
        method = methods.get(name)()
        if protect >= tokens:
            continue
        fewest, most = method.fewest(tokens, protect), tokens - 1
        for keep in sorted({fewest, most}):
            if not fewest <= keep < tokens or (tokens in LARGE and (keep == most) != (protect == 1)):
                continue
            yield pytest.param(
                name, tokens, keep, protect, 1 if tokens % 2 else 3, id=f"{name}-{tokens}-{keep}-{protect}"
            )


def arrays(tokens: int, batch: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, tokens])
    return {
        "x": rng.standard_normal((batch, tokens, C)).astype(np.float32),
        "keys": rng.standard_normal((batch, H, tokens, D)).astype(np.float32),
        "queries": rng.standard_normal((batch, H, tokens, D)).astype(np.float32),
        "size": rng.integers(1, 6, (batch, tokens, 1)).astype(np.float32),
    }


def wide(given: dict[str, Any]) -> dict[str, Any]:
    return {name: array.astype(np.float64) for name, array in given.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sized", [False, True], ids=["plain", "sized"])
@pytest.mark.parametrize(("name", "tokens", "keep", "protect", "batch"), [*settings()])
def test_backends_agree(
    name: str, tokens: int, keep: int, protect: int, batch: int, sized: bool, backend: str
) -> None:
    given = arrays(tokens, batch, 0)
    if not sized:
        del given["size"]
    options: dict[str, Any] = {"keep": keep, "protect": protect, "restore": True}
    exact = apply_method(name, wide(given), backend="numpy", **options)
    found = apply_method(name, given, backend=backend, **options)
    assert found.keys() == exact.keys()
    assert all(found[key].shape == exact[key].shape for key in exact)
    if name == "tome":
        check_merging(given, found, exact, keep, protect)
    else:
        check_pruning(name, given, found, exact, protect)


def check_merging(given: dict[str, Any], found: Any, exact: Any, keep: int, protect: int) -> None:
    """The map must be the reference's, ties excepted; tokens and sizes must follow from the map that was found."""
    tokens = given["x"].shape[1]
    same = (found["assign"] == exact["assign"]).all(axis=1)
    if not same.all():
        sources = np.arange(protect + protect % 2, tokens, 2)
        destinations = np.arange(protect + 1 - protect % 2, tokens, 2)
        values = plain.cosine(given["keys"].astype(np.float64).mean(1), sources, destinations)
        assert all(has_ties(values[image]) for image in np.flatnonzero(~same))
    size = given.get("size", np.ones((*given["x"].shape[:2], 1), np.float32))
    wanted, wanted_size = plain.merged(given["x"].astype(np.float64), size, found["assign"], keep)
    within_twice(found["tokens"], wanted, plain.merged(given["x"], size, found["assign"], keep)[0])
    np.testing.assert_array_equal(found["size"], wanted_size)
    np.testing.assert_array_equal(
        found["restored"], np.take_along_axis(found["tokens"], found["assign"][:, :, None], axis=1)
    )


def check_pruning(name: str, given: dict[str, Any], found: Any, exact: Any, protect: int) -> None:
    """The tokens kept must be the reference's, ties excepted, and pass through bit for bit."""
    x, index = given["x"], found["index"]
    kept = index.shape[1]
    assert (index[:, :protect] == np.arange(protect)).all()
    assert (np.diff(index, axis=1) > 0).all()
    np.testing.assert_array_equal(found["tokens"][:, :kept], np.take_along_axis(x, index[:, :, None], axis=1))
    np.testing.assert_array_equal(found["restored"], x)
    same = (index == exact["index"]).all(axis=1)
    if name in SCORED and not same.all():
        rows = 1 if protect else x.shape[1]
        score = plain.attention(given["queries"].astype(np.float64), given["keys"].astype(np.float64), rows)
        assert all(has_ties(score[image]) for image in np.flatnonzero(~same))
    elif name not in SCORED:
        assert same.all()
    if kept < found["tokens"].shape[1] and same.all():
        score = plain.attention(given["queries"], given["keys"], 1 if protect else x.shape[1])
        if "size" in given:
            return
        np.put_along_axis(score, index, 0, axis=1)
        # Four roundings stand behind each other here: the exponential, its sum, the division, the product with the token.
        fused = np.einsum("bn,bnc->bc", score, x)
        within_twice(found["tokens"][:, -1], exact["tokens"][:, -1], fused, unit=4 * 2.0**-24)


def has_ties(values: Any) -> bool:
    """Whether any two of `values` are closer than float32 arithmetic can tell."""
    ordered = np.sort(np.ravel(values))
    return bool((np.diff(ordered) <= TIE * np.max(np.abs(ordered))).any())


def exactly(count: int, seed: int = 0) -> Any:
    """Unit vectors of few directions: every cosine is exactly 0 or 1, so ties are exact on every backend."""
    return np.eye(D, dtype=np.float32)[np.random.default_rng(seed).integers(0, 3, (2, count))][:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1, 2])
@pytest.mark.parametrize("tokens", [8, 33, 197])
def test_exact_ties_are_broken_alike(tokens: int, protect: int, backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, tokens, C)).astype(np.float32)
    for keys in (
        exactly(tokens),
        np.ones((2, 1, tokens, D), np.float32),
        np.zeros((2, 1, tokens, D), np.float32),
    ):
        for keep in {tokens - (tokens - protect) // 2, tokens - 3, tokens - 1}:
            both = [
                apply_method("tome", {"x": x, "keys": keys}, keep=keep, protect=protect, backend=one)[
                    "assign"
                ]
                for one in ("numpy", backend)
            ]
            np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("order", ["position", "score"])
@pytest.mark.parametrize("pattern", ["equal", "ties", "nan", "inf", "all nan"])
def test_odd_scores_are_ranked_alike(name: str, order: str, pattern: str, backend: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 33, C)).astype(np.float32)
    score = {
        "equal": np.ones((2, 33)),
        "ties": rng.integers(0, 4, (2, 33)),
        "nan": np.where(rng.random((2, 33)) < 0.5, np.nan, rng.integers(0, 4, (2, 33))),
        "inf": rng.choice([np.inf, -np.inf, 1.0], (2, 33)),
        "all nan": np.full((2, 33), np.nan),
    }[pattern].astype(np.float32)
    for protect, keep in itertools.product((1, 3), (5, 20, 32)):
        both = [
            apply_method(
                name,
                {"x": x, "cls_attn": score},
                keep=keep,
                protect=protect,
                backend=one,
                order=order,
            )
            for one in ("numpy", backend)
        ]
        np.testing.assert_array_equal(both[0]["index"], both[1]["index"])
        kept = both[0]["index"].shape[1]
        np.testing.assert_array_equal(both[0]["tokens"][:, :kept], both[1]["tokens"][:, :kept])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "where", [0, 4, 7, slice(None)], ids=["protected", "source", "destination", "everything"]
)
def test_odd_keys_never_lead_out_of_range(bad: float, where: Any, backend: str) -> None:
    given = arrays(32, 3, 0)
    given["keys"][:, :, where, 1] = bad
    both = [
        apply_method("tome", given, keep=keep, backend=one)["assign"]
        for keep in (17, 31)
        for one in ("numpy", backend)
    ]
    for one, other in (both[:2], both[2:]):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["numpy", *BACKENDS])
def test_sizes_of_merged_tokens_add_up(name: str, backend: str) -> None:
    given = arrays(33, 3, 0)
    size = apply_method(name, given, keep=20, backend=backend)["size"]
    whole = given["size"].sum(axis=1)
    if methods.get(name).merges or name == "evit":
        np.testing.assert_array_equal(size.sum(axis=1), whole)
    else:
        assert (size.sum(axis=1) < whole).all()


@pytest.mark.parametrize("backend", ["numpy", *BACKENDS])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_tokens_make_the_same_choices(name: str, backend: str) -> None:
    given = arrays(33, 3, 0)
    half = given | {"x": given["x"].astype(np.float16)}
    key = "assign" if methods.get(name).merges else "index"
    single, double = (apply_method(name, arrays_, keep=20, backend=backend) for arrays_ in (given, half))
    np.testing.assert_array_equal(single[key], double[key])
    assert double["tokens"].dtype == np.float16
    np.testing.assert_allclose(double["tokens"], single["tokens"], atol=4e-3)
