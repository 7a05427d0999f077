"""HiRED and HoloV beyond the recorded cases: regions of the grid, totals that are always K, protected tokens, several images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.errors import MethodError, PlanError

BACKENDS = ["numpy", "onnxruntime"]


def attention(batch: int, tokens: int, seed: int) -> Any:
    return np.random.default_rng(seed).dirichlet(np.ones(tokens), (batch, 2)).astype(np.float32)


def crops(batch: int, protect: int, height: int, width: int, tiles: int) -> dict[str, Any]:
    tokens = protect + (1 + tiles) * height * width
    return {
        "x": np.random.default_rng(0).standard_normal((batch, tokens, 3)).astype(np.float32),
        "cls_attn": attention(batch, tokens, 1),
        "early_cls_attn": attention(batch, tokens, 2),
        "grid": (1 + tiles, height, width),
    }


def shares(marks: Any, total: int, most: int) -> Any:
    """Largest remainders by whole numbers."""
    down, left = np.divmod(marks * total, marks.sum())
    down[np.argsort(-left, kind="stable")[: total - down.sum()]] += 1
    return np.minimum(down, most)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("protect", [0, 1])
@pytest.mark.parametrize(("keep", "alpha"), [(33, 0.5), (50, 0.3), (60, 0.5), (12, 0.0)])
def test_hired_shares_among_the_regions_that_the_tiles_show(
    keep: int, alpha: float, protect: int, backend: str
) -> None:
    height, width, rows, columns = 4, 6, 2, 2
    given = crops(2, protect, height, width, rows * columns)
    each = height * width
    found = apply_method(
        "hired", given, keep=protect + keep, protect=protect, class_token=True, alpha=alpha, backend=backend
    )["index"]
    for image, kept in enumerate(found):
        late, early = (given[name][image].mean(axis=0)[protect:] for name in ("cls_attn", "early_cls_attn"))
        thumbnail = max(min(int(keep * alpha), each), keep - rows * columns * each)
        marked = np.zeros(each, int)
        marked[np.argsort(-early[:each], kind="stable")[: int(each * (1 - alpha))]] = 1
        regions = marked.reshape(rows, height // rows, columns, width // columns).sum(axis=(1, 3)).ravel()
        quota = [thumbnail, *shares(regions, keep - thumbnail, each)]
        assert sum(quota) == keep
        best = [
            np.sort(np.argsort(-late[crop * each : (crop + 1) * each], kind="stable")[:count]) + crop * each
            for crop, count in enumerate(quota)
        ]
        wanted = np.concatenate([np.arange(protect), np.concatenate(best).astype(int) + protect])
        np.testing.assert_array_equal(kept, wanted)


def test_hired_says_what_does_not_fit() -> None:
    given = crops(1, 0, 4, 6, 4)
    with pytest.raises(PlanError, match="120 tokens are not 7 crops"):
        apply_method("hired", given, keep=30, protect=0, class_token=True, crops=7)
    with pytest.raises(PlanError, match="rows=3 of method 'hired': 4 tiles"):
        apply_method("hired", given, keep=30, protect=0, class_token=True, rows=3)
    six = crops(1, 0, 4, 6, 5)
    with pytest.raises(PlanError, match="24 tokens of the thumbnail do not split into 5"):
        apply_method("hired", six, keep=30, protect=0, class_token=True, variant="reference")
    with pytest.raises(MethodError, match="needs the grid"):
        apply_method("hired", given | {"grid": (12, 10)}, keep=30, protect=0, class_token=True, crops=5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ["position", "score"])
def test_holov_keeps_whole_stretches_and_fills_up_with_the_best_others(order: str, backend: str) -> None:
    attn = np.full((1, 1, 40), 1e-3, np.float32)
    attn[0, 0, :10] = np.linspace(0.2, 0.1, 10)
    attn[0, 0, 31] = 2e-3
    x = np.random.default_rng(0).standard_normal((1, 40, 8)).astype(np.float32)
    given = {"x": x, "cls_attn": attn}
    options: dict[str, Any] = {"keep": 12, "protect": 0, "class_token": True, "parts": 4, "order": order}
    paper = apply_method("holov", given, backend=backend, **options)
    np.testing.assert_array_equal(paper["index"][0], [*range(11), 31])
    assert (paper["size"] == 1).all()
    release = apply_method("holov", given, backend=backend, variant="reference", **options)
    np.testing.assert_array_equal(release["index"][0][:10], np.arange(10))
    np.testing.assert_array_equal(release["size"][0, :, 0], [1] * 10 + [0] * 2)
    np.testing.assert_array_equal(release["tokens"][0, 10:], 0)
    np.testing.assert_array_equal(release["assign"][0], [*range(10), *[-1] * 30])


@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_variety_decides_in_the_paper_alone(variant: str) -> None:
    """Equal attention: only how much its cosines vary sets one stretch apart from another."""
    x = np.ones((1, 32, 4), np.float32)
    x[0, 8:12] = -1
    given = {"x": x, "cls_attn": np.full((1, 1, 32), 1 / 32, np.float32)}
    options: dict[str, Any] = {"keep": 16, "protect": 0, "class_token": True, "parts": 4, "alpha": 1.0}
    kept = apply_method("holov", given, variant=variant, **options)["index"][0] // 8
    counts = np.bincount(kept, minlength=4)
    assert (counts[1] > 4) == (variant == "paper")
    assert counts.sum() == 16


def test_globalcom2_leaves_the_border_of_a_picture_out() -> None:
    given = crops(2, 1, 6, 6, 4) | {"importance": attention(2, 181, 5).sum(axis=1)}
    options: dict[str, Any] = {"keep": 60, "width": 900, "height": 600, "score": "importance"}
    del given["early_cls_attn"]
    whole = apply_method("globalcom2", given, **options)["index"]
    for kept in whole:
        place = kept[(kept > 36)] - 37
        row = place // 72 * 6 + place % 36 // 6
        assert ((row >= 2) & (row < 10)).all()
        assert len(set(place // 36)) == 4


def test_globalcom2_says_what_does_not_fit() -> None:
    given = {"x": np.zeros((1, 12, 2), np.float32), "cls_attn": attention(1, 12, 0)}
    with pytest.raises(PlanError, match="12 tokens are not 5 crops of 2 x 2"):
        apply_method("globalcom2", given | {"grid": (3, 2, 2)}, keep=6, protect=0, crops=5)
    with pytest.raises(PlanError, match="1 x 5 crops are more than a thumbnail of 1 x 2 shows"):
        apply_method("globalcom2", given | {"grid": (6, 1, 2)}, keep=6, protect=0)
    with pytest.raises(MethodError, match="needs the grid"):
        apply_method("globalcom2", given, keep=6, protect=0)
