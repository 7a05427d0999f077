"""Published methods inside a prompt's graph: what they keep or merge, logits, caches and the next token are torch's."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import tokenrt
from tests.conformance.helpers import given as offered
from tests.passes.helpers import grouped, prefill
from tests.passes.helpers.prefill import SPAN, TOKENS
from tests.passes.prefill.rules import CASES, like_the_words
from tests.passes.prefill.test_prefill import CLOSE, outputs, padded, pruned, same, same_where_shown
from tokenrt import Budget
from tokenrt.passes import methods
from tokenrt.passes.rewriting import arrange
from tokenrt.targets.rtx.builder import TENSORRT_RTX

EVERYWHERE = "mustdrop_dual"
"""The case that runs quickly in more than one model."""

QUICK = (EVERYWHERE, "sparsevlm 1", "catp_inner", "corematching", "dart")
"""Cases that together read all there is to read in a prompt."""

SIDES = [
    *product(prefill.FAMILIES, ("embeds", "mask"), (20, 23), ("per-layer",)),
    ("llama", "ids", 20, "per-layer"),
    *product(prefill.FAMILIES, ("embeds",), (20, 23), ("gathered",)),
    ("llama", "prefix", 20, "per-layer"),
]
FIRST = ("llama", "embeds", 20, "per-layer")
MORE = [
    ("llama", "embeds", 23, "gathered"),
    ("qwen2", "embeds", 20, "per-layer"),
    ("qwen2", "embeds", 23, "gathered"),
]
MATRIX = [
    pytest.param(name, *side, marks=[] if quick else [pytest.mark.slow])
    for name, side in product(CASES, SIDES)
    for quick in [(side == FIRST and name in QUICK) or (side in MORE and name == EVERYWHERE)]
]


def inside(name: str, path: Any, **more: Any) -> tokenrt.Reduced:
    case = CASES[name]
    return pruned(path, case.counts, **{"method": case.method, "options": case.options, **case.more, **more})


@pytest.mark.parametrize(("name", "family", "form", "opset", "cache"), MATRIX)
def test_it_is_what_torch_gives(name: str, family: str, form: str, opset: int, cache: str) -> None:
    given, case = prefill.inputs(form), CASES[name]
    found = outputs(
        inside(name, prefill.exported(family, form, opset), cache=cache).model, case.inputs(given)
    )
    wanted = prefill.judged(family, form, given, case.counts, gathered=cache == "gathered", rule=case.rule)
    assert (found["kept_index"] == wanted.kept).all()
    same(found, wanted)
    caches = [found[each] for each in prefill.CACHES]
    after = prefill.decoded(family, wanted.caches, TOKENS)
    np.testing.assert_allclose(prefill.decoded(family, caches, TOKENS), after, atol=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("opset", [20, 23])
def test_prompts_of_a_batch_choose_each_for_itself_whatever_padding_they_have(name: str, opset: int) -> None:
    given, case = padded(), CASES[name]
    found = outputs(inside(name, prefill.exported("qwen2", "mask", opset, batch=2)).model, case.inputs(given))
    wanted = prefill.judged("qwen2", "mask", given, case.counts, rule=case.rule)
    assert (found["kept_index"] == wanted.kept).all()
    same_where_shown(found, wanted, given)


@pytest.mark.slow
@pytest.mark.parametrize("family", prefill.FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_a_decoder_of_fused_nodes(name: str, family: str) -> None:
    """As ONNX Runtime's model builder writes it; two prompts, the second shorter, and a batch that stays free."""
    given, case = prefill.inputs("mask", batch=2), CASES[name]
    given["attention_mask"][1, -2:] = 0
    empty = {each: torch.zeros(2, 2, 0, 8) for each in prefill.PAST}
    found = outputs(
        inside(name, ir.from_proto(grouped.builder_model(family))).model, case.inputs(given) | empty
    )
    wanted = prefill.judged(family, "mask", given, case.counts, rule=case.rule)
    assert (found["kept_index"] == wanted.kept).all()
    same_where_shown(found, wanted, given)


WHERE = {
    "words behind a gap": ("sparsevlm 2", SPAN, (20, 23), {0: 17, 1: 13}),
    "a picture in front": ("sparsevlm 1", (0, 14), None, {0: 17, 1: 14}),
    "one word": (EVERYWHERE, (10, 23), None, {1: 14}),
    "all but one token leave": ("sparsevlm 2", SPAN, None, {0: 11}),
    "one token leaves": ("holitom_inner", SPAN, None, {1: 23}),
    "all leave early": ("todre_late", SPAN, None, {0: 10}),
}


@pytest.mark.parametrize("kind", WHERE)
def test_spans_and_words_at_the_edges(kind: str) -> None:
    name, span, text, counts = WHERE[kind]
    case, given = CASES[name], prefill.inputs("embeds")
    more = {"span": "{}:{}".format(*span), "text": text and "{}:{}".format(*text)}
    path = prefill.exported("llama", "embeds", 20)
    found = outputs(pruned(path, counts, method=case.method, options=case.options, **more).model, given)
    wanted = prefill.judged("llama", "embeds", given, counts, span=span, text=text, rule=case.rule)
    assert (found["kept_index"] == wanted.kept).all()
    same(found, wanted)


