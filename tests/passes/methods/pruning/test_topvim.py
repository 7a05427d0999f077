"""ToP-ViM: selection in scan order, with the class token in front or in the middle, written once more with loops."""

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


def sums(output: Any, clipped: bool) -> list[float]:
    """Channel sums of one image's output [H,N,D]."""
    return [
        sum(max(float(v), 0.0) if clipped else float(v) for head in output for v in head[i])
        for i in range(output.shape[1])
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("topvim")])
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, variant: str, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep = tokens - removed
    found = apply_method("topvim", given, keep=keep, protect=protect, backend=backend, variant=variant)
    for image in range(batch):
        score = sums(given["values"][image], variant == "paper")
        scored.agrees(found, given, image, scored.best(score, keep, protect))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize(
    ("tokens", "keep", "batch"), [(2, 1, 1), (3, 2, 3), (31, 1, 1), (32, 25, 3), (33, 26, 1), (197, 157, 1)]
)
def test_the_class_token_comes_out_in_the_middle(
    tokens: int, keep: int, batch: int, variant: str, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    found = apply_method(
        "topvim", given, keep=keep, protect=0, backend=backend, variant=variant, class_place="middle"
    )
    middle = tokens // 2
    for image in range(batch):
        score = sums(given["values"][image], variant == "paper")
        if variant == "paper" or image == 0:
            score[middle] = -math.inf
        patches = scored.best(score, keep - 1, 0)
        half = (keep - 1) // 2
        kept = [*patches[:half], middle, *patches[half:]]
        assert found["index"][image].tolist() == kept
        np.testing.assert_allclose(found["tokens"][image], given["x"][image, kept], rtol=1e-6)
        where = [max((k for k, j in enumerate(kept) if j == i), default=-1) for i in range(tokens)]
        assert found["assign"][image].tolist() == where


def test_the_release_may_keep_the_class_token_twice() -> None:
    given = scored.arrays(9, 2)
    given["values"][:, :, 4] = 100
    for backend in BACKENDS:
        options: dict[str, Any] = {"keep": 5, "protect": 0, "class_place": "middle", "backend": backend}
        paper = apply_method("topvim", given, variant="paper", **options)["index"]
        release = apply_method("topvim", given, variant="reference", **options)["index"]
        assert (paper == 4).sum(axis=1).tolist() == [1, 1]
        assert (release == 4).sum(axis=1).tolist() == [1, 2]


def test_a_class_token_is_in_front_or_in_the_middle() -> None:
    with pytest.raises(MethodError, match=r"class_place=middle.*protect=0"):
        apply_method("topvim", scored.arrays(9, 1), keep=5, class_place="middle")


def test_padding_leaves_first() -> None:
    given = scored.arrays(12, 2)
    given["size"][:, 7:] = 0
    for backend in BACKENDS:
        options: dict[str, Any] = {"keep": 7, "protect": 0, "class_place": "middle", "backend": backend}
        assert apply_method("topvim", given, **options)["index"].tolist() == [[0, 1, 2, 6, 3, 4, 5]] * 2


def test_ties_keep_the_first() -> None:
    scored.ties("topvim", scored.arrays(9, 2), 4)


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str) -> None:
    scored.stays_in_range("topvim", ODD[odd])
    for where in (5, slice(None)):
        given = scored.arrays(12, 2)
        given["values"][:, :, where] = ODD[odd]
        options: dict[str, Any] = {"keep": 7, "protect": 0, "class_place": "middle"}
        found = [apply_method("topvim", given, backend=backend, **options)["index"] for backend in BACKENDS]
        np.testing.assert_array_equal(*found)
        assert ((found[0] == 6).sum(axis=1) == 1).all()
