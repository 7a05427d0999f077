"""Caches that stay as short while decoding: what one call hands on is what the next one takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenrt
from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import CACHES, LAYERS, TOKENS
from tests.passes.prefill.helpers import thinned
from tests.passes.prefill.helpers.thinned import CLOSE, KEEP, decoder, goes_on, indices, outputs
from tokenrt import Budget

NONE = {name: torch.zeros(1, 2, 0, 8) for name in prefill.PAST}
"""The past of a prompt."""


@pytest.mark.parametrize(
    ("method", "opset"),
    [
        ("h2o", 23),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("h2o", 20), ("keyformer", 20), ("keyformer", 23))
        ),
    ],
)
def test_scores_go_on_from_token_to_token(method: str, opset: int, tmp_path: Path) -> None:
    """A prompt, and five tokens behind it: what one call hands on is what the next one takes, as in a loop of torch.

    Keyformer's temperature rises from call to call, as an input.
    """
    given, merged = prefill.inputs("mask"), prefill.exported("llama", "merged", opset)
    prompt, step = tmp_path / "prompt.onnx", tmp_path / "step.onnx"
    wish: dict[str, Any] = {"method": method, "budget": Budget.tokens([KEEP])}
    warm = method == "keyformer"
    wish |= {"options": {"temperature": "input"}} if warm else {}

    def heat(call: int) -> dict[str, Any]:
        """What the model takes in a call."""
        return {
            f"temperature_layer{layer}": torch.full((1, 1), 1 + 0.2 * call) for layer in range(LAYERS) if warm
        }

    def heated(attention: torch.Tensor, call: int) -> torch.Tensor:
        """The softmax of logits that are divided by the temperature."""
        return (attention.log() / (1 + 0.2 * call)).softmax(-1) if warm else attention

    tokenrt.reduce(merged, **wish, shape=decoder(0, TOKENS), output=prompt)
    tokenrt.reduce(merged, **wish, shape=decoder(KEEP), output=step)
    told = json.loads((tmp_path / "step.onnx.json").read_text())["cache"]
    assert "next_position" not in told
    pairs = {layer["past_score"]: layer["present_score"] for layer in told["layers"]}
    latest = KEEP // 2 if method == "h2o" else int(KEEP * 0.3)
    found = outputs(prompt, given | NONE | heat(0))
    whole = thinned.watched("llama", lambda made: prefill.FORMS["mask"].function(made, *given.values()))
    scores, kept = list[torch.Tensor](), list[torch.Tensor]()
    for layer, attention in enumerate(whole.attention):
        total = thinned.by_keys(heated(attention, 0).sum(2), 2)
        index = thinned.heavy(total[0], KEEP, latest)[None]
        scores.append(total.gather(2, index))
        kept += [thinned.taken(part, index) for part in whole.caches[2 * layer : 2 * layer + 2]]
    generator = torch.Generator().manual_seed(5)
    for call, place in enumerate(range(TOKENS, TOKENS + 5), 1):
        embeds, at = torch.randn(1, 1, prefill.WIDTH, generator=generator), torch.tensor([[place]])
        seen = thinned.stepped("llama", kept, embeds, at)
        one = {
            "inputs_embeds": embeds,
            "attention_mask": torch.ones(1, KEEP + 1, dtype=torch.long),
            "position_ids": at,
            **heat(call),
        }
        past = {name: found[mine] for name, mine in zip(prefill.PAST, CACHES, strict=True)}
        past |= {before: found[after] for before, after in pairs.items()}
        found = outputs(step, one | past)
        np.testing.assert_allclose(found["logits"], seen.logits.numpy(), atol=CLOSE)
        made = [
            goes_on(score, heated(fresh, call), KEEP, latest)
            for score, fresh in zip(scores, seen.attention, strict=True)
        ]
        scores = [score for _, score in made]
        kept = [thinned.taken(part, made[n // 2][0]) for n, part in enumerate(seen.caches)]
        for layer, (index, score) in enumerate(made):
            np.testing.assert_array_equal(found[f"cache_index_layer{layer}"], index.numpy())
            np.testing.assert_allclose(found[f"present_score_layer{layer}"], score.numpy(), atol=CLOSE)
        for name, part in zip(CACHES, kept, strict=True):
            np.testing.assert_allclose(found[name], part.numpy(), atol=CLOSE)
    forgotten = outputs(step, one | past | {name: 0 * past[name] for name in pairs})
    assert any(
        (mine != theirs).any() for mine, theirs in zip(indices(forgotten), indices(found), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("side", ["in front", "behind"])
def test_padding_leaves_first_while_decoding(side: str, opset: int) -> None:
    """A prompt of 9 words among 24: new tokens take the places of padding until none is left, as if it never was there."""
    given, wish = prefill.inputs("mask"), {"method": "h2o", "budget": Budget.tokens([KEEP])}
    words = slice(15, 24) if side == "in front" else slice(0, 9)
    given["attention_mask"][:] = 0
    given["attention_mask"][:, words] = 1
    given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    prompt, step = (
        tokenrt.reduce(prefill.exported("llama", "merged", opset), **wish, shape=shape).model
        for shape in (decoder(0, TOKENS), decoder(KEEP))
    )
    found, mask = outputs(prompt, given | NONE), given["attention_mask"].numpy()
    alone = thinned.watched(
        "llama", lambda made: prefill.call(made, inputs_embeds=given["inputs_embeds"][:, words])
    )
    kept, scores = alone.caches, [thinned.by_keys(attention.sum(2), 2) for attention in alone.attention]
    generator = torch.Generator().manual_seed(6)
    for place in range(9, 15):
        mask = np.concatenate([np.take_along_axis(mask, found["cache_index_layer0"][:, 0], 1), [[1]]], 1)
        assert mask.sum() == min(place, KEEP) + 1
        embeds, at = torch.randn(1, 1, prefill.WIDTH, generator=generator), torch.tensor([[place]])
        past = {name: found[mine] for name, mine in zip(prefill.PAST, CACHES, strict=True)}
        past |= {f"past_score_layer{n}": found[f"present_score_layer{n}"] for n in range(LAYERS)}
        found = outputs(step, {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": at} | past)
        seen = thinned.stepped("llama", kept, embeds, at)
        np.testing.assert_allclose(found["logits"], seen.logits.numpy(), atol=CLOSE)
        kept = seen.caches
        if place < KEEP:
            scores = [
                torch.cat([score, torch.zeros(1, 2, 1)], 2) + thinned.by_keys(fresh.sum(2), 2)
                for score, fresh in zip(scores, seen.attention, strict=True)
            ]
            continue
        made = [
            goes_on(score, fresh, KEEP, KEEP // 2)
            for score, fresh in zip(scores, seen.attention, strict=True)
        ]
        scores = [score for _, score in made]
        kept = [thinned.taken(part, made[n // 2][0]) for n, part in enumerate(kept)]
        for name, part in zip(CACHES, kept, strict=True):
            np.testing.assert_allclose(found[name], part.numpy(), atol=CLOSE)
