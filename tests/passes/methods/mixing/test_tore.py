"""TORE's image token pruner against loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError

HIDDEN, GRID = 5, (4, 8)


def weights(slots: int) -> dict[str, Any]:
    rng = np.random.default_rng(slots)
    shapes = {
        "conv_weight": (HIDDEN, loops.C, 3, 3),
        "conv_bias": (HIDDEN,),
        "linear_weight": (slots, HIDDEN),
        "linear_bias": (slots,),
        "norm_weight": (slots, loops.C),
        "norm_bias": (slots, loops.C),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def pooled(tokens: Any, grid: tuple[int, int], given: Any, variant: str) -> tuple[Any, Any]:
    """The matrix [M,T] and the pooled tokens [M,C]."""
    wide = {name: array.astype(float) for name, array in given.items()}
    height, width = grid
    image = tokens.reshape(height, width, -1)
    logits = []
    for y in range(height):
        for x in range(width):
            hidden = wide["conv_bias"].copy()
            for dy in range(3):
                for dx in range(3):
                    if 0 <= y + dy - 1 < height and 0 <= x + dx - 1 < width:
                        hidden += wide["conv_weight"][:, :, dy, dx] @ image[y + dy - 1, x + dx - 1]
            logits.append(wide["linear_weight"] @ [clusters.gelu(v) for v in hidden] + wide["linear_bias"])
    matrix = np.array([clusters.softmax(row) for row in np.array(logits).T])
    mean = matrix @ tokens
    if variant == "paper":
        rows = zip(mean, wide["norm_weight"], wide["norm_bias"], strict=True)
        return matrix, np.array([clusters.normed(*row) for row in rows])
    flat = clusters.normed(mean.ravel(), wide["norm_weight"].ravel(), wide["norm_bias"].ravel())
    return matrix, flat.reshape(mean.shape)


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(
    ("grid", "outputs"), [((1, 2), 1), ((3, 1), 2), (GRID, 1), (GRID, 10), (GRID, 31), ((8, 8), 9)]
)
def test_equals_the_loops(grid: tuple[int, int], outputs: int, protect: int, variant: str) -> None:
    tokens = grid[0] * grid[1] + protect
    given, trained = loops.arrays(tokens, 1 if tokens % 2 else 3), weights(outputs)
    given["grid"] = grid

    def wanted(image: int) -> loops.Wanted:
        matrix, mixture = pooled(given["x"][image, protect:], grid, trained, variant)
        return clusters.mixed(given["x"][image], protect, matrix, mixture)

    options = {"weights": trained, "variant": variant}
    loops.check("tore", given, wanted, keep=outputs + protect, protect=protect, **options)


def test_odd_numbers() -> None:
    loops.survives_odd_numbers("tore", 25, grid=(6, 6), weights=weights(24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, r"'tore' needs trained weights: .*weights=FILE .* conv_weight \[M,C,3,3\]"),
        ({"weights": weights(7)}, r"'linear_weight' .* must have shape \[8, 5\] here, got \[7, 5\]"),
        (
            {"weights": {**weights(8), "conv_weight": np.ones((5, 4, 3, 3), np.float32)}},
            r"shape \[5, 6, 3, 3\] here, got",
        ),
        ({"variant": "book"}, "variant=book"),
        ({"grid": None}, r"needs the grid of .* at block 3 it is unknown"),
        ({"grid": (2, 4, 4)}, r"at block 3 it is \(2, 4, 4\)"),
    ],
)
def test_what_it_cannot_do_is_refused(change: dict[str, Any], message: str) -> None:
    options = {"weights": weights(8), "grid": GRID, **change}
    given = loops.arrays(33, 1)
    if (grid := options.pop("grid")) is not None:
        given["grid"] = grid
    with pytest.raises(MethodError, match=message):
        apply_method("tore", given, keep=9, block=3, **options)