def test_examples_in_front_of_the_picture_are_the_words_of_the_second_stage() -> None:
    given, counts = prefill.inputs("embeds"), {1: 14}
    path, more = (
        prefill.exported("llama", "embeds", 20),
        {"method": "catp_inner", "options": {"of": "question"}},
    )
    found = outputs(pruned(path, counts, text="1:4", **more).model, given)
    wanted = prefill.judged("llama", "embeds", given, counts, text=(1, 4), rule=like_the_words)
    assert (found["kept_index"] == wanted.kept).all()
    same(found, wanted)


MERGING = [name for name, case in CASES.items() if methods.get(case.method).joins and name != "sparsevlm 2"]


@pytest.mark.parametrize("name", MERGING)
def test_no_token_learns_of_what_stands_behind_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merged token stands at the place of its last member; where the others stand, those between would learn of that one."""
    path, given = prefill.exported("llama", "embeds", 20), prefill.inputs("embeds")

    def told(model: Any) -> float:
        """The most that a token's cache changes with an image token behind it, where the choice stays the same."""
        plain, most = outputs(model, given), 0.0
        for token in range(*SPAN):
            other = {key: value.clone() for key, value in given.items()}
            other["inputs_embeds"][:, token] *= 1.0001
            changed = outputs(model, other)
            assert all((changed[key] == plain[key]).all() for key in ("kept_index", "token_source_map"))
            before = plain["kept_index"][0] < token
            most = max(
                most, np.abs(changed[prefill.CACHES[-1]] - plain[prefill.CACHES[-1]])[:, :, before].max()
            )
        return most

    counts = {0: 17}
    case = CASES[name]
    wish: dict[str, Any] = {"method": case.method, "options": case.options, "source_map": True}
    assert told(pruned(path, counts, **wish).model) < 1e-7
    monkeypatch.setattr(arrange, "last_members", lambda op, found, site, **_: found)
    assert told(pruned(path, counts, **wish).model) > 1e-6


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).joins])
def test_an_output_is_made_of_the_tokens_that_are_said_to_be_in_it(name: str) -> None:
    """What `joins` promises: another number in one token changes no output but the one that it went to."""
    call = offered.call(methods.get(name), 33, 20, 2, 1)
    call["tensors"].pop("size", None)
    plain = tokenrt.apply_method(name, **call)
    if not methods.get(name).empties:
        assert (np.bincount(plain["assign"][0] + 1, minlength=21)[1:] > 0).all()
    assert plain["assign"][0].max() == 19
    for token in range(33):
        other = {key: np.array(value) for key, value in call["tensors"].items()}
        other["x"][:, token] *= 1.0001
        changed = tokenrt.apply_method(name, **{**call, "tensors": other})
        assert (changed["assign"] == plain["assign"]).all()
        moved = np.abs(changed["tokens"] - plain["tokens"]).max(axis=(0, 2)).nonzero()[0]
        assert {*moved} <= {plain["assign"][0, token]}


REFUSED = {
    "words among those that may leave": (
        EVERYWHERE,
        {"text": "8:12"},
        "tokens 4 to 17 may leave, and words never",
    ),
    "words that are not there": (EVERYWHERE, {"text": "20:40"}, "the words must lie among the 24 tokens"),
    "words the wrong way round": (EVERYWHERE, {"text": "23:20"}, "--text 23:20: expected S:E"),
    "words that nobody reads": (
        "aim_pagerank",
        {"text": "20:24"},
        "aim_pagerank reads no words of the prompt",
    ),
    "neurons behind the place": ("corematching", {"site": "after-attention"}, "use --site after-block"),
    "no layer in front": (
        "catp_inner",
        {"budget": Budget.tokens([14], [0])},
        "reads a block in front as 'before', and block -1 is none",
    ),
    "sizes": (
        "holitom_inner",
        {"proportional_attention": True},
        "what holitom_inner merges counts as one token",
    ),
    "some of the picture": (
        "todre_late",
        {"budget": Budget.tokens([12], [1])},
        "drops all 14 tokens that may leave, and 2 of them are to stay",
    ),
    "a key set without the score it is made of": (
        EVERYWHERE,
        {"options": {"share": 0.9}},
        "the key set has 13 tokens, and 7 can stay",
    ),
    "what words in front attend to": (
        EVERYWHERE,
        {"text": "0:3"},
        "tokens 0 to 2 stand in front of those that may leave, which a causal mask hides from them",
    ),
    "nothing leaves": (EVERYWHERE, {"budget": Budget.tokens([24], [0])}, "removes no token at any block"),
    "no image": (EVERYWHERE, {"span": "4:4"}, "--span 4:4: expected S:E"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, tmp_path: Path) -> None:
    name, more, message = REFUSED[kind]
    target = tmp_path / "pruned.onnx"
    with pytest.raises(tokenrt.TokenrtError, match=message):
        inside(name, prefill.exported("llama", "embeds", 20), output=target, **more)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_engines_in_half_precision(name: str, tmp_path: Path) -> None:
    """Every method, for compute capabilities from 8.0 to 12.0."""
    pytest.importorskip(TENSORRT_RTX.module, reason="TensorRT-RTX is not installed (extra rtx)")
    half = tmp_path / "half.onnx"
    inside(name, prefill.exported("llama", "embeds", 23), output=tmp_path / "pruned.onnx")
    tokenrt.convert(tmp_path / "pruned.onnx", precision="fp16", output=half)
    for version in ("80", "86", "89", "120"):
        made = tokenrt.build(half, target=f"rtx-sm{version}", output=tmp_path / f"{version}.engine")
        assert made.engine.stat().st_size > 0
