"""Layers that see a window, as most of Gemma3's: their masks go on by position, and what their caches hold never leaves."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import tokenrt
from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import CACHES, TOKENS, WINDOW
from tests.passes.prefill.test_prefill import CLOSE, outputs, pruned, same

HELD = WINDOW - 1
SPAN = (4, TOKENS - HELD)
COUNTS = {0: 17, 1: 13}


@pytest.mark.parametrize(
    ("opset", "site"),
    [
        pytest.param(*case, marks=() if case == (20, "after-block") else pytest.mark.slow)
        for case in product((20, 23), ("after-block", "after-attention"))
    ],
)
def test_windows_are_followed_by_position(opset: int, site: str, tmp_path: Path) -> None:
    """A token sees those of its window that are left, and no others in the place of those that are not."""
    given, target = prefill.inputs("embeds"), tmp_path / "pruned.onnx"
    path, span = prefill.exported("gemma3", "embeds", opset), "{}:{}".format(*SPAN)
    pruned(path, COUNTS, span=span, site=site, output=target)
    found, wanted = outputs(target, given), prefill.judged("gemma3", "embeds", given, COUNTS, span=SPAN)
    assert (found["kept_index"] == wanted.kept).all()
    same(found, wanted)
    assert [found[name].shape[2] for name in CACHES] == [HELD, HELD, 17, 17, HELD, HELD]
    whole = prefill.judged("gemma3", "embeds", given, {}, span=SPAN)
    assert np.abs(found["logits"] - whole.logits).max() > 100 * CLOSE
    told = json.loads((tmp_path / "pruned.onnx.json").read_text())["cache"]
    assert told["next_position"] == TOKENS
    assert [(each["layer"], each["tokens"]) for each in told["layers"]] == [(1, 17)]
    assert told["windows"] == [
        {"layer": layer, "key": key, "tokens": HELD, "first": TOKENS - HELD, "value": value}
        for layer, key, value in ((0, *CACHES[:2]), (2, *CACHES[4:]))
    ]
    after = prefill.decoded("gemma3", wanted.caches, TOKENS)
    caches = [found[name] for name in CACHES]
    np.testing.assert_allclose(prefill.decoded("gemma3", caches, told["next_position"]), after, atol=CLOSE)
    assert np.abs(prefill.decoded("gemma3", caches, wanted.kept.shape[1]) - after).max() > 100 * CLOSE
    assert tokenrt.check(path, target, samples=1).ok


def test_what_a_window_s_cache_holds_never_leaves() -> None:
    """Not even where the span says so."""
    path = prefill.exported("gemma3", "embeds", 20)
    (view,) = tokenrt.inspect(path).transformers
    assert [guard.first for guard in view.guards] == [TOKENS - 1, TOKENS - HELD]
    kept = outputs(pruned(path, {0: 13}, span="4:20").model, prefill.inputs("embeds"))["kept_index"][0]
    assert {*kept} >= {*range(4), *range(TOKENS - HELD, TOKENS)}
