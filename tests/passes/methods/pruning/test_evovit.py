"""Evo-ViT: running attention, the tokens that wait, and the one that represents them, written once more with loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD
from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods


def attention(given: Any, image: int, protect: int) -> list[float]:
    """Attention of the class token, mean over heads; what each token receives where there is none."""
    rows = given["attn"][image]
    heads, tokens = rows.shape[:2]
    asking = range(1) if protect else range(tokens)
    return [
        sum(float(rows[h, q, j]) for h in range(heads) for q in asking) / (heads * len(asking))
        for j in range(tokens)
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carried", [False, True], ids=["first site", "later site"])
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("evovit")])
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, carried: bool, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep = tokens - removed
    before = np.random.default_rng(5).random((batch, tokens)) / tokens
    options: dict[str, Any] = {"state": {"global_attention": before}, "tradeoff": 0.3} if carried else {}
    found = apply_method("evovit", given, keep=keep, protect=protect, backend=backend, **options)
    for image in range(batch):
        score = attention(given, image, protect)
        if carried:
            score = [0.7 * then + 0.3 * now for now, then in zip(score, before[image], strict=True)]
        scored.agrees(found, given, image, scored.best(score, keep, protect))
        scored.close(found["state_global_attention"][image], score, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("evovit", variant="paper")])
def test_one_token_represents_those_that_wait(
    tokens: int, removed: int, protect: int, batch: int, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep = tokens - removed
    found = apply_method("evovit", given, keep=keep, protect=protect, backend=backend, variant="paper")
    for image in range(batch):
        score = attention(given, image, protect)
        kept = scored.best(score, keep - 1, protect)
        waiting = [i for i in range(tokens) if i not in kept]
        total = sum(score[i] for i in waiting)
        mean = sum(score[i] / total * given["x"][image, i] for i in waiting)
        scored.close(found["tokens"][image, -1], mean, backend)
        scored.close(found["size"][image, -1, 0], sum(given["size"][image, i, 0] for i in waiting), backend)
        rest = {"tokens": found["tokens"][:, :-1], "size": found["size"][:, :-1]}
        scored.agrees({**found, **rest}, given, image, kept)


def test_the_representative_is_counted() -> None:
    evovit = methods.get("evovit")
    assert evovit(variant="paper").after_keeping(kept=98, protect=1) == 100
    assert evovit().after_keeping(kept=98, protect=1) == 99
    assert evovit().returns == "before-next-site"


def test_waiting_tokens_come_back_as_they_left() -> None:
    given = scored.arrays(12, 2)
    for options in ({}, {"variant": "paper"}):
        found = apply_method("evovit", given, keep=7, restore=True, **options)
        np.testing.assert_array_equal(found["restored"], given["x"])


def test_ties_keep_the_first() -> None:
    scored.ties("evovit", scored.arrays(9, 2), 4)


@pytest.mark.parametrize("options", [{}, {"variant": "paper"}], ids=["reference", "paper"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str, options: dict[str, Any]) -> None:
    scored.stays_in_range("evovit", ODD[odd], **options)


def test_a_tradeoff_outside_its_range_is_refused() -> None:
    with pytest.raises(MethodError, match=r"tradeoff=1.5.*weight from 0 to 1"):
        methods.get("evovit")(tradeoff=1.5)
