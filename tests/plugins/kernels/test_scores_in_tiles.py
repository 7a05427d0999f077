"""TokenScore of many rows on tensor cores: near what float32 gives, the same bits whatever the batch and the order of blocks."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import KINDS, needs_compiler, random, run, wide
from tokenrt.plugins.host import kernels

pytestmark = needs_compiler

BIASES = {
    "one number": lambda h, r, n: (1, 1, 1, 1),
    "by token": lambda h, r, n: (2, 1, 1, n),
    "by row": lambda h, r, n: (1, h, r, 1),
    "by pair": lambda h, r, n: (1, h, r, n),
}
HALVES = ("float16", "bfloat16")
LARGE = (200, 136, (0, 200))
SIZES = ((33, 8, (1, 33)), (70, 72, (3, 9)), LARGE)
"""Tokens, width and rows."""
ONCE_MORE = {(bias, "bfloat16") for bias in BIASES if bias != "by pair"}
"""What the large size shows once more, and takes seconds for."""


def scored(inputs: list[Any], rows: tuple[int, int], scale: float) -> Any:
    return run("TokenScore", inputs, {"scale": scale, "first_row": rows[0], "end_row": rows[1]})[0]


@pytest.mark.parametrize(
    ("tokens", "width", "rows", "bias", "kind"),
    [
        pytest.param(
            *size, bias, kind, marks=[pytest.mark.slow] * (size == LARGE and (bias, kind) in ONCE_MORE)
        )
        for size, bias, kind in itertools.product(SIZES, BIASES, HALVES)
    ],
)
def test_halves_are_scored_as_float32_scores_them(
    tokens: int, width: int, rows: tuple[int, int], bias: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices and tiles in part; several stretches; tensor cores that round in either way, and none."""
    inputs = [*(random((2, 3, tokens, width), kind, seed) for seed in (1, 2))]
    inputs.append(random(BIASES[bias](3, rows[1] - rows[0], tokens), seed=3))
    scale = width**-0.5
    attributes = {"scale": scale, "first_row": rows[0], "end_row": rows[1]}
    wanted = expect("TokenScore", wide(inputs), attributes)[0]
    usual = os.environ.get(kernels.EXTRA_FLAGS, "")
    for flags in ("", "-DSIMT_OTHER_TENSOR_CORE", "-DTOKENRT_SCALAR"):
        monkeypatch.setenv(kernels.EXTRA_FLAGS, f"{usual} {flags}".strip())
        np.testing.assert_allclose(scored(inputs, rows, scale), wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_batch_nor_order_of_blocks_changes_a_score(kind: str) -> None:
    """Whichever block adds up the heads of a tile, it adds them in order."""
    inputs = [random((3, 5, 150, 24), kind, seed) for seed in (1, 2)] + [random((1, 1, 1, 150), seed=3)]
    whole = scored(inputs, (0, 150), 0.2)
    with kernels.backwards():
        turned = scored(inputs, (0, 150), 0.2)
    assert turned.tobytes() == whole.tobytes()
    for image in range(3):
        alone = scored([inputs[0][image : image + 1], inputs[1][image : image + 1], inputs[2]], (0, 150), 0.2)
        assert alone.tobytes() == whole[image : image + 1].tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_odd_elements_and_masks_are_as_softmax_has_them(bad: float, kind: str) -> None:
    inputs = [random((1, 2, 70, 16), kind, seed) for seed in (1, 2)]
    bias = np.zeros((1, 1, 1, 70), np.float32)
    bias[..., 66:] = -np.inf
    masked = scored([*inputs, bias], (0, 70), 0.25)
    assert (masked[:, 66:] == 0).all()
    np.testing.assert_allclose(masked.sum(), 1, rtol=1e-5)
    inputs[0][0, 1, 40, 3] = bad
    assert np.isnan(scored([*inputs, bias], (0, 70), 0.25)[:, :66]).all()
