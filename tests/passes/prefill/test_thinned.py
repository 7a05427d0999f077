"""Caches that come out with some of their entries: those that torch keeps, the same keys and values, and the same next token."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import tokenrt
from tests.passes.helpers import grouped, prefill
from tests.passes.helpers.prefill import CACHES, LAYERS, TOKENS
from tests.passes.prefill.helpers import thinned
from tests.passes.prefill.helpers.thinned import CLOSE, KEEP, decoder, indices, outputs, padded
from tokenrt import Budget
from tokenrt.passes.planning.outputs.cache_site import CacheSite
from tokenrt.targets.rtx.builder import TENSORRT_RTX

MATRIX = [
    pytest.param(*case, marks=() if case == ("llama", "embeds", 20, "snapkv") else pytest.mark.slow)
    for case in (
        *product(("llama", "qwen2", "phi3", "gemma"), ["mask"], (20, 23), thinned.METHODS),
        *product(["llama"], ["embeds"], (20, 23), thinned.METHODS),
        *product(["qwen3"], ["ids"], (20, 23), ["snapkv"]),
        *product(["llama"], ["prefix"], (20, 23), ["snapkv", "h2o"]),
    )
]


@pytest.mark.parametrize(("family", "form", "opset", "method"), MATRIX)
def test_it_is_what_torch_keeps(family: str, form: str, opset: int, method: str, tmp_path: Path) -> None:
    given, target = prefill.inputs(form), tmp_path / "thin.onnx"
    options, choose = thinned.METHODS[method]
    tokenrt.reduce(
        prefill.exported(family, form, opset),
        method=method,
        budget=Budget.tokens([KEEP]),
        options=options,
        output=target,
    )
    found = outputs(target, given)
    whole = thinned.watched(family, lambda made: prefill.FORMS[form].function(made, *given.values()))
    np.testing.assert_allclose(found["logits"], whole.logits.numpy(), atol=CLOSE)
    told = json.loads((tmp_path / "thin.onnx.json").read_text())["cache"]
    assert told["next_position"] == TOKENS
    heads = whole.caches[0].shape[1]
    wanted = [thinned.chosen(choose, attention, KEEP, heads) for attention in whole.attention]
    thins = method != "zipcache"
    for mine, theirs in zip(indices(found, "cache_index" if thins else "salient_index"), wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())
    assert [layer["tokens"] for layer in told["layers"]] == [KEEP if thins else TOKENS] * LAYERS
    kept = [thinned.taken(part, wanted[n // 2]) if thins else part for n, part in enumerate(whole.caches)]
    for name, part in zip(CACHES, kept, strict=True):
        np.testing.assert_allclose(found[name], part.numpy(), atol=CLOSE)
    after = prefill.decoded(family, thinned.arrays(kept), TOKENS)
    mine = prefill.decoded(family, [found[name] for name in CACHES], told["next_position"])
    np.testing.assert_allclose(mine, after, atol=CLOSE)
    if thins:
        assert (
            np.abs(prefill.decoded(family, [found[name] for name in CACHES], KEEP) - after).max() > 10 * CLOSE
        )


@pytest.mark.parametrize(
    ("method", "opset"),
    [
        pytest.param(name, opset, marks=() if (name, opset) == ("snapkv", 23) else pytest.mark.slow)
        for name, opset in product(thinned.METHODS, (20, 23))
    ],
)
def test_padding_stays_only_where_all_else_does(method: str, opset: int) -> None:
    """Every prompt keeps what it keeps alone; what fills up a short one stands in front, and the next token is the same."""
    given, (options, choose) = padded(), thinned.METHODS[method]
    if method == "dycoke_cache":
        options, choose = (
            {"start": 2, "length": 0},
            lambda attention, keep, heads: thinned.dycoke(attention, keep, heads, 2, 99),
        )
    result = tokenrt.reduce(
        prefill.exported("qwen2", "mask", opset, batch=3),
        method=method,
        budget=Budget.tokens([KEEP]),
        options=options,
    )
    found = outputs(result.model, given)
    whole = thinned.watched("qwen2", lambda made: prefill.FORMS["mask"].function(made, *given.values()))
    real = given["attention_mask"]
    wanted = [thinned.chosen(choose, attention, KEEP, 2, real) for attention in whole.attention]
    if method == "zipcache":
        for mine, theirs in zip(indices(found, "salient_index"), wanted, strict=True):
            np.testing.assert_array_equal(mine, theirs.numpy())
        return
    for mine, theirs in zip(indices(found), wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())
    kept = [thinned.taken(part, wanted[n // 2]) for n, part in enumerate(whole.caches)]
    mask = torch.cat([real.gather(1, wanted[0][:, 0]), torch.ones(3, 1, dtype=torch.long)], 1)
    assert [int(row.sum()) for row in mask] == [KEEP + 1, KEEP + 1, 10]
    for number, name in enumerate(CACHES):
        shown = mask[:, None, :-1, None].bool().numpy()
        np.testing.assert_allclose(
            np.where(shown, found[name], 0), np.where(shown, kept[number].numpy(), 0), atol=CLOSE
        )
    embeds, places = (
        torch.randn(3, 1, prefill.WIDTH, generator=torch.Generator().manual_seed(3)),
        real.sum(1)[:, None],
    )
    mine, theirs = (
        thinned.stepped("qwen2", parts, embeds, places, mask).logits.numpy()
        for parts in ([torch.from_numpy(found[name]) for name in CACHES], kept)
    )
    np.testing.assert_allclose(mine, theirs, atol=CLOSE)
    alone = given["inputs_embeds"][2:, :9]
    short = thinned.watched("qwen2", lambda made: prefill.call(made, inputs_embeds=alone))
    np.testing.assert_allclose(
        mine[2], thinned.stepped("qwen2", short.caches, embeds[2:], places[2:]).logits.numpy()[0], atol=CLOSE
    )


@pytest.mark.parametrize("way", ["one plan", pytest.param("two reductions", marks=pytest.mark.slow)])
def test_caches_behind_a_pruned_prompt(way: str, tmp_path: Path) -> None:
    """Image tokens leave inside the model, then entries of what is left of them; indices are told in the prompt's tokens."""
    path, given, counts = prefill.exported("llama", "embeds", 20), prefill.inputs("embeds"), {0: 17, 1: 13}
    wish: dict[str, Any] = {
        "method": "fastv",
        "budget": Budget.tokens([17, 13], [0, 1]),
        "span": "4:18",
        "site": "after-block",
    }
    first, target = tmp_path / "pruned.onnx", tmp_path / "thin.onnx"
    if way == "one plan":
        lengths = enumerate((TOKENS, 17, 13))
        made = replace(
            tokenrt.plan(path, **wish),
            entries=tuple(CacheSite(layer, count, 10, "snapkv") for layer, count in lengths),
        )
        made.save(tmp_path / "plan.toml")
        tokenrt.reduce(path, plan=tmp_path / "plan.toml", output=target)
    else:
        tokenrt.reduce(path, **wish, output=first)
        tokenrt.reduce(first, method="snapkv", budget=Budget.tokens([10]), output=target)
    found, wanted = outputs(target, given), prefill.judged("llama", "embeds", given, counts)
    np.testing.assert_allclose(found["logits"], wanted.logits, atol=CLOSE)
    for layer, (attention, reached) in enumerate(zip(wanted.attention, wanted.reached, strict=True)):
        index = thinned.chosen(thinned.snapkv, attention, 10, 2)
        told = reached[:, None].expand(-1, 2, -1).gather(2, index)
        np.testing.assert_array_equal(found[f"cache_index_layer{layer}"], told.numpy())
        for name, part in zip(CACHES[2 * layer :], wanted.caches[2 * layer : 2 * layer + 2], strict=False):
            np.testing.assert_allclose(
                found[name], thinned.taken(torch.from_numpy(part), index).numpy(), atol=CLOSE
            )
    told = json.loads((tmp_path / "thin.onnx.json").read_text())["cache"]
    assert told["next_position"] == TOKENS
    assert [layer["index"] for layer in told["layers"]] == [
        f"cache_index_layer{layer}" for layer in range(LAYERS)
    ]


