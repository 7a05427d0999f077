"""Tokens that leave inside a language model's prompt: the same that leave in torch, the same logits, caches and next token."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tokenrt
from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import SPAN, TOKENS
from tests.passes.helpers.running import run, session
from tokenrt import Budget

SPANNED = "{}:{}".format(*SPAN)
COUNTS = {0: 17, 1: 13}
CLOSE = 1e-5
MATRIX = [
    pytest.param(*case, marks=() if case == ("llama", "embeds", 20, "per-layer") else pytest.mark.slow)
    for case in product(prefill.FAMILIES, ("embeds", "ids", "mask"), (20, 23), ("per-layer", "gathered"))
]


def pruned(path: Path, counts: dict[int, int], **more: Any) -> tokenrt.Reduced:
    budget = Budget.tokens([*counts.values()], [*counts])
    return tokenrt.reduce(
        path, **{"method": "fastv", "budget": budget, "span": SPANNED, "site": "after-block", **more}
    )


def outputs(model: Any, given: dict[str, Any]) -> dict[str, np.ndarray]:
    made = session(model)
    names = [value.name for value in made.get_outputs()]
    return dict(zip(names, run(made, {name: value.numpy() for name, value in given.items()}), strict=True))


@pytest.mark.parametrize(("family", "form", "opset", "cache"), MATRIX)
def test_it_is_what_torch_gives(family: str, form: str, opset: int, cache: str, tmp_path: Path) -> None:
    given, target = prefill.inputs(form), tmp_path / "pruned.onnx"
    pruned(prefill.exported(family, form, opset), COUNTS, cache=cache, output=target)
    found = outputs(target, given)
    wanted = prefill.judged(family, form, given, COUNTS, gathered=cache == "gathered")
    assert (found["kept_index"] == wanted.kept).all()
    caches = [found[name] for name in prefill.CACHES]
    lengths = [24, 17, 13] if cache == "per-layer" else [13] * 3
    assert [part.shape[2] for part in caches] == [length for length in lengths for _ in range(2)]
    for mine, theirs in zip((found["logits"], *caches), (wanted.logits, *wanted.caches), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=CLOSE)
    told = json.loads((tmp_path / "pruned.onnx.json").read_text())["cache"]
    assert (told["form"], told["next_position"]) == (cache, TOKENS)
    assert [layer["tokens"] for layer in told["layers"]] == lengths
    assert [layer[part] for layer in told["layers"] for part in ("key", "value")] == prefill.CACHES
    after = prefill.decoded(family, wanted.caches, told["next_position"])
    np.testing.assert_allclose(prefill.decoded(family, caches, told["next_position"]), after, atol=CLOSE)
    assert np.abs(prefill.decoded(family, caches, wanted.kept.shape[1]) - after).max() > 100 * CLOSE
