"""SPA: the gate, its carried score and the scaling, written once more with loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD, C
from tokenrt import apply_method
from tokenrt.errors import MethodError

GATE = scored.weights(
    {"gate.0.weight": (4, C), "gate.0.bias": (4,), "gate.2.weight": (1, 4), "gate.2.bias": (1,)}
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("carried", [False, True], ids=["first site", "later site"])
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("spa")])
def test_equals_the_loops(
    tokens: int, removed: int, protect: int, batch: int, carried: bool, backend: str
) -> None:
    given = scored.arrays(tokens, batch)
    keep = tokens - removed
    before = np.random.default_rng(5).standard_normal((batch, tokens))
    state = {"gate": before} if carried else None
    found = apply_method("spa", given, keep=keep, protect=protect, backend=backend, weights=GATE, state=state)
    for image in range(batch):
        score = scored.gated(GATE, given["x"][image]).tolist()
        if carried:
            score = [max(now, then) for now, then in zip(score, before[image], strict=True)]
        kept = scored.best(score, keep, protect)
        weight = [1.0 if i < protect else 1 / (1 + math.exp(-score[i])) for i in kept]
        scored.close(found["tokens"][image], given["x"][image, kept] * np.array(weight)[:, None], backend)
        scored.close(found["state_gate"][image], [score[i] for i in kept], backend)
        plain = given["x"][image, kept]
        scored.agrees({**found, "tokens": {image: plain}}, given, image, kept)
    np.testing.assert_allclose(found["tokens"][:, :protect], given["x"][:, :protect], rtol=1e-6)


def test_without_scale_tokens_stay_as_they_are() -> None:
    given = scored.arrays(31, 3)
    scaled, plain = (apply_method("spa", given, keep=9, weights=GATE, scale=scale) for scale in (True, False))
    np.testing.assert_array_equal(scaled["index"], plain["index"])
    for image in range(3):
        scored.agrees(plain, given, image, plain["index"][image].tolist())
    assert (scaled["tokens"][:, 1:] != plain["tokens"][:, 1:]).any()


def test_padding_leaves_first() -> None:
    given = scored.arrays(12, 2)
    given["size"][:, 6:] = 0
    for backend in BACKENDS:
        found = apply_method("spa", given, keep=6, backend=backend, weights=GATE)
        assert found["index"].tolist() == [[*range(6)]] * 2


def test_ties_keep_the_first() -> None:
    scored.ties("spa", scored.arrays(9, 2), 4, weights=GATE)


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str) -> None:
    scored.stays_in_range("spa", ODD[odd], weights=GATE)


def test_weights_are_asked_for_by_name(tmp_path: Path) -> None:
    scored.refuses_weights("spa", GATE, "gate.0.weight", tmp_path)
    for name in ("gate.0.bias", "gate.2.weight", "gate.2.bias"):
        wrong = np.zeros([size + 1 for size in GATE[name].shape], np.float32)
        with pytest.raises(MethodError, match=f"tensor '{name}'.*must have shape"):
            apply_method("spa", {"x": scored.arrays(9, 1)["x"]}, keep=5, weights={**GATE, name: wrong})
