"""Expedit against loops: cells, windows, rounds, restoration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.passes.methods.helpers import clusters, loops
from tokenrt import apply_method
from tokenrt.errors import MethodError

SETTINGS = {"iterations": 4, "temperature": 0.3, "window": 3, "recon_temperature": 0.2, "recon_k": 3}


def clustered(x: Any, grid: tuple[int, int], small: tuple[int, int], given: Any) -> tuple[Any, Any, Any]:
    """Centres [M,C], the last shares [M,T] and squared distances [T,M]."""
    (height, width), (rows, columns) = grid, small
    cells = [(i, j) for i in range(rows) for j in range(columns)]
    spots = [(y, x) for y in range(height) for x in range(width)]
    centers = []
    for i, j in cells:
        ys = range(i * height // rows, math.ceil((i + 1) * height / rows))
        xs = range(j * width // columns, math.ceil((j + 1) * width / columns))
        centers.append(np.mean([x[a * width + b] for a in ys for b in xs], axis=0))
    reach = given["window"] // 2
    shares = np.zeros((len(cells), len(spots)))
    for _ in range(given["iterations"]):
        shares[:] = 0
        for p, (a, b) in enumerate(spots):
            home = a * rows // height, b * columns // width
            near = [
                k
                for k, cell in enumerate(cells)
                if all(abs(u - v) <= reach for u, v in zip(cell, home, strict=True))
            ]
            shares[near, p] = clusters.softmax(
                [-given["temperature"] * clusters.square(x[p], centers[k]) for k in near]
            )
        centers = [row @ x / row.sum() for row in shares]
    apart = np.array([[clusters.square(token, center) for center in centers] for token in x])
    return np.array(centers), shares, apart


def affinity(apart: Any, given: Any, norm: str) -> Any:
    rows = []
    for row in apart:
        limit = sorted(row)[: given["recon_k"]][-1]
        weight = [math.exp(-given["recon_temperature"] * d) if d <= limit else 0.0 for d in row]
        length = sum(weight) if norm == "l1" else math.sqrt(sum(w * w for w in weight))
        rows.append([w / length for w in weight])
    return np.array(rows)


@pytest.mark.parametrize(("variant", "norm"), [("paper", "l1"), ("reference", "l2"), ("segmenter", "l2")])
def test_a_variant_decides_the_norm(variant: str, norm: str) -> None:
    given = loops.arrays(17, 2)
    given["grid"] = (4, 4)
    options: dict[str, Any] = {"keep": 5, "restore": True, "variant": variant}
    own = apply_method("expedit", given, **options)["affinity"][:, 1:]
    length = own.sum(axis=2) if norm == "l1" else np.sqrt((own**2).sum(axis=2))
    np.testing.assert_allclose(length, 1)
    other = apply_method("expedit", given, norm="l2" if norm == "l1" else "l1", **options)["affinity"][:, 1:]
    assert np.abs(own - other).max() > 0.1


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(
    ("grid", "small"),
    [
        ((1, 2), (1, 1)),
        ((3, 1), (2, 1)),
        ((4, 8), (2, 4)),
        ((5, 7), (3, 4)),
        ((8, 8), (5, 5)),
        ((6, 6), (5, 6)),
    ],
)
def test_equals_the_loops(grid: tuple[int, int], small: tuple[int, int], protect: int, norm: str) -> None:
    tokens, keep = math.prod(grid) + protect, math.prod(small) + protect
    given = loops.arrays(tokens, 1 if tokens % 2 else 3)
    given["grid"] = grid
    options: dict[str, Any] = {"keep": keep, "protect": protect, "rows": small[0], "norm": norm, **SETTINGS}
    for backend in loops.BACKENDS:
        found = apply_method("expedit", given, backend=backend, restore=True, **options)
        for image in range(len(given["x"])):
            x, size = given["x"][image], given["size"][image, :, 0]
            centers, shares, apart = clustered(x[protect:], grid, small, SETTINGS)
            close = {"atol": loops.CLOSE[backend]}
            np.testing.assert_allclose(found["tokens"][image, :protect], x[:protect], **close)
            np.testing.assert_allclose(found["tokens"][image, protect:], centers, **close)
            np.testing.assert_allclose(found["size"][image, protect:, 0], shares @ size[protect:], rtol=1e-4)
            np.testing.assert_array_equal(found["assign"][image, protect:], apart.argmin(1) + protect)
            matrix = found["affinity"][image]
            np.testing.assert_allclose(matrix[protect:, protect:], affinity(apart, SETTINGS, norm), **close)
            np.testing.assert_array_equal(matrix[:protect], np.eye(protect, keep))
            at = np.take_along_axis(shares, found["index"][image, protect:, None] - protect, axis=1)[:, 0]
            np.testing.assert_allclose(at, shares.max(1), rtol=1e-4)
            np.testing.assert_allclose(found["restored"][image], matrix @ found["tokens"][image], atol=1e-4)


def test_the_small_grid_takes_the_shape_of_the_tokens() -> None:
    given = loops.arrays(60, 1) | {"grid": (6, 10)}
    chosen = apply_method("expedit", given, keep=15, protect=0)
    np.testing.assert_array_equal(
        chosen["tokens"], apply_method("expedit", given, keep=15, protect=0, rows=3)["tokens"]
    )
    assert not np.allclose(
        chosen["tokens"], apply_method("expedit", given, keep=15, protect=0, rows=5)["tokens"]
    )


def test_variants_are_settings() -> None:
    given = loops.arrays(65, 1) | {"grid": (8, 8)}
    for variant, values in {"sam": (0.01, 5, 0.01, 20), "segmenter": (1.0, 7, 0.05, 3)}.items():
        named = dict(zip(("temperature", "window", "recon_temperature", "recon_k"), values, strict=True))
        found, spelled = (
            apply_method("expedit", given, keep=26, restore=True, **options)
            for options in ({"variant": variant}, named)
        )
        np.testing.assert_array_equal(found["tokens"], spelled["tokens"])
        np.testing.assert_array_equal(found["restored"], spelled["restored"])


def test_odd_numbers_and_equal_tokens() -> None:
    loops.survives_odd_numbers("expedit", 26, grid=(6, 6))
    loops.loses_nothing("expedit", 26, grid=(6, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"keep": 24},
            r"23 clusters out of 6 x 6 tokens; token counts that fit \(--tokens\): 19, 21, 25, 26",
        ),
        ({"keep": 26, "rows": 6}, r"25 clusters out of 6 x 6 tokens in 6 rows"),
        ({"grid": None}, r"needs the grid of .* at block 3 it is unknown; reduce once.*tensor grid"),
        ({"iterations": 0}, r"iterations=0 .* expected 1 or more"),
        ({"window": -1}, r"window=-1 .* expected 0 or more"),
        ({"norm": "l3"}, "norm=l3"),
        ({"variant": "dino"}, "variant=dino"),
    ],
)
def test_what_it_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    given = loops.arrays(37, 1)
    if "grid" not in options:
        given["grid"] = (6, 6)
    options = {key: value for key, value in options.items() if key != "grid"}
    with pytest.raises(MethodError, match=message):
        apply_method("expedit", given, block=3, **{"keep": 26, **options})
