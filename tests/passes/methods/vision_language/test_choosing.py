"""Methods that choose one by one, against plain loops over the published rule; and what they say when something is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tokenrt import apply_method
from tokenrt.errors import MethodError

BACKENDS = ["numpy", "onnxruntime"]


def drawn(batch: int, tokens: int, width: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, tokens, width)).astype(np.float32),
        "text": rng.standard_normal((batch, 4, width)).astype(np.float32),
        "importance": rng.random((batch, tokens)).astype(np.float32),
        "cls_attn": rng.dirichlet(np.ones(tokens), (batch, 2)).astype(np.float32),
    }


def cosines(rows: Any, others: Any) -> Any:
    unit, other = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, others))
    return (unit @ other.T).astype(np.float64)


def one_by_one(count: int, tokens: int, value: Any) -> list[int]:
    """The greedy rule: each time the token of largest value(chosen, token)."""
    chosen: list[int] = []
    for _ in range(count):
        left = [token for token in range(tokens) if token not in chosen]
        chosen.append(max(left, key=lambda token: value([*chosen, token])))
    return chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_todre_sums_the_cosines_to_all_that_are_chosen(backend: str) -> None:
    given = drawn(2, 21, 6)
    options: dict[str, Any] = {"keep": 9, "protect": 1, "order": "score", "backend": backend}
    found = apply_method("todre", given, **options)["index"]
    for image, kept in enumerate(found):
        attention = given["cls_attn"][image].mean(axis=0)[1:]
        cosine = cosines(given["x"][image, 1:], given["x"][image, 1:])
        chosen = [int(np.argmax(attention))]
        while len(chosen) < 8:
            total = cosine[:, chosen].sum(axis=1)
            total[chosen] = np.inf
            chosen.append(int(np.argmin(total)))
        np.testing.assert_array_equal(kept, [0, *(np.array(chosen) + 1)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text_weight", [0.0, 0.7, 5.0])
def test_catp_covers_the_picture_and_resembles_the_text(text_weight: float, backend: str) -> None:
    given = drawn(2, 14, 6, seed=3)
    options: dict[str, Any] = {"keep": 5, "protect": 0, "order": "score", "backend": backend}
    found = apply_method("catp", given, text_weight=text_weight, **options)["index"]
    for image, kept in enumerate(found):
        rows, text = given["x"][image], given["text"][image].mean(axis=0)[None]
        alike, asked = (1 + cosines(rows, rows)) / 2, (1 + cosines(rows, text)[:, 0]) / 2

        def value(chosen: list[int], alike: Any = alike, asked: Any = asked) -> float:
            return float(alike[:, chosen].max(axis=1).sum() + text_weight * asked[chosen].sum())

        np.testing.assert_array_equal(kept, one_by_one(5, 14, value))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["authors", "blend", "exp"])
def test_cdpruner_chooses_what_adds_most_to_the_determinant(form: str, backend: str) -> None:
    given = drawn(2, 12, 16, seed=5)
    given["patch_stream"] = given["x"] + 1
    options: dict[str, Any] = {"keep": 6, "protect": 0, "order": "score", "split": False, "backend": backend}
    found = apply_method("cdpruner", given, form=form, **options)["index"]
    for image, kept in enumerate(found):
        rows = given["x"][image]
        text = given["text"][image]
        if form == "authors":
            asked = -cosines(rows + 1, text).mean(axis=1)
        else:
            asked = cosines(rows, text.mean(axis=0)[None])[:, 0]
        rated = (asked - asked.min() + (1e-6 if form == "authors" else 0)) / (asked.max() - asked.min())
        rated = np.exp(rated / 2) if form == "exp" else rated
        cosine, pairs = cosines(rows, rows), rated[:, None] * rated
        kernel = cosine * (0.5 + 0.5 * pairs if form == "blend" else pairs)

        def value(chosen: list[int], kernel: Any = kernel) -> float:
            return float(np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1])

        np.testing.assert_array_equal(kept, one_by_one(6, 12, value))


@pytest.mark.parametrize("backend", BACKENDS)
def test_cdpruner_goes_on_with_the_first_tokens_once_the_rank_is_used_up(backend: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 20, 3)).astype(np.float32)
    given = {"x": x, "text": rng.standard_normal((1, 2, 3)).astype(np.float32)}
    options: dict[str, Any] = {"keep": 9, "protect": 0, "order": "score", "split": False, "backend": backend}
    chosen = apply_method("cdpruner", given, weight=0.2, **options)["index"][0]
    found = np.array([token for token in range(20) if token not in chosen[:6]])
    assert len({*chosen}) == 9
    if backend == "numpy":  # 3 x 3 products of rows are the rank: 1 - w of cosines, and weighted ones
        np.testing.assert_array_equal(chosen[6:], found[:3])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", ["received", "class"])
def test_fopru_keeps_whole_rows_and_the_best_of_the_others(score: str, backend: str) -> None:
    rng = np.random.default_rng(0)
    attn = rng.dirichlet(np.ones(31), (2, 3, 31)).astype(np.float32)
    given = {"x": rng.standard_normal((2, 31, 2)).astype(np.float32), "attn": attn, "grid": (5, 6)}
    for keep in (13, 16, 31):
        found = apply_method("fopru", given, keep=keep, form="row", score=score, backend=backend)["index"]
        for image, kept in enumerate(found):
            rated = attn[image].mean(axis=(0, 1)) if score == "received" else attn[image, :, 0].mean(axis=0)
            rows = rated[1:].reshape(5, 6)
            best = np.argsort(-rows.sum(axis=1), kind="stable")[: (keep - 1) // 6]
            whole = np.isin(np.repeat(np.arange(5), 6), best)
            lifted = rated[1:] + 2 * whole
            wanted = np.sort(np.argsort(-lifted, kind="stable")[: keep - 1]) + 1
            np.testing.assert_array_equal(kept, [0, *wanted])


@pytest.mark.parametrize(
    "name",
    ["cosine", "geoprune", "rate", "scope", "idpruner", "catp", "dart", "zoo_prune", "hiprune", "holov"],
)
def test_padding_leaves_first(name: str) -> None:
    given = drawn(2, 40, 6, seed=2)
    given["size"] = np.ones((2, 40, 1), np.float32)
    given["size"][0, 33:] = given["size"][1, ::7] = 0
    options: dict[str, Any] = {"keep": 30, "protect": 0, "class_token": True}
    if name == "hiprune":
        given |= {"middle_cls_attn": given["cls_attn"], "grid": (5, 8)}
        options |= {"score": "class", "anchors": 5}
    if name == "zoo_prune":
        options["projector"] = lambda op, tokens: op("Tanh", tokens)
    found = apply_method(name, given, **options)["index"]
    assert all(given["size"][image, kept].all() for image, kept in enumerate(found))


def test_idpruner_in_parallel_takes_the_best_of_one_state() -> None:
    given = drawn(1, 30, 8, seed=4)
    options: dict[str, Any] = {"keep": 7, "protect": 0, "order": "score", "balance": 0.6}
    found = apply_method("idpruner", given, parallel=3, **options)["index"][0]
    rated = given["importance"][0].astype(np.float64)
    rated = (rated - rated.min()) / (rated.max() - rated.min() + 1e-6)
    cosine, chosen = cosines(given["x"][0], given["x"][0]), list[int]()
    for count in (3, 3, 1):
        value = 0.6 * rated - (0.4 * cosine[:, chosen].max(axis=1) if chosen else 0)
        value[chosen] = -np.inf
        chosen += np.argsort(-value, kind="stable")[:count].tolist()
    np.testing.assert_array_equal(found, chosen)


def test_with_balance_one_idpruner_goes_by_importance_alone() -> None:
    given = drawn(1, 30, 8, seed=4)
    found = apply_method("idpruner", given, keep=7, protect=0, order="score", balance=1.0)["index"][0]
    np.testing.assert_array_equal(found, np.argsort(-given["importance"][0], kind="stable")[:7])


@pytest.mark.parametrize("kept", [5, 9, 20])
@pytest.mark.parametrize("form", ["paper", "angelslim", "edgellm"])
def test_pivots_of_dart_take_as_many_as_are_wanted(kept: int, form: str) -> None:
    found = apply_method("dart", drawn(2, 24, 6), keep=kept, protect=0, form=form)["index"]
    assert (np.diff(found, axis=1) > 0).all()
    assert found.shape == (2, kept)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("zoo_prune", {}, "carries tokens through the projector: pass it as projector"),
        ("idpruner", {"balance": -0.1}, "balance=-0.1 of method 'idpruner': expected 0 to 1"),
        ("scope", {"alpha": 5.0}, "alpha=5.0 of method 'scope': expected 0 to 4"),
        ("dart", {"turns": "0,1"}, "turns=0,1 of method 'dart': expected each of 0 to 7 once"),
        ("cdpruner", {"weight": 1.5}, "weight=1.5 of method 'cdpruner': expected 0 to 1"),
        ("catp", {"text_weight": -1.0}, "text_weight=-1.0 of method 'catp'"),
        ("vispruner", {"important": 2.0}, "important=2.0 of method 'vispruner'"),
        ("embedlens", {}, "method 'embedlens' needs trained weights"),
        ("prumerge", {"score": "joined", "protect": 0}, "score=joined needs the class token's own query"),
    ],
)
def test_what_is_wrong_or_missing_is_said(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        apply_method(name, drawn(1, 20, 6), keep=12, **options)


def test_of_one_token_kept_of_halves_the_second_half_has_it() -> None:
    found = apply_method("cdpruner", drawn(3, 20, 6), keep=1, protect=0)["index"]
    assert (found >= 10).all()


def test_hiprune_keeps_all_the_anchors_that_its_share_asks_for() -> None:
    given = {"x": np.zeros((1, 64, 2), np.float32), "grid": (8, 8)}
    rng = np.random.default_rng(0)
    given |= {
        name: rng.dirichlet(np.ones(64), (1, 1)).astype(np.float32)
        for name in ("cls_attn", "middle_cls_attn")
    }
    options: dict[str, Any] = {"keep": 60, "protect": 0, "class_token": True, "score": "class", "alpha": 0.8}
    kept = apply_method("hiprune", given, **options)["index"][0]
    assert {*np.argsort(-given["middle_cls_attn"][0, 0], kind="stable")[:10]} <= {*kept}