def test_a_decoder_of_fused_nodes() -> None:
    """As ONNX Runtime's model builder writes it; the second prompt is shorter, and a batch that stays free."""
    given = prefill.inputs("mask", batch=2)
    given["attention_mask"][1, -9:] = 0
    result = tokenrt.reduce(ir.from_proto(grouped.builder_model()), method="snapkv", budget=Budget.keep(0.5))
    found = outputs(result.model, given | {name: torch.zeros(2, 2, 0, 8) for name in prefill.PAST})
    whole = thinned.watched("llama", lambda made: prefill.FORMS["mask"].function(made, *given.values()))
    wanted = [
        thinned.chosen(thinned.snapkv, attention, KEEP, 2, given["attention_mask"])
        for attention in whole.attention
    ]
    for mine, theirs in zip(indices(found), wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs.numpy())
    for number, name in enumerate(CACHES):
        np.testing.assert_allclose(
            found[name], thinned.taken(whole.caches[number], wanted[number // 2]).numpy(), atol=CLOSE
        )


@pytest.mark.parametrize("heads", ["own", "common"])
def test_check_compares_each_cache_with_the_same_entries_of_the_original(heads: str, tmp_path: Path) -> None:
    path, target = prefill.exported("llama", "embeds", 20), tmp_path / "thin.onnx"
    tokenrt.reduce(
        path, method="snapkv", budget=Budget.tokens([14, 10, 12]), options={"heads": heads}, output=target
    )
    done = tokenrt.check(path, target, samples=1)
    assert done.ok, done.reasons
    assert {drift.output: drift.shape[2] for drift in done.outputs if drift.output in CACHES} == {
        name: (14, 14, 10, 10, 12, 12)[number] for number, name in enumerate(CACHES)
    }
    assert all(drift.relative_l2 is not None and drift.relative_l2 < 1e-6 for drift in done.outputs)


REFUSED = {
    "no cache": ({"method": "topk"}, "topk reduces tokens, and chooses no entries of a cache"),
    "behind a block": ({"site": "after-block"}, "snapkv chooses entries of a language model's cache"),
    "at an output": ({"site": "output:logits"}, "snapkv chooses entries of a language model's cache"),
    "all stay": ({"budget": Budget.keep(1.0)}, "the budget removes none of the 24 entries"),
    "too few": ({"budget": Budget.tokens([1])}, "layer 0: 1 of 24 entries cannot stay; snapkv keeps 2 to 23"),
    "two counts": ({"budget": Budget.tokens([9, 8])}, "gives 2 counts for the caches of 3 layers"),
    "a layer that is not there": (
        {"budget": Budget.tokens([9], [3])},
        "layer 3 has no cache .* have: 0, 1, 2",
    ),
    "a share of the work": ({"budget": Budget.flops(0.5)}, "--flops divides work over blocks"),
    "a window that is too wide": ({"options": {"window": 12}}, "a window of 12 tokens must be smaller"),
    "a span": ({"span": "4:18"}, "--span is about tokens, and with --site cache entries"),
    "gathered": ({"cache": "gathered"}, "--cache is about tokens"),
    "weights that are missing": ({"method": "locret"}, "weights"),
    "a width that is not said": ({"method": "tokenbutler"}, "say their width, as in --set width=16"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, tmp_path: Path) -> None:
    more, message = REFUSED[kind]
    wish = {
        "method": "snapkv",
        "budget": Budget.tokens([KEEP]),
        "site": "cache",
        "output": tmp_path / "thin.onnx",
    }
    with pytest.raises(tokenrt.TokenrtError, match=message):
        tokenrt.reduce(prefill.exported("llama", "embeds", 20), **(wish | more))
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "method"), [("prompt", "snapkv"), *product(("prompt", "step"), ("h2o", "zipcache"))]
)
def test_half_forms_are_built(form: str, method: str, tmp_path: Path) -> None:
    """The file that TensorRT-RTX takes, for compute capabilities 8.0 to 12.0."""
    pytest.importorskip(TENSORRT_RTX.module, reason="TensorRT-RTX is not installed (extra rtx)")
    from tokenrt.targets.build import build

    path = prefill.exported("llama", "mask" if form == "prompt" else "merged", 23)
    shape = decoder(KEEP) if form == "step" else None
    thin, half = tmp_path / "thin.onnx", tmp_path / "half.onnx"
    tokenrt.reduce(path, method=method, budget=Budget.tokens([KEEP]), shape=shape, output=thin)
    tokenrt.convert(thin, precision="fp16", output=half)
    for target in ("rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120"):
        engine = build(half, target=target, output=tmp_path / f"{target}.engine").engine
        assert engine.stat().st_size > 0


def test_inspect_says_which_caches_can_be_thinned() -> None:
    prompt = tokenrt.inspect(prefill.exported("llama", "embeds", 20))
    assert prompt.layers.told() == [
        "cache of layers 0, 1, 2: 24 entries of 2 heads; --site cache keeps some of them (e.g. snapkv or h2o)"
    ]
    assert [layer["key"] for layer in prompt.as_dict()["layers"]] == CACHES[::2]
    step = tokenrt.inspect(prefill.exported("llama", "merged", 23), shape=decoder(KEEP))
    assert step.layers.told() == [
        "cache of layers 0, 1, 2: 13 entries, 1 of them new, of 2 heads; --site cache keeps some of them (h2o, keyformer and "
        "dycoke_cache)"
    ]


EDITED = {
    "another length": ({"arriving": 30}, "is for 30 entries of the cache of layer 0, the model has 24"),
    "no such layer": (
        {"layer": 7},
        "chooses entries of layer 7, which has no cache; layers with one: 0, 1, 2",
    ),
    "a layer twice": ({"layer": 1}, "chooses entries of layer 1, which it does twice"),
    "another kind of method": ({"method": "topk"}, "topk reduces tokens"),
}


@pytest.mark.parametrize("kind", EDITED)
def test_an_edited_plan_that_does_not_fit_is_refused(kind: str) -> None:
    changes, message = EDITED[kind]
    path = prefill.exported("llama", "embeds", 20)
    made = tokenrt.plan(path, method="snapkv", budget=Budget.tokens([KEEP]))
    first, *rest = made.entries
    own = {"options": {}} if "method" in changes else {}
    with pytest.raises(tokenrt.PlanError, match=message):
        tokenrt.reduce(path, plan=replace(made, entries=(replace(first, **(own | changes)), *rest)))
