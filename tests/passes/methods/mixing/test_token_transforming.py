"""Token Transforming against loops: shares, masses, means, restoration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError


def shares(metric: Any, chosen: list[int], temperature: float) -> Any:
    """What each token gives to each chosen one: [T,M]."""
    return np.array(
        [clusters.softmax([loops.cosine(token, metric[i]) / temperature for i in chosen]) for token in metric]
    )


def apart(given: Any, image: int, protect: int) -> Any:
    """Mean keys of the unprotected tokens, less their mean by size."""
    keys = given["keys"][image].mean(0)[protect:]
    weight = given["size"][image][protect:]
    return keys - (keys * weight).sum(0) / weight.sum()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(tokens: int, keep: int, protect: int, batch: int, temperature: float) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        x, size, attn = given["x"][image], given["size"][image, :, 0], given["attn"][image]
        score = (attn[:, 0].mean(0) if protect else attn.mean((0, 1)))[protect:]
        chosen = sorted(sorted(range(tokens - protect), key=lambda i: -score[i])[: keep - protect])
        given_away = shares(apart(given, image, protect), chosen, temperature)
        mass = given_away.T * size[protect:]
        mixture = np.array(
            [sum(m * t for m, t in zip(row, x[protect:], strict=True)) / sum(row) for row in mass]
        )
        _, _, goes, _ = clusters.mixed(x, protect, given_away.T, mixture)
        total = [*size[:protect], *mass.sum(1)]
        stays = [*range(protect), *(protect + i for i in chosen)]
        return np.concatenate([x[:protect], mixture]), total, goes, stays

    loops.check("token_transforming", given, wanted, keep=keep, protect=protect, temperature=temperature)


@pytest.mark.parametrize("protect", [0, 1, 2])
@pytest.mark.parametrize("backend", loops.BACKENDS)
def test_positions_are_restored_by_the_shares(backend: str, protect: int) -> None:
    given = loops.arrays(31, 2)
    found = apply_method("token_transforming", given, keep=12, protect=protect, restore=True, backend=backend)
    affinity = found["affinity"]
    np.testing.assert_allclose(affinity.sum(axis=2), 1, rtol=1e-6)
    np.testing.assert_array_equal(affinity[:, :protect], np.eye(31, 12)[None, :protect].repeat(2, 0))
    for image in range(2):
        chosen = (found["index"][image, protect:] - protect).tolist()
        wanted = shares(apart(given, image, protect), chosen, 0.02)
        np.testing.assert_allclose(affinity[image, protect:, protect:], wanted, atol=2e-6)
    np.testing.assert_allclose(found["restored"], affinity @ found["tokens"], atol=1e-5)


def test_odd_numbers_and_equal_tokens() -> None:
    loops.survives_odd_numbers("token_transforming", 25)
    loops.loses_nothing("token_transforming", 25)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": 0.0}, r"temperature=0.0 .* above 0"), ({"score": "none"}, "score=none")],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("token_transforming", loops.arrays(9, 1), keep=5, **options)
