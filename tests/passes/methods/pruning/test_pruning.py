"""TopK, EViT, random and slice: what stays, in which order, and what becomes of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.errors import MethodError
from tokenrt.passes import methods

RNG = np.random.default_rng(0)
B, N, C, H = 2, 12, 4, 3
X = RNG.standard_normal((B, N, C))
ATTN = RNG.random((B, H, N, N))
ATTN /= ATTN.sum(-1, keepdims=True)
KEYS = RNG.standard_normal((B, H, N, 5))


def best(score: Any, count: int, protect: int = 1) -> list[list[int]]:
    return [sorted((np.argsort(-row[protect:])[: count - protect] + protect).tolist()) for row in score]


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({}, ATTN[:, :, 0].mean(1)),
        ({"score": "class"}, ATTN[:, :, 0].mean(1)),
        ({"score": "received"}, ATTN.mean((1, 2))),
        ({"score": "key_norm"}, np.linalg.norm(KEYS.mean(1), axis=-1)),
    ],
    ids=["auto", "class", "received", "key_norm"],
)
def test_topk_keeps_the_best_in_position_order(options: dict[str, Any], score: Any) -> None:
    found = apply_method("topk", {"x": X, "attn": ATTN, "keys": KEYS}, keep=5, **options)
    assert found["index"].tolist() == [[0, *row] for row in best(score, 5)]
    np.testing.assert_array_equal(found["tokens"], np.take_along_axis(X, found["index"][:, :, None], 1))
    np.testing.assert_array_equal(found["size"], np.ones((B, 5, 1)))


def test_topk_without_a_class_token_reads_attention_received() -> None:
    found = apply_method("topk", {"x": X, "attn": ATTN}, keep=5, protect=0)
    assert found["index"].tolist() == best(ATTN.mean((1, 2)), 5, 0)
    with pytest.raises(MethodError, match="score=class needs a class token"):
        apply_method("topk", {"x": X, "attn": ATTN}, keep=5, protect=0, score="class")


def test_topk_in_published_order() -> None:
    found = apply_method("topk", {"x": X, "attn": ATTN}, keep=5, order="score")
    for row, score in zip(found["index"], ATTN[:, :, 0].mean(1), strict=True):
        assert row[0] == 0
        assert (np.diff(score[row[1:]]) <= 0).all()


def test_class_attention_comes_from_whatever_is_given() -> None:
    queries = RNG.standard_normal((B, H, N, 5))
    logits = queries @ KEYS.transpose(0, 1, 3, 2) / 5**0.5
    attn = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rows = {"cls_attn": attn[:, :, 0]}
    for given in (
        {"attn": attn},
        rows,
        {"cls_attn": attn[:, :, 0].mean(1)},
        {"queries": queries, "keys": KEYS},
    ):
        found = apply_method("topk", {"x": X, **given}, keep=6)
        assert found["index"].tolist() == [[0, *row] for row in best(attn[:, :, 0].mean(1), 6)]


def test_sizes_take_part_in_recomputed_attention_and_are_gathered() -> None:
    queries = RNG.standard_normal((B, H, N, 5))
    size = RNG.integers(1, 9, (B, N, 1)).astype(float)
    logits = queries @ KEYS.transpose(0, 1, 3, 2) / 5**0.5 + np.log(size).transpose(0, 2, 1)[:, None]
    attn = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = apply_method("topk", {"x": X, "queries": queries, "keys": KEYS, "size": size}, keep=6)
    assert found["index"].tolist() == [[0, *row] for row in best(attn[:, :, 0].mean(1), 6)]
    np.testing.assert_array_equal(found["size"], np.take_along_axis(size, found["index"][:, :, None], 1))


@pytest.mark.parametrize("order", ["position", "score"])
def test_evit_appends_the_weighted_sum_of_what_it_drops(order: str) -> None:
    found = apply_method("evit", {"x": X, "attn": ATTN}, keep=6, order=order)
    score = ATTN[:, :, 0].mean(1)
    assert found["tokens"].shape == (B, 6, C)
    assert found["index"].shape == (B, 5)
    assert [sorted(row[1:]) for row in found["index"].tolist()] == best(score, 5)
    for image in range(B):
        dropped = np.setdiff1d(np.arange(N), found["index"][image])
        np.testing.assert_allclose(found["tokens"][image, -1], score[image, dropped] @ X[image, dropped])


def test_evit_fused_token_stands_for_everything_dropped() -> None:
    size = RNG.integers(1, 9, (B, N, 1)).astype(float)
    found = apply_method("evit", {"x": X, "attn": ATTN, "size": size}, keep=6)
    np.testing.assert_allclose(found["size"].sum(axis=1), size.sum(axis=1))


def test_evit_takes_the_place_of_the_best_dropped_token() -> None:
    from tokenrt.passes.methods.contract import Site
    from tokenrt.passes.methods.tensors import TensorTaps
    from tokenrt.passes.ops.numpy_backend import NumpyOps

    op, site = NumpyOps(), Site(tokens=N, keep=6, protect=1, heads=H, width=5)
    reduction = methods.get("evit")().reduce(op, TensorTaps(op, {"x": X, "attn": ATTN}, site), site)
    score = ATTN[:, :, 0].mean(1)
    for image in range(B):
        dropped = np.setdiff1d(np.arange(N), reduction.position[image, :-1])
        assert reduction.position[image, -1] == dropped[np.argmax(score[image, dropped])]
        assert (reduction.assign[image, dropped] == -1).all()


def test_evit_without_fusing_is_topk() -> None:
    given = {"x": X, "attn": ATTN}
    evit, topk = apply_method("evit", given, keep=6, fuse=False), apply_method("topk", given, keep=6)
    for key in evit.keys() | topk.keys():
        np.testing.assert_array_equal(evit[key], topk[key])


def test_evit_counts_the_fused_token() -> None:
    evit = methods.get("evit")
    assert evit().after_keeping(kept=138, protect=1) == 140
    assert evit(fuse=False).after_keeping(kept=138, protect=1) == 139
    assert (evit().fewest(50, 1), evit(fuse=False).fewest(50, 1)) == (3, 2)


def test_random_is_seeded_by_run_and_block_and_the_same_for_every_image() -> None:
    drawn = apply_method("random", {"x": X}, keep=5)["index"]
    assert (drawn == drawn[:1]).all()
    assert (drawn[:, 0] == 0).all()
    assert (np.diff(drawn, axis=1) > 0).all()
    np.testing.assert_array_equal(drawn, apply_method("random", {"x": X}, keep=5)["index"])
    others = [
        apply_method("random", {"x": X}, keep=5, **change)["index"] for change in ({"seed": 1}, {"block": 1})
    ]
    assert all((other != drawn).any() for other in others)


def test_random_draws_every_token_alike() -> None:
    counts = np.zeros(N)
    for seed in range(400):
        counts[apply_method("random", {"x": X[:1]}, keep=5, seed=seed)["index"][0]] += 1
    assert counts[0] == 400
    assert abs(counts[1:] / 400 - 4 / 11).max() < 0.1


def test_slice_keeps_the_first() -> None:
    found = apply_method("slice", {"x": X}, keep=5, restore=True)
    np.testing.assert_array_equal(found["tokens"], X[:, :5])
    np.testing.assert_array_equal(found["restored"], X)
