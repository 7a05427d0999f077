"""What stands behind the mask must not matter: outputs at real words do not depend on the ids of hidden ones."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.helpers.running import Variant, dynamo, feeds, original, run, session
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

HIDDEN = (0, 5, 20)
VARIANTS = [
    Variant("hf_bert"),
    Variant("hf_bert_eager"),
    dynamo("hf_bert", 23),
    Variant("hf_bert_eager", fused="transformers-mha"),
    dynamo("hf_bert", fused="onnxscript"),
]
METHODS = [
    ("tome", {}),
    ("topk", {}),
    ("topk", {"score": "key_norm"}),
    ("evit", {}),
    ("topk", {"score": "received"}),
    ("evit", {"score": "received"}),
    ("random", {}),
]


def padded(seed: int) -> dict[str, np.ndarray]:
    """Three rows with the last 0, 5 and 20 words hidden; the hidden ids come from `seed`."""
    given = feeds("hf_bert", len(HIDDEN))
    given["attention_mask"] = np.ones_like(given["attention_mask"])
    other = np.random.default_rng(seed)
    for row, hidden in enumerate(HIDDEN):
        start = given["input_ids"].shape[1] - hidden
        given["attention_mask"][row, start:] = 0
        given["input_ids"][row, start:] = other.integers(1, 50, hidden)
    return given


def visible(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """Everything but the hidden positions of outputs [B,N,C]."""
    shown = []
    for output in outputs:
        if output.ndim == 3:
            shown += [output[row, : output.shape[1] - hidden] for row, hidden in enumerate(HIDDEN)]
        else:
            shown.append(output)
    return shown


def drift(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))


CASES = [
    pytest.param(variant, *case, id="-".join(map(str, (variant, *case))), marks=marks)
    for variant in VARIANTS
    for case in METHODS
    for marks in [[] if variant is VARIANTS[0] or case in METHODS[:2] else [pytest.mark.slow]]
]


@pytest.mark.parametrize(("variant", "method", "options"), CASES)
def test_hidden_words_do_not_matter(variant: Variant, method: str, options: dict[str, str]) -> None:
    result = reduce(variant.path(), method=method, budget=Budget.remove(3), options=options)
    ready = session(result.model)
    one, *others = (visible(run(ready, padded(seed))) for seed in range(6))
    assert all(np.isfinite(output).all() for output in one)
    assert max(drift(one, other) for other in others) <= 1e-5


def test_the_model_itself_does_not_mind_them() -> None:
    one, other = (visible(run(original(Variant("hf_bert")), padded(seed))) for seed in (1, 2))
    assert drift(one, other) <= 1e-5


@pytest.mark.parametrize("method", ["tome", "topk", "evit", "slice"])
def test_a_row_with_one_word_stays_finite(method: str) -> None:
    result = reduce(Variant("hf_bert").path(), method=method, budget=Budget.remove(5))
    given = feeds("hf_bert", 2)
    given["attention_mask"][:, 1:] = 0
    assert all(np.isfinite(output).all() for output in run(result.model, given))


@pytest.mark.parametrize("method", ["tome", "topk", "evit"])
def test_padding_goes_first(method: str) -> None:
    """Removing no more than the padding leaves the real words as if nothing had been removed."""
    result = reduce(Variant("hf_bert").path(), method=method, budget=Budget.remove(3, [0, 1]))
    given = feeds("hf_bert", 3)
    hidden = 20
    given["attention_mask"][:] = 1
    given["attention_mask"][:, 32 - hidden :] = 0
    found, wanted = run(result.model, given), run(original(Variant("hf_bert")), given)
    assert drift([found[0][:, : 32 - hidden], found[1]], [wanted[0][:, : 32 - hidden], wanted[1]]) <= 1e-5
