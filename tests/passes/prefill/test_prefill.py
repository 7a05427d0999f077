"""Tokens that leave inside a language model's prompt: the same that leave in torch, the same logits, caches and next token."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

import tokenrt
from tests.passes.helpers import grouped, prefill, tiny
from tests.passes.helpers.prefill import SPAN, TOKENS
from tests.passes.helpers.running import run, session
from tokenrt import Budget
from tokenrt.passes.analysis import blocks
from tokenrt.targets.rtx.builder import TENSORRT_RTX

SPANNED = "{}:{}".format(*SPAN)
COUNTS = {0: 17, 1: 13}
CLOSE = 1e-5
SOFTMAX = "  b{n}_weights = Softmax <axis = -1> (b{n}_scores)\n"
MASKED = "  b{n}_masked = Add (b{n}_scores, m)\n  b{n}_weights = Softmax <axis = -1> (b{n}_masked)\n"
MATRIX = [
    pytest.param(*case, marks=() if case == ("llama", "embeds", 20, "per-layer") else pytest.mark.slow)
    for case in (
        *product(prefill.FAMILIES, ("embeds", "ids", "mask"), (20, 23), ("per-layer", "gathered")),
        *product(["llama"], ["prefix"], (20, 23), ("per-layer", "gathered")),
    )
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
    names = [None, "kept_index_layer1", "kept_index"] if cache == "per-layer" else ["kept_index"] * 3
    assert [layer.get("index") for layer in told["layers"]] == names
    assert all(found[name].shape == (1, count) for name, count in zip(names, lengths, strict=True) if name)
    assert (told["form"], told["next_position"]) == (cache, TOKENS)
    assert [layer["tokens"] for layer in told["layers"]] == lengths
    assert [layer[part] for layer in told["layers"] for part in ("key", "value")] == prefill.CACHES
    after = prefill.decoded(family, wanted.caches, told["next_position"])
    np.testing.assert_allclose(prefill.decoded(family, caches, told["next_position"]), after, atol=CLOSE)
    assert np.abs(prefill.decoded(family, caches, wanted.kept.shape[1]) - after).max() > 100 * CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("family", prefill.FAMILIES)
def test_a_merged_decoder_with_an_empty_past(family: str, opset: int, tmp_path: Path) -> None:
    """The past is fixed to no token at all, so that the file is one for prompts."""
    fixed, given = prefill.exported(family, "merged", opset), prefill.inputs("mask")
    shape = [f"{name}={'x'.join(map(str, value.shape))}" for name, value in given.items()]
    shape += [f"{name}=1x2x0x8" for name in prefill.PAST]
    target = tmp_path / "pruned.onnx"
    pruned(fixed, COUNTS, shape=shape, output=target)
    empty = {name: torch.zeros(1, 2, 0, 8) for name in prefill.PAST}
    found, wanted = outputs(target, given | empty), prefill.judged(family, "mask", given, COUNTS)
    assert (found["kept_index"] == wanted.kept).all()
    same(found, wanted)


def same(found: dict[str, np.ndarray], wanted: prefill.Judged) -> None:
    for name, theirs in zip(("logits", *prefill.CACHES), (wanted.logits, *wanted.caches), strict=True):
        assert found[name].shape == theirs.shape
        np.testing.assert_allclose(found[name], theirs, atol=CLOSE)


def same_where_shown(
    found: dict[str, np.ndarray], wanted: prefill.Judged, given: dict[str, torch.Tensor]
) -> None:
    """The logits and the last layer's cache of two prompts, but for padding."""
    real = given["attention_mask"].numpy() > 0
    for prompt in range(2):
        left = real[prompt][wanted.kept[prompt]]
        np.testing.assert_allclose(found["logits"][prompt][left], wanted.logits[prompt][left], atol=CLOSE)
        for name, theirs in zip(prefill.CACHES[-2:], wanted.caches[-2:], strict=True):
            np.testing.assert_allclose(found[name][prompt][:, left], theirs[prompt][:, left], atol=CLOSE)


