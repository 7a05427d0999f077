"""SiT against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError

HIDDEN = loops.C // 2


def weights(slots: int) -> dict[str, Any]:
    rng = np.random.default_rng(slots)
    shapes = {
        "norm_weight": (loops.C,),
        "norm_bias": (loops.C,),
        "hidden_weight": (HIDDEN, loops.C),
        "hidden_bias": (HIDDEN,),
        "slot_weight": (slots, HIDDEN),
        "slot_bias": (slots,),
        "scale": (1,),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def matrix(tokens: Any, given: Any) -> Any:
    """Softmax over tokens of the logits [M,T]."""
    logits = []
    for token in tokens:
        row = clusters.normed(token, given["norm_weight"], given["norm_bias"])
        row = [
            clusters.gelu(float(sum(w * v for w, v in zip(line, row, strict=True)) + b))
            for line, b in zip(given["hidden_weight"].astype(float), given["hidden_bias"], strict=True)
        ]
        logits.append((given["slot_weight"].astype(float) @ row + given["slot_bias"]) * given["scale"][0])
    return [clusters.softmax(row) for row in np.array(logits).T]


@pytest.mark.parametrize(("tokens", "keep", "protect", "batch"), [*clusters.settings()])
def test_equals_the_loops(tokens: int, keep: int, protect: int, batch: int) -> None:
    given, trained = loops.arrays(tokens, batch), weights(keep - protect)

    def wanted(image: int) -> loops.Wanted:
        free = given["x"][image, protect:]
        shares = matrix(free, trained)
        mixture = [sum(s * token for s, token in zip(row, free, strict=True)) for row in shares]
        return clusters.mixed(given["x"][image], protect, shares, mixture)

    loops.check("sit", given, wanted, keep=keep, protect=protect, weights=trained)


def test_odd_numbers_and_padding() -> None:
    loops.survives_odd_numbers("sit", 25, weights=weights(24))
    clusters.padding_changes_nothing("sit", 9, weights=weights(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"'sit' needs trained weights: .*weights=FILE .* norm_weight \[C\], .* slot_weight \[K,C/2\]"),
        ({"slot_weight": None}, "lack 'slot_weight'"),
        ({"norm_weight": np.ones(7, np.float32)}, r"'norm_weight' .* must have shape \[6\] here, got \[7\]"),
        ({"slot_bias": np.zeros(5, np.float32)}, r"'slot_bias' .* must have shape \[8\] here, got \[5\]"),
        (
            {"hidden_weight": np.zeros((3, 4), np.float32)},
            r"'hidden_weight' .* shape \[3, 6\] here, got \[3, 4\]",
        ),
    ],
)
def test_wrong_weights_are_named(change: Any, message: str) -> None:
    given = None
    if change is not None:
        given = {name: array for name, array in {**weights(8), **change}.items() if array is not None}
    with pytest.raises(MethodError, match=message):
        apply_method("sit", loops.arrays(12, 1), keep=9, weights=given)


def test_a_block_may_have_its_own_weights() -> None:
    given = loops.arrays(12, 1)
    trained = {**weights(8), **{f"block4.{name}": array + 1 for name, array in weights(8).items()}}
    plain, own = (
        apply_method("sit", given, keep=9, block=block, weights=trained)["tokens"] for block in (3, 4)
    )
    assert not np.allclose(plain, own)
