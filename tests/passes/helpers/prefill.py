"""Small language models as they are deployed for a prompt, and torch as the judge of what pruning inside them must give."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TOKENS, SPAN, LAYERS, WIDTH, WORDS = 24, (4, 18), 3, 32, 64
SMALL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": WORDS,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {"head_dim": 8}),
}
CACHES = [f"present.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
PAST = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]


@cache
def model(family: str) -> Any:
    """The model of a family, with weights that are the same in every run."""
    import transformers

    name, config, more = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, name)(getattr(transformers, config)(**{**SMALL, **more})).eval()
    made.set_attn_implementation("sdpa")
    return made


def flat(held: Any) -> list[Tensor]:
    """Keys and values of every layer, [B,heads,N,D] each."""
    return [part for layer in held.layers for part in (layer.keys, layer.values)]


def held(result: Any) -> Any:
    return result.past_key_values if getattr(result, "cache", None) is None else result.cache


def _call(made: Any, past: Any = None, **inputs: Any) -> Any:
    """The model with a cache, under the name this release has for it."""
    given = "cache" if "cache" in inspect.signature(made.forward).parameters else "past_key_values"
    return made(**inputs, use_cache=True, **({} if past is None else {given: past}))


def _plain(made: Any, embeds: Tensor) -> Any:
    return _call(made, inputs_embeds=embeds, logits_to_keep=1)


def _prefixed(made: Any, embeds: Tensor) -> Any:
    """The image and what stands before it see one another, as in PaliGemma."""
    shown = torch.ones(TOKENS, TOKENS).tril().bool()
    shown[: SPAN[1], : SPAN[1]] = True
    mask = torch.where(shown, 0.0, torch.finfo(torch.float32).min)[None, None]
    return _call(made, inputs_embeds=embeds, attention_mask=mask, logits_to_keep=1)


def _words(made: Any, ids: Tensor) -> Any:
    return _call(made, input_ids=ids, logits_to_keep=1)


def _masked(made: Any, embeds: Tensor, mask: Tensor, places: Tensor) -> Any:
    return _call(made, inputs_embeds=embeds, attention_mask=mask, position_ids=places)


def _merged(made: Any, embeds: Tensor, mask: Tensor, places: Tensor, *past: Tensor) -> Any:
    return _call(made, cache_of(past), inputs_embeds=embeds, attention_mask=mask, position_ids=places)


@dataclass(frozen=True)
class Form:
    """What a file of a prompt takes. past: tokens of a cache that it takes as well, of any length."""

    function: Callable[..., Any]
    names: tuple[str, ...]
    past: int = 0


MASKED = ("inputs_embeds", "attention_mask", "position_ids")
FORMS = {
    "embeds": Form(_plain, ("inputs_embeds",)),
    "prefix": Form(_prefixed, ("inputs_embeds",)),
    "ids": Form(_words, ("input_ids",)),
    "mask": Form(_masked, MASKED),
    "merged": Form(_merged, MASKED, past=5),
}


def inputs(form: str, batch: int = 1, seed: int = 1) -> dict[str, Tensor]:
    """A prompt without a past."""
    generator = torch.Generator().manual_seed(seed)
    every = {
        "inputs_embeds": torch.randn(batch, TOKENS, WIDTH, generator=generator),
        "input_ids": torch.randint(3, WORDS, (batch, TOKENS), generator=generator),
        "attention_mask": torch.ones(batch, TOKENS, dtype=torch.long),
        "position_ids": torch.arange(TOKENS)[None].repeat(batch, 1),
    }
    return {name: every[name] for name in FORMS[form].names}


class _File(nn.Module):
    def __init__(self, made: nn.Module, form: Form) -> None:
        super().__init__()
        self.made, self.form = made, form

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        result = self.form.function(self.made, *given)
        return result.logits, *flat(held(result))


@cache
def exported(family: str, form: str, opset: int, batch: int = 1) -> Path:
    """The ONNX file of a prompt."""
    path = Path(tempfile.mkdtemp(prefix="tokenrt-prefill-")) / "model.onnx"
    kind, given = FORMS[form], [*inputs(form, batch).values()]
    more: dict[str, Any] = {}
    if kind.past:
        heads, width = (
            model(family).config.num_key_value_heads,
            flat(held(_call(model(family), input_ids=torch.ones(1, 2, dtype=torch.long))))[0].shape[-1],
        )
        given[1] = torch.ones(batch, TOKENS + kind.past, dtype=torch.long)
        given += [torch.randn(batch, heads, kind.past, width) for _ in PAST]
        free = torch.export.Dim.AUTO
        more = {"dynamic_shapes": {"given": (*({1: free},) * 3, *({2: free},) * len(PAST))}}
    with torch.no_grad():
        torch.onnx.export(
            _File(model(family), kind).eval(),
            tuple(given),
            str(path),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            verbose=False,
            input_names=[*kind.names, *(PAST if kind.past else ())],
            output_names=["logits", *CACHES],
            **more,
        )
    return path


def cache_of(parts: Sequence[Tensor]) -> Any:
    """A cache of the library with these keys and values, layer by layer; layers may differ in length."""
    import transformers

    made = transformers.DynamicCache()
    for layer in range(len(parts) // 2):
        made.update(parts[2 * layer], parts[2 * layer + 1], layer)
    return made


@dataclass(frozen=True)
class Judged:
    """What torch gives: the tokens left behind the last choice [B,K], logits, and the cache."""

    kept: np.ndarray
    logits: np.ndarray
    caches: list[np.ndarray]


def judged(
    family: str,
    form: str,
    given: dict[str, Tensor],
    counts: dict[int, int],
    gathered: bool = False,
    span: tuple[int, int] = SPAN,
) -> Judged:
    """Prune image tokens behind layers by the attention of the last token there, original positions kept, as FastV does.

    counts: how many tokens are left behind each of these layers. span: the first image token, and the one behind the last.
    """
    made = model(family)
    made.set_attn_implementation("eager")
    every = torch.arange(TOKENS)[None].repeat(next(iter(given.values())).shape[0], 1)
    real = given.get("attention_mask", torch.ones_like(every))
    kept, weights, lengths = [every], dict[int, Tensor](), dict[int, Tensor]()
    hooks = []

    def seen(layer: int) -> Any:
        return lambda module, args, result: weights.__setitem__(layer, result[1])

    def before(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            (x,) = args
            if layer - 1 in counts:
                rows = torch.arange(len(kept[-1]))
                asking = weights[layer - 1][rows, :, real.gather(1, kept[-1]).cumsum(1).argmax(1)]
                now = _chosen(asking.mean(1), kept[-1], counts[layer - 1], span)
                x = x.gather(1, now[..., None].expand(-1, -1, x.shape[-1]))
                kept.append(kept[-1].gather(1, now))
            places = lengths[layer] = kept[-1]
            if places.shape[1] < TOKENS:
                kwargs = dict(kwargs)
                mask = kwargs["attention_mask"]
                count = places.shape[1]
                mask = mask.expand(len(places), -1, -1, -1)
                mask = mask.gather(2, places[:, None, :, None].expand(-1, 1, -1, TOKENS))
                kwargs["attention_mask"] = mask.gather(3, places[:, None, None, :].expand(-1, 1, count, -1))
                tables = kwargs["position_embeddings"]
                kwargs["position_embeddings"] = tuple(
                    table.expand(len(places), -1, -1).gather(
                        1, places[..., None].expand(-1, -1, table.shape[-1])
                    )
                    for table in tables
                )
            return (x,), kwargs

        return hook

    for number, layer in enumerate(made.model.layers):
        hooks.append(layer.self_attn.register_forward_hook(seen(number)))
        hooks.append(layer.register_forward_pre_hook(before(number), with_kwargs=True))
    try:
        with torch.no_grad():
            result = FORMS[form].function(made, *given.values())
    finally:
        for hook in hooks:
            hook.remove()
        made.set_attn_implementation("sdpa")
    parts = flat(held(result))
    if gathered:
        parts = [_taken(part, lengths[number // 2], kept[-1]) for number, part in enumerate(parts)]
    return Judged(kept[-1].numpy(), result.logits.numpy(), [part.numpy() for part in parts])


def _chosen(score: Tensor, kept: Tensor, count: int, span: tuple[int, int]) -> Tensor:
    """Places among the tokens that are left: all text, and of the image those that score most, ascending."""
    image = (kept >= span[0]) & (kept < span[1])
    best = torch.where(image, score, torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]
    return best.sort(dim=1).values


def _taken(part: Tensor, here: Tensor, left: Tensor) -> Tensor:
    """The entries of a cache that are left at the end."""
    places = torch.stack([torch.searchsorted(row, wanted) for row, wanted in zip(here, left, strict=True)])
    return part.gather(2, places[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3]))


def decoded(family: str, caches: Sequence[np.ndarray], place: int, seed: int = 2) -> np.ndarray:
    """Logits of one more token at a place, behind a cache whose layers may differ in length."""
    batch = len(caches[0])
    embeds = torch.randn(batch, 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    past = cache_of([torch.from_numpy(np.array(part)) for part in caches])
    with torch.no_grad():
        result = _call(model(family), past, inputs_embeds=embeds, position_ids=torch.full((batch, 1), place))
    found: np.ndarray = result.logits.numpy()
    return found
