"""BAT against loops: the two groups, the matching in one and the density peaks in the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods
from tokenrt.passes.methods.contract import Site


def by_loops(
    given: Any, image: int, keep: int, protect: int, *, diverse: float, matched: float
) -> loops.Wanted:
    x, size = given["x"][image], given["size"][image, :, 0]
    attn = given["attn"][image]
    score = attn[:, 0].mean(0) if protect else attn.mean((0, 1))
    free, outputs = range(protect, len(x)), keep - protect
    dense = min(outputs, max(1, round(diverse * outputs)))
    pairs = min(int(matched * (len(x) - keep)), outputs - dense)
    high = sorted(sorted(free, key=lambda i: -score[i])[: outputs - dense + pairs])
    low = [i for i in free if i not in high]
    metric = given["keys"][image].mean(0)
    groups = loops.Groups([*range(protect), *high])
    if pairs:
        groups, _ = loops.bipartite(metric, range(protect), high[::2], high[1::2], pairs)
    centers, assign = clusters.peaks(x[low] / np.sqrt(loops.C), dense, 5)
    for token, slot in zip(low, assign, strict=True):
        head = low[centers[slot]]
        groups.members.setdefault(head, [head])
        if token != head:
            groups.members[head].append(token)
    order = [*range(protect), *sorted({*groups.order[protect:], *(low[c] for c in centers)})]
    groups = loops.Groups(order, groups.members)
    return clusters.merged(given, image, groups, score * size)


@pytest.mark.parametrize(("diverse", "matched"), [(0.25, 0.1), (0.5, 0.9), (0.0, 0.0), (1.0, 0.5)])
@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(
    tokens: int, keep: int, protect: int, batch: int, diverse: float, matched: float
) -> None:
    given, shares = loops.arrays(tokens, batch), {"diverse": diverse, "matched": matched}

    def wanted(image: int) -> loops.Wanted:
        return by_loops(given, image, keep, protect, **shares)

    loops.check("bat", given, wanted, keep=keep, protect=protect, **shares)


def test_the_counts_add_up() -> None:
    for tokens in (2, 3, 10, 197):
        for keep in range(1, tokens):
            for shares in ({}, {"diverse": 0.0, "matched": 1.0}, {"diverse": 1.0}):
                attentive, pairs, dense = (
                    methods.get("bat").from_options(shares).counts(Site(tokens, keep, 0, 1, 1))
                )
                assert attentive - pairs + dense == keep
                assert 0 <= 2 * pairs <= attentive <= tokens - dense


def test_odd_numbers_and_equal_tokens() -> None:
    loops.survives_odd_numbers("bat", 25)
    loops.loses_nothing("bat", 25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"diverse": 1.5}, r"diverse=1.5 .* expected 0 to 1"),
        ({"matched": -0.1}, r"matched=-0.1"),
        ({"neighbours": 0}, r"neighbours=0 .* expected 1 or more"),
        ({"score": "none"}, "score=none"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method("bat", loops.arrays(9, 1), keep=5, **options)
