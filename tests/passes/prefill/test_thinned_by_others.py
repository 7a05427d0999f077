"""Caches whose entries are chosen by what comes from outside: trained heads, a predictor, noise."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

import tokenrt
from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import CACHES, LAYERS, TOKENS
from tests.passes.prefill.helpers import thinned
from tests.passes.prefill.helpers.thinned import CLOSE, KEEP, outputs, padded
from tokenrt import Budget


@pytest.mark.parametrize(
    ("family", "opset"),
    [
        pytest.param(*case, marks=() if case == ("llama", 20) else pytest.mark.slow)
        for case in product(("llama", "phi3", "qwen3"), (20, 23))
    ],
)
def test_entries_that_trained_heads_rate_highest(family: str, opset: int) -> None:
    """Locret reads queries, keys and values in front of the rotation, as projections and norms give them."""
    generator = np.random.default_rng(4)
    first, last = (0.2 * generator.standard_normal(shape).astype(np.float32) for shape in ((6, 64), (2, 6)))
    form = "embeds" if family == "llama" else "ids"
    given = prefill.inputs(form)
    result = tokenrt.reduce(
        prefill.exported(family, form, opset),
        method="locret",
        budget=Budget.tokens([KEEP]),
        options={"stable": 2, "weights": {"fc1": first, "fc2": last}},
    )
    found = outputs(result.model, given)
    whole = thinned.watched(family, lambda made: prefill.FORMS[form].function(made, *given.values()))
    for layer, projected in enumerate(whole.projected):
        if family == "phi3":
            read = projected["qkv_proj"]
        else:
            parts = [projected[name].unflatten(2, (-1, 8)) for name in ("q_proj", "k_proj", "v_proj")]
            if family == "qwen3":
                norms = prefill.model(family).model.layers[layer].self_attn
                with torch.no_grad():
                    parts[:2] = norms.q_norm(parts[0]), norms.k_norm(parts[1])
            read = torch.cat([part.flatten(2) for part in parts], -1)
        hidden = torch.nn.functional.silu(read @ torch.from_numpy(first).T)
        score = (hidden @ torch.from_numpy(last).T).transpose(1, 2)
        index = thinned.heavy(score[0], KEEP, 2)
        np.testing.assert_array_equal(found[f"cache_index_layer{layer}"][0], index.numpy())
        scores = found[f"present_score_layer{layer}"][0]
        np.testing.assert_allclose(scores, score[0].gather(1, index).numpy(), atol=CLOSE)


def test_entries_that_a_trained_layer_calls_global() -> None:
    """Neural Attention Search reads what the attention of each layer reads, padding in front."""
    generator = np.random.default_rng(5)
    weights = {
        "types.weight": generator.standard_normal((6, 32)).astype(np.float32),
        "types.bias": generator.standard_normal(6).astype(np.float32),
    }
    given = padded()
    result = tokenrt.reduce(
        prefill.exported("qwen2", "mask", 23, batch=3),
        method="nats",
        budget=Budget.tokens([KEEP]),
        options={"window": 3, "weights": weights},
    )
    found = outputs(result.model, given)
    whole = thinned.watched("qwen2", lambda made: prefill.FORMS["mask"].function(made, *given.values()))
    for layer, hidden in enumerate(whole.hidden):
        rated = hidden @ torch.from_numpy(weights["types.weight"]).T + torch.from_numpy(weights["types.bias"])
        kinds = rated.unflatten(2, (3, 2)).permute(0, 3, 1, 2)
        score = kinds[..., 0] - kinds[..., 1:].amax(-1)
        for prompt, real in enumerate(given["attention_mask"]):
            there = real.nonzero()[:, 0]
            mine = found[f"cache_index_layer{layer}"][prompt]
            if len(there) < KEEP:
                np.testing.assert_array_equal(mine[:, -len(there) :], there.expand(2, -1).numpy())
                continue
            own = thinned.heavy(score[prompt][:, there], KEEP, 3)
            np.testing.assert_array_equal(mine, there[own].numpy())


def test_entries_that_a_predictor_finds_important() -> None:
    """TokenButler's predictor is a network beside the model: what it says is an input, and the cache stays whole."""
    given, generator = prefill.inputs("embeds"), np.random.default_rng(6)
    result = tokenrt.reduce(
        prefill.exported("llama", "embeds", 20),
        method="tokenbutler",
        budget=Budget.tokens([KEEP], [1]),
        options={"width": 4, "first": 1},
    )
    keys = generator.standard_normal((1, 2, TOKENS, 4)).astype(np.float32)
    asking = generator.standard_normal((1, 4, 1, 4)).astype(np.float32)
    found = outputs(result.model, given | {"predicted_keys_layer1": keys, "predicted_queries_layer1": asking})
    score = torch.from_numpy(asking[:, :, 0].reshape(1, 2, 2, 4).sum(2)[:, :, None] @ keys.swapaxes(2, 3))[
        :, :, 0
    ]
    score[..., 0] = torch.inf
    np.testing.assert_array_equal(found["salient_index_layer1"], thinned.top(score, KEEP).numpy())
    assert [found[name].shape[2] for name in CACHES] == [TOKENS] * 6


def test_noise_is_an_input_and_comes_in_the_model_s_own_order() -> None:
    given = prefill.inputs("mask", batch=3) | padded()
    noise = [np.random.default_rng([7, layer]).gumbel(size=(3, 4, TOKENS, TOKENS)) for layer in range(LAYERS)]
    named = {f"noise_layer{layer}": each.astype(np.float32) for layer, each in enumerate(noise)}
    result = tokenrt.reduce(
        prefill.exported("qwen2", "mask", 23, batch=3),
        method="keyformer",
        budget=Budget.tokens([KEEP]),
        options={"noise": "input"},
    )
    found = outputs(result.model, given | named)
    whole = thinned.watched("qwen2", lambda made: prefill.FORMS["mask"].function(made, *given.values()))
    for layer, attention in enumerate(whole.attention):
        for prompt, real in enumerate(given["attention_mask"][:2]):
            there = real.nonzero()[:, 0]
            own = attention[prompt][:, there][:, :, there].double().log()
            added = torch.from_numpy(named[f"noise_layer{layer}"][prompt])[:, there][:, :, there]
            share = (own + added).softmax(-1).float()
            index = thinned.heavy(thinned.by_keys(share[None].sum(2), 2)[0], KEEP, int(KEEP * 0.3))
            np.testing.assert_array_equal(found[f"cache_index_layer{layer}"][prompt], there[index].numpy())