def padded() -> dict[str, torch.Tensor]:
    """Two prompts, the first with three tokens of padding in front, the second with two behind."""
    given = prefill.inputs("mask", batch=2)
    given["attention_mask"][0, :3] = 0
    given["attention_mask"][1, -2:] = 0
    given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return given


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["per-layer", "gathered"])
@pytest.mark.parametrize("opset", [20, 23])
def test_prompts_of_a_batch_choose_each_for_itself_whatever_padding_they_have(opset: int, cache: str) -> None:
    given = padded()
    result = pruned(prefill.exported("qwen2", "mask", opset, batch=2), COUNTS, cache=cache)
    found = outputs(result.model, given)
    wanted = prefill.judged("qwen2", "mask", given, COUNTS, gathered=cache == "gathered")
    assert (found["kept_index"] == wanted.kept).all()
    assert (wanted.kept[0] != wanted.kept[1]).any()
    same_where_shown(found, wanted, given)


EDGES = {
    "from the first token": ("0:14", {0: 16}),
    "up to the last but one": ("10:23", {1: 14}),
    "one token leaves": (SPANNED, {0: 23}),
    "one token of the picture stays": (SPANNED, {0: 11}),
    "behind the attention": (SPANNED, {1: 15}),
}


@pytest.mark.parametrize("kind", EDGES)
def test_spans_at_the_edges(kind: str) -> None:
    span, counts = EDGES[kind]
    first, end = map(int, span.split(":"))
    site = "after-attention" if kind == "behind the attention" else "after-block"
    given = prefill.inputs("embeds")
    result = pruned(prefill.exported("llama", "embeds", 20), counts, span=span, site=site)
    found = outputs(result.model, given)
    wanted = prefill.judged("llama", "embeds", given, counts, span=(first, end))
    assert (found["kept_index"] == wanted.kept).all()
    same(found, wanted)


