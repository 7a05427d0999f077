"""ToMe: published arithmetic and order, written once more with loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import loops
from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods


def by_loops(
    x: Any, metric: Any, size: Any, removed: int, protect: int
) -> tuple[list[list[float]], list[float], list[int]]:
    """ToMe for one image in plain Python floats: tokens, sizes and the map from input to output."""
    norms = [sum(v * v for v in row) ** 0.5 for row in metric]
    even = [i for i in range(protect, len(x)) if i % 2 == 0]
    odd = [i for i in range(protect, len(x)) if i % 2 == 1]
    best = {}
    for a in even:
        cosine = {
            b: sum(p * q for p, q in zip(metric[a], metric[b], strict=True)) / norms[a] / norms[b]
            for b in odd
        }
        best[a] = max(odd, key=cosine.__getitem__), max(cosine.values())
    ranked = sorted(even, key=lambda a: -best[a][1])
    leaving, staying = ranked[:removed], ranked[removed:]
    order = [*range(protect), *(sorted(staying) if protect else staying), *odd]
    groups = {position: [position] for position in order}
    for a in leaving:
        groups[best[a][0]].append(a)
    sizes = [sum(size[i] for i in groups[position]) for position in order]
    tokens = [
        [sum(x[i][c] * size[i] for i in groups[position]) / total for c in range(len(x[0]))]
        for position, total in zip(order, sizes, strict=True)
    ]
    where = [next(k for k, position in enumerate(order) if i in groups[position]) for i in range(len(x))]
    return tokens, sizes, where


@pytest.mark.parametrize("protect", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("tokens", [9, 20])
def test_equals_the_loops(protect: int, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    x, keys = rng.standard_normal((2, tokens, 4)), rng.standard_normal((2, 3, tokens, 4))
    size = rng.integers(1, 4, (2, tokens, 1)).astype(float)
    for removed in range(1, (tokens - protect) // 2 + 1):
        found = apply_method(
            "tome", {"x": x, "keys": keys, "size": size}, keep=tokens - removed, protect=protect
        )
        for image in range(2):
            wanted = by_loops(x[image], keys[image].mean(0), size[image, :, 0], removed, protect)
            np.testing.assert_allclose(found["tokens"][image], wanted[0], atol=1e-12)
            np.testing.assert_allclose(found["size"][image, :, 0], wanted[1])
            assert found["assign"][image].tolist() == wanted[2]


def test_sizes_default_to_one_and_add_up() -> None:
    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((2, 17, 4)), "keys": rng.standard_normal((2, 1, 17, 4))}
    size = apply_method("tome", given, keep=9)["size"]
    np.testing.assert_array_equal(size.sum(axis=1), [[17], [17]])


def test_how_few_it_can_leave() -> None:
    tome = methods.get("tome")()
    assert [tome.fewest(n, p) for n, p in [(197, 1), (196, 0), (198, 2), (3, 1), (2, 1)]] == [
        99,
        98,
        100,
        2,
        2,
    ]
    x = {"x": np.ones((1, 197, 4)), "keys": np.ones((1, 1, 197, 4))}
    with pytest.raises(PlanError, match="'tome' leaves at least 99 of 197 tokens"):
        apply_method("tome", x, keep=98)


@pytest.mark.parametrize("every", [2, 3, 5])
@pytest.mark.parametrize("protect", [0, 1, 2])
@pytest.mark.parametrize("tokens", [9, 33])
def test_destinations_may_lie_farther_apart(tokens: int, protect: int, every: int) -> None:
    given = loops.arrays(tokens, 2)
    fewest = methods.get("tome")(every=every).fewest(tokens, protect)
    last = [i for i in range(protect, tokens) if i % every == every - 1]
    others = [i for i in range(protect, tokens) if i not in last]
    for keep in (fewest, tokens - 1):

        def wanted(image: int, keep: int = keep) -> loops.Wanted:
            metric, size = given["keys"][image].mean(0), given["size"][image, :, 0]
            groups, _ = loops.bipartite(
                metric, range(protect), others, last, tokens - keep, by_value=protect == 0
            )
            return groups.mean(given["x"][image], size), groups.total(size), groups.goes(tokens), groups.order

        loops.check("tome", given, wanted, keep=keep, protect=protect, every=every)


def test_a_stride_that_leaves_no_destination_removes_nothing() -> None:
    assert methods.get("tome")(every=7).fewest(6, 1) == 6
    assert methods.get("tome")(every=7).fewest(15, 1) == 3
    with pytest.raises(MethodError, match="option every=1 of method 'tome': expected 2 or more"):
        methods.get("tome").from_options({"every": 1})
