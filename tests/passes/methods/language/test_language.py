"""Methods inside a language model: plain loops for what no vectors tell, later sites, and what cannot be done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance.helpers import given
from tokenrt import Budget, apply_method, reduce
from tokenrt.errors import MethodError, PlanError
from tokenrt.passes import methods
from tokenrt.perf.bench.plain_vit import PlainViT

BACKENDS = ("numpy", "onnxruntime")


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_catp_keeps_what_gains_attention_and_resembles_the_question(backend: str) -> None:
    options = given.call(methods.get("catp_inner"), 20, 9, 2, 2)
    tensors = options["tensors"]
    del tensors["size"]
    found = apply_method("catp_inner", backend=backend, **options)
    shown = tensors["text_mask"][..., None] if "text_mask" in tensors else 1
    mean = (tensors["text"] * shown).sum(1) / np.sum(shown * np.ones_like(tensors["text"][..., :1]), axis=1)
    cosine = np.einsum("bnc,bc->bn", unit(tensors["x"]), unit(mean))
    now, then = (tensors[name][:, :, -1].mean(1) for name in ("text_attn", "before_text_attn"))
    for score, of in ((np.maximum(now - then, 0) + 0.6 * cosine, "examples"), (cosine, "question")):
        found = apply_method("catp_inner", backend=backend, of=of, **options)
        for row, own in zip(found["index"], score, strict=True):
            assert row.tolist() == [0, 1, *(2 + np.sort(np.argsort(-own[2:], kind="stable")[:7]))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_words_alone_go_on(backend: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 12, 4)).astype(np.float32)
    found = apply_method("todre_late", {"x": x}, keep=5, protect=5, backend=backend)
    np.testing.assert_array_equal(found["tokens"], x[:, :5])
    assert found["assign"].tolist() == [[0, 1, 2, 3, 4] + [-1] * 7] * 2
    with pytest.raises(PlanError, match="drops all 7 tokens that may leave, and 1 of them are to stay"):
        apply_method("todre_late", {"x": x}, keep=6, protect=5)
    with pytest.raises(PlanError, match="would leave nothing"):
        apply_method("todre_late", {"x": x}, keep=0, protect=0)


def test_sparsevlm_hands_its_raters_on() -> None:
    """Of a second site the embeddings are not asked for."""
    method = methods.get("sparsevlm")
    first = given.call(method, 60, 30, 0, 1)
    del first["tensors"]["size"]
    made = apply_method("sparsevlm", **first)
    tensors = {"x": made["tokens"], "text_attn": given.shares(np.random.default_rng(1), 1, 30)}
    state = {"raters": made["state_raters"]}
    later = apply_method("sparsevlm", tensors, keep=12, protect=0, state=state)
    np.testing.assert_array_equal(later["state_raters"], made["state_raters"])
    with pytest.raises(MethodError, match="needs the tensor text"):
        apply_method("sparsevlm", tensors, keep=12, protect=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 20}, "leaves at least 21 of 30 tokens"),
        ({"clusters": 3, "keep": 28}, "makes clusters=3 of the 2 tokens that go; keep 27 or fewer"),
        ({"version": "2"}, "heads of an even width, and here it is 1 or unknown"),
        ({"base": 0.0}, "base=0.0 of method 'sparsevlm': expected more than 0"),
    ],
)
def test_what_sparsevlm_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(0)
    x, words = (rng.standard_normal((1, count, 4)).astype(np.float32) for count in (30, 5))
    tensors = {"x": x, "text": words, "text_attn": given.shares(rng, 1, 30)}
    with pytest.raises((MethodError, PlanError), match=message):
        apply_method("sparsevlm", tensors, **{"keep": 12, "protect": 0} | options)


def test_newlines_of_rows_that_do_not_fit_are_refused() -> None:
    tensors = {"x": np.zeros((1, 16, 2), np.float32), "importance": np.zeros((1, 16), np.float32)}
    with pytest.raises(PlanError, match="16 unprotected tokens are not whole rows of 5"):
        apply_method("lrs_vqa", tensors, keep=8, protect=0, row=5)
    with pytest.raises(MethodError, match="or the tokens of a row with --set row=R"):
        apply_method("lrs_vqa", tensors, keep=8, protect=0)


def test_every_count_is_kept_tokens_and_the_clusters_of_the_rest() -> None:
    split = methods.get("sparsevlm")()._split  # type: ignore[attr-defined]
    from tokenrt.passes.methods.contract import Site

    for total, made, kept, count in [(576, 309, 300, 9), (309, 204, 200, 4), (204, 113, 110, 3)]:
        assert split(Site(total, made, 0, 1, 1)) == (kept, count)
    fewest = methods.get("sparsevlm")().fewest
    for total in range(3, 80):
        for made in range(fewest(total, 0), total):
            kept, count = split(Site(total, made, 0, 1, 1))
            assert kept > 0
            assert kept + count == made


def test_the_fifth_word_from_the_end_is_the_one_that_is_matched() -> None:
    options = given.call(methods.get("corematching"), 30, 12, 1, 1)
    tensors = options["tensors"]
    del tensors["size"]
    score = ((tensors["neurons"] > 0) & (tensors["text_neurons"][:, -5:-4] > 0)).sum(-1)[0]
    found = apply_method("corematching", **options)
    assert found["index"][0].tolist() == [0, *(1 + np.sort(np.argsort(-score[1:], kind="stable")[:11]))]
    words = tensors["text_neurons"].shape[1]
    with pytest.raises(PlanError, match=f"word={words}, and the text has {words} words"):
        apply_method("corematching", word=words, **options)


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).pending])
def test_what_runs_on_arrays_is_not_written_into_a_model(name: str, tmp_path: Path) -> None:
    form = PlainViT(width=32, heads=2, blocks=2, patch=8, image=32, classes=5)
    model = form.write(tmp_path / "tiny.onnx")
    with pytest.raises(MethodError, match=f"method '{name}' runs on arrays alone"):
        reduce(model, method=name, budget=Budget.tokens([9], [0]), output=tmp_path / "r.onnx")
    with pytest.raises(MethodError, match="runs on arrays alone"):
        reduce(model, method=name, budget=Budget.tokens([9]), site="output", output=tmp_path / "r.onnx")
    assert not (tmp_path / "r.onnx").exists()
