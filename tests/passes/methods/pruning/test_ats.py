"""ATS: scores, draws and every way to fill the slots, written once more with loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD
from tokenrt import apply_method
from tokenrt.errors import MethodError

CLEAR = 3
"""A seed of which no point lies between two sums by less than 3e-7, where float32 could draw either token."""

VARIANTS = ("paper", "reference", "tokenreduction")


def length(row: Any) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in row))


def significance(given: Any, image: int, protect: int, variant: str) -> list[float]:
    """Scores of the unprotected tokens of one image, which add up to 1."""
    rows, values = given["attn"][image], given["values"][image]
    heads, tokens = rows.shape[:2]
    asking = range(1) if protect else range(tokens)
    scores = []
    for j in range(protect, tokens):
        by_head = [sum(float(rows[h, q, j]) for q in asking) / len(asking) for h in range(heads)]
        if variant == "reference":
            scores.append(sum(by_head) / heads * length([v for h in range(heads) for v in values[h, j]]))
        else:
            scores.append(sum(by_head[h] * length(values[h, j]) for h in range(heads)))
    if variant != "tokenreduction" and "size" in given:
        scores = [s if given["size"][image, protect + j, 0] > 0 else 0.0 for j, s in enumerate(scores)]
    total = sum(scores) + (1e-6 if variant == "tokenreduction" else 0)
    return [score / total for score in scores]


def nearest(sums: list[float], point: float) -> int:
    return min(range(len(sums)), key=lambda j: (abs(sums[j] - point), j))


def drawn(score: list[float], slots: int, variant: str, samples: int = 0, padding: Any = ()) -> list[int]:
    """Tokens drawn, in the order of the points."""
    walk = list(range(len(score)))
    if variant == "reference":
        walk.sort(key=lambda j: (score[j], j))
    sums, total = [], 0.0
    for j in walk:
        total += score[j]
        sums.append(total)
    if variant == "reference":
        count = samples or slots
        even = [(value - sums[0]) / max(sums[-1] - sums[0], 1e-30) for value in sums]
        start = min([value for value in even if value > 0], default=1.0)
        points = [start + (1 - start) * k / max(count - 1, 1) for k in range(count)]
        skipped = max(len(score) - count, 0)
        return [walk[skipped + nearest(even[skipped:], point)] for point in points]
    for j in padding:
        sums[j] += 10 if variant == "paper" else 0.1
    spaced = samples or (slots if variant == "paper" else slots + 1)
    count = spaced
    if variant == "tokenreduction":
        first, last = 1 / (2 * spaced), (2 * spaced - 1) / (2 * spaced)
        count = max(math.ceil((last - first) / (1 / spaced)), 1) if samples else slots
    return [nearest(sums, (2 * k - 1) / (2 * spaced)) for k in range(1, count + 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("ats")])
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, variant: str, backend: str
) -> None:
    given = scored.arrays(tokens, batch, CLEAR)
    keep = tokens - removed
    found = {
        form: apply_method(
            "ats", given, keep=keep, protect=protect, backend=backend, variant=variant, form=form
        )
        for form in ("filled", "masked", "repeated", "top")
    }
    for image in range(batch):
        score = significance(given, image, protect, variant)
        draws = drawn(score, keep - protect, variant)
        filled = [(2 if j in draws else 0) + value for j, value in enumerate(score)]
        lead = [0.0] * protect
        scored.agrees(found["filled"], given, image, scored.best(lead + filled, keep, protect))
        scored.agrees(found["top"], given, image, scored.best(lead + score, keep, protect))

        repeated = [*range(protect), *(protect + j for j in draws)]
        assert found["repeated"]["index"][image].tolist() == repeated
        where = [max((k for k, j in enumerate(repeated) if j == i), default=-1) for i in range(tokens)]
        assert found["repeated"]["assign"][image].tolist() == where

        unique = [*range(protect), *(protect + j for j in dict.fromkeys(draws))]
        masked = found["masked"]
        used = masked["size"][image, :, 0] > 0
        assert used.tolist() == [True] * len(unique) + [False] * (keep - len(unique))
        assert masked["index"][image, : len(unique)].tolist() == unique
        np.testing.assert_allclose(masked["tokens"][image, used], given["x"][image, unique], rtol=1e-6)
        assert (masked["tokens"][image, ~used] == 0).all()
        where = [unique.index(i) if i in unique else -1 for i in range(tokens)]
        assert masked["assign"][image].tolist() == where


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("samples", [1, 5, 12, 40])
def test_samples_set_the_points(samples: int, variant: str, backend: str) -> None:
    given = scored.arrays(33, 3)
    found = apply_method(
        "ats", given, keep=13, backend=backend, variant=variant, form="masked", samples=samples
    )
    for image in range(3):
        draws = drawn(significance(given, image, 1, variant), 12, variant, samples)
        unique = [0, *(1 + j for j in dict.fromkeys(draws))][:13]
        used = int((found["size"][image] > 0).sum())
        assert found["index"][image, :used].tolist() == unique


@pytest.mark.parametrize(("samples", "points"), [(8, 7), (30, 29), (60, 60)])
def test_rounding_lets_the_last_point_of_a_release_in(samples: int, points: int) -> None:
    """Of equally significant tokens every point draws another one."""
    given = scored.arrays(62, 1, sized=False)
    given["attn"] = np.full_like(given["attn"], 1 / 62)
    given["values"] = np.ones_like(given["values"])
    options: dict[str, Any] = {"variant": "tokenreduction", "form": "masked", "samples": samples}
    found = apply_method("ats", given, keep=61, **options)
    assert int((found["size"] > 0).sum()) == 1 + points


def test_repeating_a_token_is_like_its_size_in_attention() -> None:
    """Softmax over m copies of a key gives what log m on one key does: the repeated form needs no sizes."""
    given = scored.arrays(33, 1, sized=False)
    copies = apply_method("ats", given, keep=25, form="repeated")["tokens"][0]
    rows, counts = np.unique(copies, axis=0, return_counts=True)
    assert len(rows) < len(copies)
    query = np.random.default_rng(3).standard_normal(copies.shape[1])
    many, once = np.exp(copies @ query), np.exp(rows @ query + np.log(counts))
    np.testing.assert_allclose(many @ copies / many.sum(), once @ rows / once.sum())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_is_drawn_by_one_release_only(variant: str, backend: str) -> None:
    given = scored.arrays(31, 3)
    given["size"][:, 20:] = 0
    options: dict[str, Any] = {"keep": 12, "backend": backend, "variant": variant}
    found = apply_method("ats", given, form="masked", **options)
    for image in range(3):
        draws = drawn(significance(given, image, 1, variant), 11, variant, 0, range(19, 30))
        places = draws if variant == "reference" else sorted(draws)
        unique = [0, *(1 + j for j in dict.fromkeys(places))]
        went = [i for i in range(31) if found["assign"][image, i] >= 0]
        assert went == sorted(unique)
        if variant != "tokenreduction":
            assert max(unique) < 20
    if variant != "tokenreduction":
        assert (apply_method("ats", given, form="filled", **options)["index"] < 20).all()


def test_repeated_takes_no_other_count() -> None:
    with pytest.raises(MethodError, match=r"form=repeated.*11 slots.*samples=5"):
        apply_method("ats", scored.arrays(31, 1), keep=12, form="repeated", samples=5)
    with pytest.raises(MethodError, match=r"samples=-1.*0 or more"):
        apply_method("ats", scored.arrays(31, 1), keep=12, samples=-1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_alike(variant: str) -> None:
    """Equal scores: the highest-scoring tokens are the first; draws spread evenly over the row."""
    scored.ties("ats", scored.arrays(9, 2), 4, variant=variant, form="top")
    alike = scored.arrays(9, 2)
    alike["attn"][:] = 1 / 9
    alike["values"][:] = 1
    if variant != "reference":
        for backend in BACKENDS:
            found = apply_method("ats", alike, keep=5, variant=variant, form="masked", backend=backend)
            # Four points are 1/4 apart, or, where the release leaves out the last of five, 1/5.
            even = [0, 1, 3, 5, 7] if variant == "paper" else [0, 1, 2, 4, 6]
            assert found["index"].tolist() == [even] * 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["filled", "masked", "top"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str, form: str, variant: str) -> None:
    # Of the sums of eleven equal scores, two lie equally near to a point where the points' spacing is an odd fraction.
    keep = 8 if variant == "tokenreduction" else 7
    scored.stays_in_range("ats", ODD[odd], keep=keep, form=form, variant=variant)