REFUSED = {
    "the whole picture": (
        {"budget": Budget.tokens([10], [0])},
        "10 tokens are to stay, but 10 are protected",
    ),
    "merging": ({"method": "tome"}, "its mask is causal .* a method that only selects tokens"),
    "a mixture": ({"method": "evit"}, "evit gives tokens that are not some of those that come to it"),
    "a hole in the span": (
        {"protect": "9"},
        "token 9 among them is protected; name one stretch of them with --span",
    ),
    "an unknown form": ({"cache": "shared"}, "--cache shared: expected per-layer or gathered"),
    "around attention": ({"site": "around-attention"}, "after-attention or after-block"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, tmp_path: Path) -> None:
    more, message = REFUSED[kind]
    target = tmp_path / "pruned.onnx"
    with pytest.raises(tokenrt.TokenrtError, match=message):
        pruned(prefill.exported("llama", "embeds", 20), {0: 17}, output=target, **more)
    assert not [*tmp_path.iterdir()]


def test_fastv_needs_a_prompt() -> None:
    with pytest.raises(tokenrt.PlanError, match="fastv works inside a language model"):
        tokenrt.reduce(ir.from_proto(tiny.model()), method="fastv", budget=Budget.remove(1))
    every = tiny.model(tiny.EVERY, output="float[B,6,8] y")
    with pytest.raises(tokenrt.PlanError, match=r"fastv works inside .* it sits behind a block"):
        tokenrt.reduce(ir.from_proto(every), method="fastv", budget=Budget.remove(1), site="output")


@pytest.mark.parametrize("method", ["slice", "random", "topk", "divprune"])
def test_other_methods_that_select_see_the_span_alone(method: str) -> None:
    """What they keep lies in the span, in order; text stays, and what it holds decides nothing."""
    options = {"score": "key_norm"} if method == "topk" else {}
    path, given = prefill.exported("llama", "embeds", 20), prefill.inputs("embeds")
    result = pruned(path, {0: 17}, method=method, options=options)
    kept = outputs(result.model, given)["kept_index"][0]
    assert (np.diff(kept) > 0).all()
    assert {*kept} >= {*range(SPAN[0]), *range(SPAN[1], TOKENS)}
    given["inputs_embeds"][:, SPAN[1] :] *= -1
    assert (outputs(result.model, given)["kept_index"][0] == kept).all()


def test_inspect_says_what_it_sees_in_a_decoder() -> None:
    found = tokenrt.inspect(prefill.exported("llama", "embeds", 20))
    (view,) = found.transformers
    assert view.prompt
    assert list(view.caches) == prefill.CACHES
    assert [guard.first for guard in view.guards] == [TOKENS - 1]
    assert all("after-block" in block.sites for block in view.blocks[:-1])
    assert all(refusal.merging and "its mask is causal" in refusal.reason for refusal in found.refusals)


def test_a_merged_token_would_tell_earlier_ones_of_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the refusal prevents: without it, what stands between two merged tokens learns of the later one."""
    causal = np.where(np.triu(np.ones((tiny.TOKENS,) * 2), 1), -1e9, 0).astype(np.float32)
    attention = tiny.ATTENTION.replace(SOFTMAX, MASKED)
    proto = tiny.model(tiny.EVERY, attention=attention, output="float[B,6,8] y")
    proto.graph.initializer.append(numpy_helper.from_array(causal, "m"))
    x = tiny.picture()["x"]
    later = x.copy()
    later[:, -2:] += 1

    def earlier(model: Any) -> Any:
        one, other = (run(model, {"x": each})[0][:, :-2] for each in (x, later))
        return np.abs(one - other).max()

    assert earlier(proto) == 0
    wish: dict[str, Any] = {"method": "tome", "budget": Budget.remove(1), "protect": "5"}
    with pytest.raises(tokenrt.TokenrtError, match="its mask is causal"):
        tokenrt.reduce(ir.from_proto(proto), **wish)
    monkeypatch.setattr(blocks, "_in_sight", lambda found, *_: (found, []))
    assert earlier(tokenrt.reduce(ir.from_proto(proto), **wish).model) > 1e-3


@pytest.mark.parametrize("cache", ["per-layer", "gathered"])
@pytest.mark.parametrize(
    "family",
    ["llama", "qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "phi3", "gemma"))],
)
def test_a_decoder_of_fused_nodes(family: str, cache: str) -> None:
    """As ONNX Runtime's model builder writes it; two prompts, the second shorter, and a batch that stays free."""
    given = prefill.inputs("mask", batch=2)
    given["attention_mask"][1, -2:] = 0
    result = pruned(ir.from_proto(grouped.builder_model(family)), COUNTS, cache=cache)
    empty = {name: torch.zeros(2, 2, 0, 8) for name in prefill.PAST}
    found = outputs(result.model, given | empty)
    wanted = prefill.judged(family, "mask", given, COUNTS, gathered=cache == "gathered")
    assert (found["kept_index"] == wanted.kept).all()
    same_where_shown(found, wanted, given)


def test_check_compares_each_cache_with_the_same_tokens_of_the_original(tmp_path: Path) -> None:
    path, target = prefill.exported("llama", "embeds", 20), tmp_path / "pruned.onnx"
    pruned(path, COUNTS, output=target)
    done = tokenrt.check(path, target, samples=1)
    assert done.ok, done.reasons
    drifts = {drift.output: drift.relative_l2 for drift in done.outputs}
    # What is left behind the first layer is what it was without the reduction.
    assert all(drifts[name] is not None and drifts[name] < 1e-6 for name in prefill.CACHES[:4])


def test_a_prompt_behind_a_tower_in_one_file(tmp_path: Path) -> None:
    """The prompt's own length and index are told, not those of the transformer in front of it."""
    tower = onnx.compose.add_prefix(tiny.model(opset=20), "tower_")
    model = onnx.load(prefill.exported("llama", "embeds", 20))
    nodes = [*tower.graph.node, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for field in ("initializer", "input", "output"):
        getattr(model.graph, field).extend(getattr(tower.graph, field))
    whole, target = tmp_path / "whole.onnx", tmp_path / "pruned.onnx"
    onnx.save(model, whole)
    pruned(whole, {0: 17}, transformers=[1], span=None, protect="0:4", output=target)
    told = json.loads((tmp_path / "pruned.onnx.json").read_text())
    assert (told["index"], told["cache"]["next_position"]) == ("kept_index", TOKENS)
    assert [layer["tokens"] for layer in told["cache"]["layers"]] == [TOKENS, 17, 17]
    done = tokenrt.check(whole, target, samples=1)
    assert done.ok, done.reasons


@pytest.mark.slow
@pytest.mark.parametrize(("family", "opset"), [("llama", 23), ("qwen3", 20), ("gemma", 20)])
def test_engines_in_half_precision(family: str, opset: int, tmp_path: Path) -> None:
    """For compute capabilities from 8.0 to 12.0."""
    pytest.importorskip(TENSORRT_RTX.module, reason="TensorRT-RTX is not installed (extra rtx)")
    pruned(prefill.exported(family, "embeds", opset), COUNTS, output=tmp_path / "pruned.onnx")
    tokenrt.convert(tmp_path / "pruned.onnx", precision="fp16", output=tmp_path / "half.onnx")
    for version in ("80", "86", "89", "120"):
        made = tokenrt.build(
            tmp_path / "half.onnx", target=f"rtx-sm{version}", output=tmp_path / f"{version}.engine"
        )
        assert made.engine.stat().st_size > 0
