"""ATC against clustering written with loops, and against SciPy's linkage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError

LINKAGES = {"single": np.max, "complete": np.min, "average": np.mean}


def agglomerated(metric: Any, count: int, linkage: str) -> tuple[list[int], list[int]]:
    """First tokens and slots: similarities of clusters are taken anew over all pairs of tokens at every step."""
    like = np.array([[loops.cosine(a, b) for b in metric] for a in metric])
    groups = [[token] for token in range(len(metric))]
    while len(groups) > count:
        _, a, b = max(
            (LINKAGES[linkage](like[np.ix_(groups[a], groups[b])]), -a, -b)
            for a in range(len(groups))
            for b in range(a + 1, len(groups))
        )
        groups[-a] = sorted(groups[-a] + groups.pop(-b))
        groups.sort()
    slot = {token: number for number, group in enumerate(groups) for token in group}
    return [group[0] for group in groups], [slot[token] for token in range(len(metric))]


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(tokens: int, keep: int, protect: int, batch: int, linkage: str) -> None:
    given = loops.arrays(tokens, batch)

    def wanted(image: int) -> loops.Wanted:
        metric = given["keys"][image].mean(0)[protect:]
        groups = clusters.grouped(protect, *agglomerated(metric, keep - protect, linkage))
        return clusters.merged(given, image, groups)

    loops.check("atc", given, wanted, keep=keep, protect=protect, linkage=linkage)


@pytest.mark.parametrize("linkage", LINKAGES)
def test_equals_scipy(linkage: str) -> None:
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    distance = pytest.importorskip("scipy.spatial.distance")
    given = loops.arrays(120, 1)
    tree = hierarchy.linkage(distance.pdist(given["keys"][0].mean(0), "cosine"), linkage)
    for keep in (2, 17, 60, 119):
        labels = hierarchy.cut_tree(tree, n_clusters=keep)[:, 0]
        for backend in loops.BACKENDS:
            found = apply_method("atc", given, keep=keep, protect=0, linkage=linkage, backend=backend)[
                "assign"
            ][0]
            same = labels[:, None] == labels[None]
            np.testing.assert_array_equal(found[:, None] == found[None], same)


@pytest.mark.parametrize("backend", loops.BACKENDS)
def test_ties_go_to_the_first_pair(backend: str) -> None:
    given = loops.arrays(9, 2)
    given["keys"][:] = 1.0
    found = apply_method("atc", given, keep=5, backend=backend)
    assert found["assign"].tolist() == [[0, 1, 1, 1, 1, 1, 2, 3, 4]] * 2


def test_odd_numbers_equal_tokens_and_padding() -> None:
    for linkage in LINKAGES:
        loops.survives_odd_numbers("atc", 25, linkage=linkage)
        loops.loses_nothing("atc", 25, linkage=linkage)


def test_an_unknown_linkage_is_refused() -> None:
    with pytest.raises(MethodError, match=r"linkage=ward .* expected one of single, complete, average"):
        apply_method("atc", loops.arrays(9, 1), keep=5, linkage="ward")
