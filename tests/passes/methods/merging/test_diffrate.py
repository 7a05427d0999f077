"""DiffRate: ranks, pruning, plain means and sizes by cosine, against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes.methods.merging.diffrate import LEAST_SIZE


def step(x: Any, score: Any, size: Any, keep: int, survive: int, protect: int) -> loops.Wanted:
    free = sorted(range(protect, len(x)), key=lambda i: -score[i])
    rank = [*range(protect), *free][:survive]
    groups, similar = loops.bipartite(x, rank[:protect], rank[keep:], rank[protect:keep], survive - keep)
    tokens = groups.mean(x, np.ones(len(x)))
    sizes = []
    for stays in groups.order:
        joined = [i for i in groups.members[stays] if i != stays]
        total = size[stays] + sum(size[i] * similar[i] for i in joined)
        sizes.append(max(total, LEAST_SIZE) if joined else total)
    return tokens, sizes, groups.goes(len(x)), groups.order


@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*loops.settings("diffrate")])
@pytest.mark.parametrize("pruned", ["all", "some", "none"])
def test_equals_the_loops(tokens: int, removed: int, protect: int, batch: int, pruned: str) -> None:
    given = loops.arrays(tokens, batch)
    keep = tokens - removed
    survive = {"all": keep, "some": keep + (removed + 1) // 2, "none": tokens}[pruned]

    def wanted(image: int) -> loops.Wanted:
        attn = given["attn"][image]
        score = attn[:, 0].mean(0) if protect else attn.mean((0, 1))
        size = given["size"][image, :, 0]
        return step(given["x"][image], score, size, keep, survive, protect)

    loops.check("diffrate", given, wanted, keep=keep, protect=protect, prune_kept=survive)


def test_half_of_those_that_leave_are_pruned_by_default() -> None:
    given = loops.arrays(21, 2)
    found, said = (
        apply_method("diffrate", given, keep=14, **options) for options in ({}, {"prune_kept": "18"})
    )
    np.testing.assert_array_equal(found["assign"], said["assign"])
    assert ((found["assign"] < 0).sum(1) == 3).all()


def test_one_number_a_block() -> None:
    given = loops.arrays(21, 1)
    lost = [
        (
            apply_method("diffrate", given, keep=14, block=block, blocks=3, prune_kept="21, 17,5")["assign"]
            < 0
        ).sum()
        for block in range(3)
    ]
    assert lost == [0, 4, 7]
    with pytest.raises(MethodError, match="has 3 numbers, and the model 12 blocks"):
        apply_method("diffrate", given, keep=14, prune_kept="21,17,5")


def test_sizes_stay_positive_when_opposites_merge() -> None:
    given = loops.arrays(3, 1)
    given["x"][0, 2] = -given["x"][0, 1]
    given["size"][:] = np.array([1.0, 2.0, 5.0])[:, None]
    given["attn"][:, :, 0] = [0.5, 0.3, 0.2]
    for backend in loops.BACKENDS:
        found = apply_method("diffrate", given, keep=2, prune_kept=3, backend=backend)
        np.testing.assert_allclose(found["size"][0, :, 0], [1, LEAST_SIZE])
        options = {"prune_kept": 3, "variant": "reference", "backend": backend}
        released = apply_method("diffrate", given, keep=2, **options)
        np.testing.assert_allclose(released["size"][0, :, 0], [1, 2 - 5], rtol=1e-6)
        np.testing.assert_array_equal(released["tokens"], found["tokens"])
        assert np.isfinite(np.log(found["size"])).all()


def test_padding_stays_of_size_zero() -> None:
    given = loops.arrays(12, 2)
    given["size"][:, 8:] = 0
    given["attn"][:, :, :, 8:] = 0
    for backend in loops.BACKENDS:
        found = apply_method("diffrate", given, keep=10, prune_kept=12, backend=backend)
        real = np.take_along_axis(found["tokens"], found["assign"][:, :8, None], axis=1)
        np.testing.assert_allclose(real, given["x"][:, :8], rtol=1e-6)
        np.testing.assert_allclose(found["size"].sum(1), given["size"].sum(1))


def test_equal_scores_keep_the_first() -> None:
    given = loops.arrays(12, 1)
    given["attn"][:] = 1 / 12
    for backend in loops.BACKENDS:
        found = apply_method("diffrate", given, keep=7, prune_kept=7, backend=backend)
        assert found["index"][0].tolist() == [*range(7)]


@pytest.mark.parametrize("survive", ["25", "30", "37"])
def test_odd_numbers_and_equal_tokens(survive: str) -> None:
    loops.survives_odd_numbers("diffrate", 25, prune_kept=survive)
    loops.loses_nothing("diffrate", 25, prune_kept=survive)


def test_wrong_options_are_refused() -> None:
    given = loops.arrays(9, 1)
    for option, value in (("prune_kept", "most"), ("prune_kept", "-3"), ("score", "x")):
        with pytest.raises(MethodError, match=f"option {option}={value} of method 'diffrate'"):
            apply_method("diffrate", given, keep=8, **{option: value})
