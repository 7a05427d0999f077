"""DynamicViT: the predictor, written once more one number at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import scored
from tests.passes.methods.helpers.loops import BACKENDS, settings
from tests.passes.methods.helpers.scored import ODD, C, gelu, linear
from tokenrt import apply_method
from tokenrt.errors import MethodError

WEIGHTS = scored.weights(
    {
        "in_conv.0.weight": (C,),
        "in_conv.0.bias": (C,),
        "in_conv.1.weight": (C, C),
        "in_conv.1.bias": (C,),
        "out_conv.0.weight": (C // 2, C),
        "out_conv.0.bias": (C // 2,),
        "out_conv.2.weight": (C // 4, C // 2),
        "out_conv.2.bias": (C // 4,),
        "out_conv.4.weight": (2, C // 4),
        "out_conv.4.bias": (2,),
    }
)


def layer(name: str, row: Any) -> list[float]:
    return linear(row, WEIGHTS[f"{name}.weight"], WEIGHTS[f"{name}.bias"])


def normalised(row: Any) -> list[float]:
    mean = sum(row) / C
    spread = math.sqrt(sum((v - mean) ** 2 for v in row) / C + 1e-5)
    scale, shift = WEIGHTS["in_conv.0.weight"], WEIGHTS["in_conv.0.bias"]
    return [(v - mean) / spread * float(w) + float(b) for v, w, b in zip(row, scale, shift, strict=True)]


def log_probability(x: Any, protect: int, padding: Any) -> list[float]:
    """Log-probability of keeping each unprotected token of one image; the protected ones get 0."""
    hidden = [[gelu(v) for v in layer("in_conv.1", normalised(row.tolist()))] for row in x[protect:]]
    real = [row for row, pad in zip(hidden, padding[protect:], strict=True) if not pad]
    shared = [sum(row[c] for row in real) / max(len(real), 1) for c in range(C // 2, C)]
    scores = [0.0] * protect
    for row in hidden:
        out = [gelu(v) for v in layer("out_conv.0", row[: C // 2] + shared)]
        keep, drop = layer("out_conv.4", [gelu(v) for v in layer("out_conv.2", out)])
        top = max(keep, drop)
        scores.append(keep - top - math.log(math.exp(keep - top) + math.exp(drop - top)))
    return scores


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "removed", "protect", "batch"), [*settings("dynamicvit")])
def test_equals_the_loops(tokens: int, removed: int, protect: int, batch: int, backend: str) -> None:
    given = scored.arrays(tokens, batch, sized=False)
    keep = tokens - removed
    found = apply_method("dynamicvit", given, keep=keep, protect=protect, backend=backend, weights=WEIGHTS)
    for image in range(batch):
        score = log_probability(given["x"][image], protect, [False] * tokens)
        scored.agrees(found, given, image, scored.best(score, keep, protect))


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_leaves_first_and_counts_for_nothing(backend: str) -> None:
    given = scored.arrays(31, 3)
    given["size"][:, 20:] = 0
    found = apply_method("dynamicvit", given, keep=12, backend=backend, weights=WEIGHTS)
    for image in range(3):
        score = log_probability(given["x"][image], 1, given["size"][image, :, 0] == 0)
        scored.agrees(found, given, image, scored.best([*score[:20], *[-math.inf] * 11], 12, 1))
    other = given | {"x": given["x"].copy()}
    other["x"][:, 20:] = 100
    again = apply_method("dynamicvit", other, keep=12, backend=backend, weights=WEIGHTS)
    np.testing.assert_array_equal(found["index"], again["index"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_order_is_by_score(backend: str) -> None:
    given = scored.arrays(31, 3, sized=False)
    found = apply_method("dynamicvit", given, keep=12, backend=backend, weights=WEIGHTS, order="score")
    for image in range(3):
        score = np.array(log_probability(given["x"][image], 1, [False] * 31))
        assert found["index"][image].tolist() == [0, *(1 + np.argsort(-score[1:])[:11])]


def test_ties_keep_the_first() -> None:
    scored.ties("dynamicvit", scored.arrays(9, 2), 4, weights=WEIGHTS)


@pytest.mark.parametrize("odd", ODD)
def test_odd_numbers_stay_in_range(odd: str) -> None:
    scored.stays_in_range("dynamicvit", ODD[odd], weights=WEIGHTS)


def test_weights_are_asked_for_by_name(tmp_path: Path) -> None:
    scored.refuses_weights("dynamicvit", WEIGHTS, "in_conv.1.weight", tmp_path)
    for name in WEIGHTS:
        if name == "in_conv.1.weight":
            continue
        wrong = np.zeros([size + 1 for size in WEIGHTS[name].shape], np.float32)
        with pytest.raises(MethodError, match=f"tensor '{name}'.*must have shape"):
            apply_method(
                "dynamicvit", {"x": scored.arrays(9, 1)["x"]}, keep=5, weights={**WEIGHTS, name: wrong}
            )


def test_each_block_may_have_its_own() -> None:
    given = {"x": scored.arrays(31, 1)["x"]}
    last = WEIGHTS["out_conv.4.weight"]
    both = {
        **WEIGHTS,
        "block5.out_conv.4.weight": last[::-1].copy(),
        "block5.out_conv.4.bias": WEIGHTS["out_conv.4.bias"][::-1].copy(),
    }
    third, fifth = (
        apply_method("dynamicvit", given, keep=16, block=b, weights=both)["index"] for b in (3, 5)
    )
    assert sorted([*third[0, 1:], *fifth[0, 1:]]) == [*range(1, 31)]
