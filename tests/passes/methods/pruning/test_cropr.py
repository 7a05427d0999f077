"""Token Cropr: every product of every query, head and token, added up in loops."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD, C, linear
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods

QUERIES = scored.weights({"queries": (3, C)})
FULL = scored.weights(
    {
        "queries": (3, C),
        "q.weight": (C, C),
        "q.bias": (C,),
        "k.weight": (C, C),
        "attn_norm.weight": (C,),
        "attn_norm.bias": (C,),
    }
)


def products(x: Any, weights: Any) -> list[float]:
    """Sum over queries and two heads of q . k for each token of one image."""
    asked = [row.tolist() for row in weights["queries"]]
    if "q.weight" in weights:
        asked = [linear(row, weights["q.weight"], weights["q.bias"]) for row in asked]
    scores = []
    for token in x.tolist():
        key = token
        if "attn_norm.weight" in weights:
            mean = sum(key) / C
            spread = math.sqrt(sum((v - mean) ** 2 for v in key) / C + 1e-6)
            scale, shift = weights["attn_norm.weight"], weights["attn_norm.bias"]
            key = [
                (v - mean) / spread * float(w) + float(b) for v, w, b in zip(key, scale, shift, strict=True)
            ]
        if "k.weight" in weights:
            key = linear(key, weights["k.weight"], np.zeros(C))
        heads = [range(C // 2), range(C // 2, C)]
        scores.append(sum(query[c] * key[c] for query in asked for head in heads for c in head))
    return scores


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("cropr")])
@pytest.mark.parametrize("weights", [QUERIES, FULL], ids=["queries", "projections and norm"])
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, weights: Any, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep = tokens - removed
    found = apply_method("cropr", given, keep=keep, protect=protect, backend=backend, weights=weights)
    for image in range(batch):
        kept = scored.best(products(given["x"][image], weights), keep, protect)
        scored.agrees(found, given, image, kept)


def test_published_order_is_by_score() -> None:
    given = scored.arrays(31, 1)
    found = apply_method("cropr", given, keep=12, order="score", weights=QUERIES)["index"][0]
    score = products(given["x"][0], QUERIES)
    assert found.tolist() == [0, *sorted(range(1, 31), key=lambda i: -score[i])[:11]]


def test_those_that_leave_come_back_before_the_last_block() -> None:
    assert methods.get("cropr").returns == "before-last-block"
    given = scored.arrays(12, 2)
    found = apply_method("cropr", given, keep=7, weights=QUERIES, restore=True)
    np.testing.assert_array_equal(found["restored"], given["x"])


def test_padding_leaves_first() -> None:
    given = scored.arrays(12, 2)
    given["size"][:, 6:] = 0
    for backend in BACKENDS:
        found = apply_method("cropr", given, keep=6, backend=backend, weights=QUERIES)
        assert found["index"].tolist() == [[*range(6)]] * 2


def test_ties_keep_the_first() -> None:
    scored.ties("cropr", scored.arrays(9, 2), 4, weights=QUERIES)


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str) -> None:
    scored.stays_in_range("cropr", ODD[odd], weights=QUERIES)


def test_weights_are_asked_for_by_name(tmp_path: Path) -> None:
    scored.refuses_weights("cropr", QUERIES, "queries", tmp_path)
    for name in ("q.weight", "q.bias", "k.weight"):
        wrong = np.zeros([size + 1 for size in FULL[name].shape], np.float32)
        with pytest.raises(MethodError, match=f"tensor '{name}'.*must have shape"):
            apply_method("cropr", {"x": scored.arrays(9, 1)["x"]}, keep=5, weights={**FULL, name: wrong})
