"""The mean over the words of a text, written with its mask, behind methods that drop words: against plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.helpers.running import run
from tests.passes.helpers.streams import seeded, traced
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

CHANNELS, HEADS, TOKENS = 16, 2, 10
KEEP = {0: 8, 1: 6}
Pool = Callable[[Tensor, Tensor], Tensor]
Cut = Callable[[Tensor, Tensor, int], Tensor]
"""Tokens [N,C], attention [H,N,N] and a number K to the tokens that stay."""


def _expanded(x: Tensor, mask: Tensor) -> Tensor:
    weights = mask.unsqueeze(-1).expand(x.size()).to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _filled(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(mask[..., None] == 0, 0.0).sum(1) / mask.sum(1, keepdim=True)


def _weighted(x: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(x.dtype) / mask.sum(1, keepdim=True)
    return (x * weights[..., None]).sum(1)


def _averaged(x: Tensor, mask: Tensor) -> Tensor:
    share = mask.to(x.dtype).mean(1, keepdim=True)
    return (x * mask[..., None].to(x.dtype)).mean(1) / share


def _without_the_first(x: Tensor, mask: Tensor) -> Tensor:
    return _expanded(x[:, 1:], mask[:, 1:])


POOLS: dict[str, Pool] = {
    "expanded": _expanded,
    "filled": _filled,
    "weighted": _weighted,
    "averaged": _averaged,
    "without the first": _without_the_first,
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.query, self.key, self.value, self.out = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.up, self.down = nn.Linear(CHANNELS, 32), nn.Linear(32, CHANNELS)

    def forward(
        self, x: Tensor, bias: Tensor | float, cut: Callable[[Tensor, Tensor], Tensor] | None
    ) -> Tensor:
        h = self.first(x)
        q, k, v = (
            part(h).unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) * (CHANNELS // HEADS) ** -0.5 + bias).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x if cut is None else cut(x[0], weights[0])[None]
        result: Tensor = x + self.down(functional.gelu(self.up(self.second(x))))
        return result


class Text(nn.Module):
    def __init__(self, pool: Pool, first: bool) -> None:
        super().__init__()
        self.pool, self.words = pool, nn.Embedding(50, CHANNELS)
        self.cls = nn.Parameter(torch.randn(1, 1, CHANNELS)) if first else None
        self.places = nn.Parameter(torch.randn(1, TOKENS, CHANNELS))
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def start(self, words: Tensor) -> Tensor:
        x = self.words(words)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
        return x + self.places

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        x = self.start(words)
        bias = (1 - mask[:, None, None].to(x.dtype)) * -1e4
        for block in self.blocks:
            x = block(x, bias, None)
        return self.pool(x, mask)

    def by_hand(self, words: Tensor, mask: Tensor, cut: Cut) -> Tensor:
        """One text at a time, without its padding, which touches nothing; the mean over the words that are left."""
        made = []
        for row, shown in zip(words, mask, strict=True):
            x = self.start(row[None])[:, shown > 0]
            for number, block in enumerate(self.blocks):
                keep = min(KEEP.get(number, TOKENS), x.shape[1])
                x = block(x, 0.0, lambda tokens, weights, keep=keep: cut(tokens, weights, keep))
            made.append(x[0, 1:].mean(0) if self.cls is not None else x[0].mean(0))
        return torch.stack(made)


def first(x: Tensor, weights: Tensor, keep: int) -> Tensor:
    return x[:keep]


def received(x: Tensor, weights: Tensor, keep: int) -> Tensor:
    return x[weights.mean((0, 1)).topk(keep).indices.sort().values]


def given() -> tuple[Tensor, Tensor]:
    words = torch.randint(0, 50, (4, TOKENS), generator=torch.Generator().manual_seed(4))
    return words, (torch.arange(TOKENS)[None] < torch.tensor([[10], [7], [4], [6]])).long()


def exported(net: nn.Module) -> ir.Model:
    return ir.from_proto(traced(net, given(), ["words", "mask"]))


def compare(net: Any, method: str, cut: Cut, **options: Any) -> None:
    made = reduce(exported(net), method=method, budget=Budget.tokens([*KEEP.values()], [*KEEP]), **options)
    words, mask = given()
    (found,) = run(made.model, {"words": words.numpy(), "mask": mask.numpy()})
    with torch.no_grad():
        wanted = net.by_hand(words, mask, cut).numpy()
    assert np.abs(found - wanted).max() < 2e-6 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("kind", POOLS)
def test_a_mean_over_words_is_one_over_the_words_that_are_left(kind: str) -> None:
    """Numerator and denominator count the same words, though the model counts those of its mask: texts of every length."""
    net = seeded(Text(POOLS[kind], first=kind == "without the first"))
    compare(net, "slice", first)


@pytest.mark.parametrize("kind", ["expanded", "filled", "averaged"])
def test_with_words_chosen_by_the_attention_they_receive(kind: str) -> None:
    compare(seeded(Text(POOLS[kind], first=False)), "topk", received, options={"score": "received"})
