"""DPC-KNN against loops: density, gap, centres, weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError

RNG = np.random.default_rng(5)
WEIGHTS = {
    "score_weight": RNG.standard_normal((1, loops.C)).astype(np.float32),
    "score_bias": RNG.standard_normal(1).astype(np.float32),
}


@pytest.mark.parametrize("order", ["position", "score"])
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(tokens: int, keep: int, protect: int, batch: int, order: str) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        points = given["x"][image, protect:] / np.sqrt(loops.C)
        groups = clusters.grouped(
            protect, *clusters.peaks(points, keep - protect, 5), sort=order == "position"
        )
        return clusters.merged(given, image, groups)

    loops.check("dpcknn", given, wanted, keep=keep, protect=protect, order=order)


@pytest.mark.parametrize("by_size", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("neighbours", [1, 3, 99])
def test_members_weigh_by_size_and_by_trained_score(trained: bool, by_size: bool, neighbours: int) -> None:
    given = loops.arrays(31, 2)

    def wanted(image: int) -> loops.Wanted:
        points = given["x"][image, 1:] / np.sqrt(loops.C)
        groups = clusters.grouped(1, *clusters.peaks(points, 9, neighbours))
        weight = given["size"][image, :, 0] if by_size else np.ones(31)
        if trained:
            score = given["x"][image] @ WEIGHTS["score_weight"][0].astype(float) + WEIGHTS["score_bias"]
            weight = weight * np.exp(score)
        return clusters.merged(given, image, groups, weight)

    options: dict[str, Any] = {"weights": WEIGHTS} if trained else {}
    loops.check(
        "dpcknn", given, wanted, keep=10, protect=1, neighbours=neighbours, by_size=by_size, **options
    )


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("backend", loops.BACKENDS)
def test_the_reference_divides_by_a_little_more_than_the_weights(backend: str, trained: bool) -> None:
    given, low = loops.arrays(31, 2), {**WEIGHTS, "score_bias": np.array([-12], np.float32)}
    options: dict[str, Any] = {"weights": low} if trained else {}
    if not trained:
        given["size"] = given["size"] * 1e-5
    exact, short = (
        apply_method(
            "dpcknn",
            given,
            keep=10,
            protect=1,
            backend=backend,
            by_size=not trained,
            variant=variant,
            **options,
        )
        for variant in ("paper", "reference")
    )
    score = given["x"].astype(float) @ low["score_weight"][0].astype(float) - 12
    weight = np.exp(score)[..., None] if trained else given["size"]
    total = (exact["assign"][:, None] == np.arange(10)[None, :, None]) @ weight
    share = np.where(np.arange(10)[None, :, None] < 1, 1, total / (total + 1e-6))
    assert share.min() < 0.97
    np.testing.assert_allclose(short["tokens"], exact["tokens"] * share, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(short["size"], exact["size"])


@pytest.mark.parametrize("backend", loops.BACKENDS)
def test_equally_dense_tokens_rank_by_index(backend: str) -> None:
    given = loops.arrays(12, 1)
    given["x"][0] = np.repeat(given["x"][0, :6], 2, axis=0)
    found = apply_method("dpcknn", given, keep=7, neighbours=2, backend=backend)
    assert (found["index"][0, 1:] % 2 == np.array([1, 0, 0, 0, 0, 0])).all()
    assert found["assign"][0, 2::2].tolist() == found["assign"][0, 3::2].tolist()


def test_odd_numbers_equal_tokens_and_padding() -> None:
    for options in ({}, {"weights": WEIGHTS}, {"order": "score"}):
        loops.survives_odd_numbers("dpcknn", 25, **options)
        loops.loses_nothing("dpcknn", 25, **options)
    clusters.padding_changes_nothing("dpcknn", 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "neighbours=0 .* expected 1 or more"),
        (
            {"weights": {**WEIGHTS, "score_weight": np.ones((1, 5), np.float32)}},
            r"'score_weight' .* must have shape \[1, 6\] here, got \[1, 5\]",
        ),
        ({"order": "size"}, "order=size"),
        (
            {"weights": {"score_weight": WEIGHTS["score_weight"]}},
            r"lack 'score_bias' .*score_weight \[1,C\], score_bias",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("dpcknn", loops.arrays(9, 1), keep=5, **options)
