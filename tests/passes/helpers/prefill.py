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
WINDOW = 8
WINDOWED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "head_dim": 8,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
"""Families of which some layers see a window, and hand on as much of their cache as it shows the next token."""

CACHES = [f"present.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
PAST = [f"past_key_values.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]


@cache
def model(family: str) -> Any:
    """The model of a family, with weights that are the same in every run; norms and biases are not what they start as."""
    import transformers

    name, config, more = (FAMILIES | WINDOWED)[family]
    torch.manual_seed(0)
    made = getattr(transformers, name)(getattr(transformers, config)(**{**SMALL, **more})).eval()
    made.set_attn_implementation("sdpa")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    return made


def flat(held: Any) -> list[Tensor]:
    """Keys and values of every layer, [B,heads,N,D] each."""
    return [part for layer in held.layers for part in (layer.keys, layer.values)]


def held(result: Any) -> Any:
    return result.past_key_values if getattr(result, "cache", None) is None else result.cache


def call(made: Any, past: Any = None, **inputs: Any) -> Any:
    """The model with a cache, under the name this release has for it."""
    given = "cache" if "cache" in inspect.signature(made.forward).parameters else "past_key_values"
    return made(**inputs, use_cache=True, **({} if past is None else {given: past}))


def _plain(made: Any, embeds: Tensor) -> Any:
    return call(made, inputs_embeds=embeds, logits_to_keep=1)


def _prefixed(made: Any, embeds: Tensor) -> Any:
    """The image and what stands before it see one another, as in PaliGemma."""
    shown = torch.ones(TOKENS, TOKENS).tril().bool()
    shown[: SPAN[1], : SPAN[1]] = True
    mask = torch.where(shown, 0.0, torch.finfo(torch.float32).min)[None, None]
    return call(made, inputs_embeds=embeds, attention_mask=mask, logits_to_keep=1)


def _words(made: Any, ids: Tensor) -> Any:
    return call(made, input_ids=ids, logits_to_keep=1)


def _masked(made: Any, embeds: Tensor, mask: Tensor, places: Tensor) -> Any:
    return call(made, inputs_embeds=embeds, attention_mask=mask, position_ids=places)


def _merged(made: Any, embeds: Tensor, mask: Tensor, places: Tensor, *past: Tensor) -> Any:
    return call(made, cache_of(past), inputs_embeds=embeds, attention_mask=mask, position_ids=places)


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
            flat(held(call(model(family), input_ids=torch.ones(1, 2, dtype=torch.long))))[0].shape[-1],
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
    """What torch gives: the tokens left behind the last choice [B,K], logits, the cache; attention and tokens of each layer."""

    kept: np.ndarray
    logits: np.ndarray
    caches: list[np.ndarray]
    attention: list[Tensor]
    reached: list[Tensor]


@dataclass
class Seen:
    """What a rule may read in front of a layer: hidden states [B,N,C] and, by layer, what torch computed in front of it.

    kept [B,N]: the original positions of the tokens that are here. attention: [B,H,N,N], neurons: [B,N,F], what the last product
    of the MLP reads, keys: [B,heads,N,D] behind the rotation, entered: [B,N,C], and held: [B,N], the positions of each layer's
    tokens. real [B,N]: 1 where a token is no padding; every: the same of the whole prompt. state: what the rule noted before.
    span: of the image; text: of the words.
    """

    layer: int
    x: Tensor
    kept: Tensor
    real: Tensor
    every: Tensor
    span: tuple[int, int]
    text: tuple[int, int]
    attention: dict[int, Tensor]
    neurons: dict[int, Tensor]
    keys: dict[int, Tensor]
    entered: dict[int, Tensor]
    held: dict[int, Tensor]
    state: dict[str, Tensor]

    @property
    def image(self) -> slice:
        """The image tokens that are here; they stand together, as many in each prompt."""
        inside = (self.kept[0] >= self.span[0]) & (self.kept[0] < self.span[1])
        return slice(self.span[0], self.span[0] + int(inside.sum()))

    @property
    def words(self) -> slice:
        gone = TOKENS - self.kept.shape[1] if self.text[0] >= self.span[1] else 0
        return slice(self.text[0] - gone, self.text[1] - gone)

    def at(self, layer: int) -> Tensor:
        """[B,N]: 1 where a token of a layer is no padding."""
        return self.every.gather(1, self.held[layer])


@dataclass(frozen=True)
class Choice:
    """What is left: places [B,K] among the tokens that are here, ascending, and where they mix the share [B,K,N] of each."""

    places: Tensor
    share: Tensor | None = None


Rule = Callable[[Seen, int], Choice]


def fastv(seen: Seen, count: int) -> Choice:
    """The image tokens that the last token which is no padding attends to most, and all text."""
    rows = torch.arange(len(seen.kept))
    asking = seen.attention[seen.layer][rows, :, seen.real.cumsum(1).argmax(1)]
    return best(seen, asking.mean(1), count)


def best(seen: Seen, score: Tensor, count: int) -> Choice:
    """All text, and the image tokens of highest score [B,N] or, for image tokens alone, [B,M]; padding last."""
    own = score if score.shape[1] != seen.kept.shape[1] else score[:, seen.image]
    own = torch.where(seen.real[:, seen.image] > 0, own, -torch.inf)
    every = torch.full(seen.kept.shape, torch.inf, dtype=own.dtype)
    every[:, seen.image] = own
    ranked = every.argsort(dim=1, descending=True, stable=True)[:, :count]
    return Choice(ranked.sort(dim=1).values)


def judged(
    family: str,
    form: str,
    given: dict[str, Tensor],
    counts: dict[int, int],
    gathered: bool = False,
    span: tuple[int, int] = SPAN,
    rule: Rule = fastv,
    text: tuple[int, int] | None = None,
) -> Judged:
    """Prune or merge image tokens behind layers by a rule, original positions kept, as FastV does where nothing is said.

    counts: how many tokens are left behind each of these layers. span: the first image token, and the one behind the last; text:
    the same of the words, all behind the image where nothing is said.
    """
    made = model(family)
    made.set_attn_implementation("eager")
    every = torch.arange(TOKENS)[None].repeat(next(iter(given.values())).shape[0], 1)
    real = given.get("attention_mask", torch.ones_like(every))
    kept, weights, lengths = [every], dict[int, Tensor](), dict[int, Tensor]()
    neurons, keys, entered = (dict[int, Tensor]() for _ in range(3))
    state = dict[str, Tensor]()
    hooks = []

    def seen(layer: int) -> Any:
        return lambda module, args, result: weights.__setitem__(layer, result[1])

    def awake(layer: int) -> Any:
        return lambda module, args: neurons.__setitem__(layer, args[0])

    def before(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            (x,) = args
            if layer - 1 in counts:
                past = next(
                    kwargs[name] for name in ("past_key_values", "cache") if kwargs.get(name) is not None
                )
                keys[layer - 1] = past.layers[layer - 1].keys
                here = Seen(
                    layer - 1,
                    x,
                    kept[-1],
                    real.gather(1, kept[-1]),
                    real,
                    span,
                    text or (span[1], TOKENS),
                    weights,
                    neurons,
                    keys,
                    entered,
                    lengths,
                    state,
                )
                now = rule(here, counts[layer - 1])
                if now.share is None:
                    x = x.gather(1, now.places[..., None].expand(-1, -1, x.shape[-1]))
                else:
                    x = now.share @ x
                kept.append(kept[-1].gather(1, now.places))
            entered[layer] = x
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
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(awake(number)))
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
    each = range(LAYERS)
    return Judged(
        kept[-1].numpy(),
        result.logits.numpy(),
        [part.numpy() for part in parts],
        [weights[n] for n in each],
        [lengths[n] for n in each],
    )


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
        result = call(model(family), past, inputs_embeds=embeds, position_ids=torch.full((batch, 1), place))
    found: np.ndarray = result.logits.numpy()
    return found
