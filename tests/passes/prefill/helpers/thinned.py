"""Torch as the judge of thinned caches: what each method keeps, from its mathematics, and the cache with these entries alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.passes.helpers import prefill
from tests.passes.helpers.prefill import LAYERS
from tests.passes.helpers.running import run, session

KEEP, CLOSE = 12, 1e-5
"""How many entries stay in the tests, and how far a number may be off."""


@dataclass(frozen=True)
class Seen:
    """A run of a model: of each layer attention [B,A,Q,N], what it reads [B,Q,C] and projects, and its whole cache; logits."""

    attention: list[Tensor]
    hidden: list[Tensor]
    projected: list[dict[str, Tensor]]
    caches: list[Tensor]
    logits: Tensor


def watched(family: str, call: Callable[[Any], Any]) -> Seen:
    """Run a model in the form that gives its attention."""
    made = prefill.model(family)
    made.set_attn_implementation("eager")
    weights, hidden = dict[int, Tensor](), dict[int, Tensor]()
    projected: list[dict[str, Tensor]] = [{} for _ in range(LAYERS)]
    hooks = []

    def attention(layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, result: Any) -> None:
            weights[layer] = result[1]
            hidden[layer] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        return hook

    def product(layer: int, name: str) -> Any:
        return lambda module, args, result: projected[layer].__setitem__(name, result)

    for number, layer in enumerate(made.model.layers):
        hooks.append(layer.self_attn.register_forward_hook(attention(number), with_kwargs=True))
        for name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
            if hasattr(layer.self_attn, name):
                hooks.append(getattr(layer.self_attn, name).register_forward_hook(product(number, name)))
    try:
        with torch.no_grad():
            result = call(made)
    finally:
        for hook in hooks:
            hook.remove()
        made.set_attn_implementation("sdpa")
    every = range(LAYERS)
    return Seen(
        [weights[n] for n in every], [hidden[n] for n in every], projected, prefill.flat(prefill.held(result)), result.logits
    )  # fmt: skip


def by_keys(score: Tensor, heads: int) -> Tensor:
    """[B,A,...] of heads of queries added up for the heads of keys they share."""
    return score.unflatten(1, (heads, -1)).sum(2)


def top(score: Tensor, count: int) -> Tensor:
    """The places of the best, ascending; of equal ones the first."""
    return score.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(-1).values


def snapkv(
    attention: Tensor, keep: int, heads: int, window: int = 0, kernel: int = 5, pool: str = "mean"
) -> Tensor:
    """[H,K] of one prompt's attention [A,N,N]: the last entries, and of those before the best by pooled attention of the last."""
    window = window or min(keep // 2, 32)
    free = attention.shape[-1] - window
    score = by_keys(attention[None, :, -window:, :free].sum(2), heads)
    pooled = (
        torch.nn.functional.avg_pool1d(score, kernel, 1, kernel // 2)
        if pool == "mean"
        else torch.nn.functional.max_pool1d(score, kernel, 1, kernel // 2)
    )[0]
    return torch.cat([top(pooled, keep - window), torch.arange(free, free + window).expand(heads, -1)], 1)


def heavy(score: Tensor, keep: int, latest: int) -> Tensor:
    """[H,K] of accumulated scores [H,N]: the best in front of the latest, and these."""
    heads, tokens = score.shape
    return torch.cat(
        [
            top(score[:, : tokens - latest], keep - latest),
            torch.arange(tokens - latest, tokens).expand(heads, -1),
        ],
        1,
    )


def h2o(attention: Tensor, keep: int, heads: int) -> Tensor:
    return heavy(by_keys(attention[None].sum(2), heads)[0], keep, keep // 2)


def keyformer(attention: Tensor, keep: int, heads: int, call: int = 3) -> Tensor:
    """The logits are the logarithms of the attention, but for what softmax takes away again."""
    share = (attention.double().log() / (1 + 0.01 * call)).softmax(-1).float()
    return heavy(by_keys(share[None].sum(2), heads)[0], keep, int(keep * 0.3))


def zipcache(attention: Tensor, keep: int, heads: int) -> Tensor:
    """Every token probes."""
    tokens = attention.shape[-1]
    fair = attention.sum(1) / torch.arange(tokens, 0, -1)
    return top(by_keys(fair[None], heads)[0], keep)


def dycoke(attention: Tensor, keep: int, heads: int, start: int = 4, length: int = 14) -> Tensor:
    """One list: all but the video, and of the video what the last token attends to."""
    score = attention[:, -1].sum(0)
    place = torch.arange(len(score))
    always = (place < start) | (place >= start + length)
    return top(torch.where(always, torch.inf, score), keep)[None]


METHODS: dict[str, tuple[dict[str, Any], Callable[[Tensor, int, int], Tensor]]] = {
    "snapkv": ({}, snapkv),
    "h2o": ({}, h2o),
    "keyformer": ({"call": 3}, keyformer),
    "zipcache": ({"share": 1.0}, zipcache),
    "dycoke_cache": ({"start": 4, "length": 14}, dycoke),
}
"""The options of a method, and what it keeps [H,K] of one prompt's attention [A,N,N], K and H."""


def chosen(
    choose: Callable[[Tensor, int, int], Tensor],
    attention: Tensor,
    keep: int,
    heads: int,
    real: Tensor | None = None,
) -> Tensor:
    """[B,H,K] for every prompt as if it had no padding, which fills up in front of it from the first on."""
    rows = []
    for prompt in range(len(attention)):
        there = torch.arange(attention.shape[-1]) if real is None else real[prompt].nonzero()[:, 0]
        own = attention[prompt][:, there][:, :, there]
        spare = max(keep - len(there), 0)
        if spare:
            hidden = (~real[prompt].bool()).nonzero()[:spare, 0] if real is not None else there[:0]
            rows.append(torch.cat([hidden, there]).expand(heads, -1))
        elif keep == len(there):
            rows.append(there.expand(heads, -1))
        else:
            rows.append(there[choose(own, keep, heads)])
    lists = min(map(len, rows))
    return torch.stack([row[:lists] for row in rows])


def taken(part: Tensor, index: Tensor) -> Tensor:
    """Entries [B,H,K,D] of a cache at [B,H,K] or [B,1,K]."""
    every = index.expand(-1, part.shape[1], -1)[..., None].expand(-1, -1, -1, part.shape[3])
    return part.gather(2, every)


def stepped(
    family: str, caches: Sequence[Tensor], embeds: Tensor, places: Tensor, mask: Tensor | None = None
) -> Seen:
    """One more token behind caches."""
    past = prefill.cache_of([part.clone() for part in caches])
    more = {} if mask is None else {"attention_mask": mask}
    return watched(
        family, lambda made: prefill.call(made, past, inputs_embeds=embeds, position_ids=places, **more)
    )


def arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [part.numpy() for part in tensors]


def outputs(model: Any, given: dict[str, Any]) -> dict[str, np.ndarray]:
    made = session(model)
    names = [value.name for value in made.get_outputs()]
    feeds = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
    return dict(zip(names, run(made, feeds), strict=True))


def decoder(past: int, tokens: int = 1) -> list[str]:
    """What makes of a merged decoder one for a single token, or several, behind a past of this length."""
    shapes = {
        "inputs_embeds": f"1x{tokens}x{prefill.WIDTH}",
        "attention_mask": f"1x{past + tokens}",
        "position_ids": f"1x{tokens}",
    }
    return [
        f"{name}={dims}" for name, dims in (shapes | dict.fromkeys(prefill.PAST, f"1x2x{past}x8")).items()
    ]


def indices(found: dict[str, np.ndarray], name: str = "cache_index") -> list[np.ndarray]:
    """[B,H,K] of every layer, or [B,1,K]."""
    each = [found[f"{name}_layer{layer}"] for layer in range(LAYERS)]
    return [index if index.ndim == 3 else index[:, None] for index in each]


def padded() -> dict[str, torch.Tensor]:
    """Three prompts: without padding, with padding in front, and behind; the last is shorter than what stays."""
    given = prefill.inputs("mask", batch=3)
    given["attention_mask"][1, :5] = 0
    given["attention_mask"][2, 9:] = 0
    given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return given


def goes_on(
    score: torch.Tensor, fresh: torch.Tensor, keep: int, latest: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[1,H,K] and the scores there: those of before [1,H,N-1], with a new entry at zero, and what this call adds [1,A,1,N]."""
    total = torch.cat([score, torch.zeros(1, score.shape[1], 1)], 2) + by_keys(fresh.sum(2), score.shape[1])
    index = heavy(total[0], keep, latest)[None]
    return index, total.gather(2, index)
