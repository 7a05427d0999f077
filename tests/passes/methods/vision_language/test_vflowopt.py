"""VFlowOpt: the rule of the release, cell by cell, written once more with loops; entropies from the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError

BACKENDS = ("numpy", "onnxruntime")
ROWS, COLUMNS, C = 6, 7, 5


def given(protect: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    tokens = protect + ROWS * COLUMNS
    return {
        "x": rng.standard_normal((2, tokens, C)).astype(np.float32),
        "importance": rng.random((2, tokens)).astype(np.float32),
        "grid": (ROWS, COLUMNS),
    }


def recycled(x: Any, score: Any, kept: int, side: float) -> tuple[list[int], Any]:
    """As released: the best stay, the others share the tokens of the cells they are in; how many stay follows from K."""
    cells = [(int(i // COLUMNS // side), int(i % COLUMNS // side)) for i in range(len(x))]
    order = sorted(range(len(x)), key=lambda i: (-score[i], i))
    for best in range(len(x) + 1):
        rest = order[best:]
        used = sorted({cells[i] for i in rest})
        if best + len(used) == kept:
            rows = {i: x[i] for i in order[:best]}
            for cell in used:
                own = sorted(i for i in rest if cells[i] == cell)
                place = max(own, key=lambda i: (score[i], -i))
                rows[place] = sum(score[i] * x[i] for i in own) / sum(score[i] for i in own)
            return sorted(rows), np.array([rows[i] for i in sorted(rows)])
    raise AssertionError(kept)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(("kept", "side"), [(41, 2.5), (20, 2.5), (9, 2.5), (12, 2.0), (30, 6.5), (4, 4.0)])
def test_the_rest_of_each_cell_becomes_one_token(kept: int, side: float, protect: int, backend: str) -> None:
    tensors = given(protect)
    options: dict[str, Any] = {"score": "importance", "side": side}
    found = apply_method(
        "vflowopt", tensors, keep=protect + kept, protect=protect, backend=backend, **options
    )
    for image in range(2):
        x, score = (tensors[name][image, protect:].astype(np.float64) for name in ("x", "importance"))
        index, rows = recycled(x, score, kept, side)
        assert found["index"][image].tolist() == [*range(protect), *(protect + i for i in index)]
        np.testing.assert_allclose(found["tokens"][image, protect:], rows, atol=2e-6)
        assert found["size"][image].sum() == protect + ROWS * COLUMNS


@pytest.mark.parametrize("backend", BACKENDS)
def test_entropies_are_those_of_the_grey_values(backend: str) -> None:
    patch = 4
    tensors = given(0)
    tokens = ROWS * COLUMNS
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, ROWS * patch, COLUMNS * patch)) + 0.5
    tensors |= {
        "pixels": (pixels / 255).astype(np.float32),
        "attn": np.full((2, 1, tokens, tokens), 1 / tokens, np.float32),
    }
    options: dict[str, Any] = {"side": 0, "threshold": 0, "mean": 0, "deviation": 1}
    found = apply_method("vflowopt", tensors, keep=tokens - 1, protect=0, backend=backend, **options)
    grey = np.round(0.3333 * np.floor(pixels).sum(axis=1))
    for image in range(2):
        cells = grey[image].reshape(ROWS, patch, COLUMNS, patch).transpose(0, 2, 1, 3).reshape(tokens, -1)
        shares = [np.unique(cell, return_counts=True)[1] / cell.size for cell in cells]
        bits = np.array([-(share * np.log2(share)).sum() for share in shares])
        wanted = 1 / tokens + np.exp(bits) / np.exp(bits).sum()
        np.testing.assert_allclose(found["state_score"][image], wanted[found["index"][image]], rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_global_tokens_all_rows_count(backend: str) -> None:
    tensors = given(0)
    attn = np.random.default_rng(2).random((2, 2, 42, 42)).astype(np.float32)
    options: dict[str, Any] = {"side": 0, "entropy": "none", "threshold": 1e6}
    found = apply_method("vflowopt", tensors | {"attn": attn}, keep=20, protect=0, backend=backend, **options)
    wanted = np.sort(np.argsort(-attn.mean((1, 2)), axis=1)[:, :20], axis=1)
    np.testing.assert_array_equal(found["index"], wanted)


def test_too_few_tokens_for_the_cells_are_refused() -> None:
    with pytest.raises(PlanError, match=r"one token in each of 9 cells of side 2\.5"):
        apply_method("vflowopt", given(0), keep=8, protect=0, score="importance", side=2.5)
    with pytest.raises(MethodError, match="expected grids as in 27x27"):
        apply_method("vflowopt", given(0), keep=8, protect=0, grids="6,7")
    with pytest.raises(MethodError, match="needs the grid"):
        apply_method("vflowopt", given(0), keep=12, protect=0, score="importance", grids="6x6")
