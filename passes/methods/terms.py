"""How tables, cards and pages say in words what a method's class says by a name."""

from __future__ import annotations

from collections.abc import Mapping

from tokenrt.passes.methods.tensors import CACHE, SHAPES

NEVER, WITHOUT_CLASS, ALWAYS = "never", "without class token", "always"
MATRIX: Mapping[str, tuple[str, str]] = {
    NEVER: ("kept", "kept"),
    WITHOUT_CLASS: (
        "N x N without class token",
        "kept; without a class token an N x N matrix is computed beside it",
    ),
    ALWAYS: ("N x N beside", "kept, with an N x N matrix computed beside it"),
}
"""When, by default, a method has an N x N matrix computed beside a fused attention: in the table, and on a card."""


def _given(name: str, shapes: Mapping[str, tuple[str, ...]] = SHAPES) -> str:
    return f"{name} [{','.join(shapes[name])}]"


TENSORS: Mapping[str, str] = {
    "tokens": _given("x"),
    "size": f"{_given('size')}, 0 where some are padding",
    "stream": f"{_given('stream')}, else x",
    "normed": _given("normed"),
    "metric": _given("keys"),
    "queries": _given("queries"),
    "keys": _given("keys"),
    "values": _given("values"),
    "attention": f"{_given('attn')}, or queries and keys",
    "class_attention": f"{_given('cls_attn')}, or attn, or queries and keys",
    "received_attention": f"{_given('attn')}, or queries and keys",
    "last_attention": f"{_given('last_attn')}, or text_attn, or attn, or queries and keys",
    "grid": "grid (h, w)",
    "text": _given("text"),
    "text_mask": f"{_given('text_mask')}, where some words are padding",
    "quotas": _given("quotas"),
    "importance": _given("importance"),
    "projected": "projector, a function of op and tokens",
    "pixels": _given("pixels"),
    "text_attention": _given("text_attn"),
    "neurons": _given("neurons"),
    "text_neurons": _given("text_neurons"),
    "segments": _given("segments"),
    "update": _given("update"),
    "state": "the argument state, behind the first call",
}
"""What `apply_method` takes for each tap; x always, size [B,N,1] where tokens have sizes."""

CACHED: Mapping[str, str] = {
    "keys": f"{_given('keys', CACHE)}, and {_given('values', CACHE)} to be thinned with them",
    "queries": f"{_given('queries', CACHE)}, or {_given('attn', CACHE)}",
    "values": _given("values", CACHE),
    "noise": f"{_given('noise', CACHE)} where an option asks",
    "temperature": f"{_given('temperature', CACHE)} where an option asks",
    "hidden": _given("hidden", CACHE),
    "state": TENSORS["state"],
}
"""The same for a method that chooses entries of a cache."""

EVIDENCE: Mapping[str, str] = {
    "vectors": "recorded outputs of the published implementation",
    "independent implementation": "an independent implementation of the published formulas",
    "mathematics": "the formulas alone: no code of the authors to compare with",
}
RETURNS: Mapping[str, str] = {
    "never": "",
    "after-attention": "tokens come back right after each attention",
    "before-next-site": "tokens come back before the next reduction",
    "before-last-block": "tokens come back before the last block",
    "from-last-step": "tokens take what the step before left of them: keys, values and the end",
}

HOMES: Mapping[str, str] = {
    "block": "behind a block",
    "features": "at the features that go into a projector",
    "output": "at an output of the model",
    "prefill": "behind a block of a language model, under its causal mask",
    "cache": "in the cache of a language model",
    "input": "at the rows of pixels that go into a model",
    "step": "in front of the blocks of a model that is called step by step",
}
"""Where a method sits."""
