"""Attention on pictures [B,C,H,W] and on rows [B,C,N], projections as convolutions of one position: against plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.published import ToMe
from tests.passes.helpers.running import run
from tests.passes.helpers.streams import plain, seeded, traced
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

CHANNELS, HEADS, SIDE = 16, 2, 4
WIDTH, TOKENS = CHANNELS // HEADS, SIDE * SIDE
SCALE = WIDTH**-0.5
Cut = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Tokens [N,C], queries and keys [H,N,D], sizes [N] to the tokens and sizes left, and which of the tokens have left."""


@dataclass
class Walk:
    """What leaves behind the attention of each block of one picture. mass: sizes of what is left; gone: what left."""

    cuts: dict[int, Cut]
    weighs: bool = False
    mass: Tensor | None = None
    gone: list[Tensor] = field(default_factory=list)


class Norm(nn.Module):
    """A norm over the channels, written as people do where they come first."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.weight, self.bias = nn.Parameter(torch.ones(CHANNELS)), nn.Parameter(torch.zeros(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "turned":
            last = x.flatten(2).transpose(1, 2)
            made = functional.layer_norm(last, (CHANNELS,), self.weight, self.bias, 1e-6)
            return made.transpose(1, 2).reshape(x.shape)
        away = x - x.mean(1, keepdim=True)
        shape = (-1, *[1] * (x.ndim - 2))
        unit = away / (away.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return unit * self.weight.reshape(shape) + self.bias.reshape(shape)


class Block(nn.Module):
    """Attention and MLP on [B,C,H,W] or [B,C,N]; form: which side of the products the keys stand on."""

    def __init__(self, form: str, norm: str, layer: Any) -> None:
        super().__init__()
        self.form, self.first, self.second = form, Norm(norm), Norm(norm)
        self.parts, self.out = layer(CHANNELS, 3 * CHANNELS, 1), layer(CHANNELS, CHANNELS, 1)
        self.up, self.down = layer(CHANNELS, 32, 1), layer(32, CHANNELS, 1)

    def forward(self, x: Tensor, walk: Walk | None, number: int) -> Tensor:
        batch, places = x.shape[0], x.shape[2:]
        split = self.parts(self.first(x)).reshape(batch, HEADS, 3 * WIDTH, math.prod(places))
        q, k, v = split.split([WIDTH] * 3, dim=2)
        if walk is not None:
            logits = q.transpose(2, 3) @ k * SCALE
            logits = logits if walk.mass is None or not walk.weighs else logits + walk.mass.log()
            made = v @ logits.softmax(-1).transpose(2, 3)
        elif self.form == "values first":
            made = v @ (q.transpose(2, 3) @ k * SCALE).softmax(-1).transpose(2, 3)
        elif self.form == "keys by queries":
            made = v @ (k.transpose(2, 3) @ q * SCALE).softmax(2)
        else:
            q, k, v = (part.transpose(2, 3) for part in (q, k, v))
            made = ((q @ k.transpose(2, 3) * SCALE).softmax(-1) @ v).transpose(2, 3)
        x = x + self.out(made.reshape(batch, CHANNELS, *places))
        if walk is not None and number in walk.cuts:
            sizes = x.new_ones(x.shape[2]) if walk.mass is None else walk.mass
            tokens = x[0].flatten(1).T
            left, walk.mass, gone = walk.cuts[number](
                tokens, q[0].transpose(1, 2), k[0].transpose(1, 2), sizes
            )
            walk.gone.append(gone)
            x = left.T[None] if x.ndim == 3 else left.T[None, :, :, None]
        return x + self.down(functional.silu(self.up(self.second(x))))


class Net(nn.Module):
    """Three blocks; head: the largest or the mean of each channel, or a convolution over the grid."""

    def __init__(self, form: str, norm: str, rows: bool, head: str) -> None:
        super().__init__()
        self.rows, self.head = rows, head
        self.enter, self.places = (
            nn.Conv2d(3, CHANNELS, 8, 8),
            nn.Parameter(torch.randn(1, CHANNELS, SIDE, SIDE)),
        )
        layer = nn.Conv1d if rows else nn.Conv2d
        self.blocks = nn.ModuleList(Block(form, norm, layer) for _ in range(3))
        self.linear, self.window = nn.Linear(CHANNELS, 5), nn.Conv2d(CHANNELS, 4, 3, padding=1)

    def forward(self, image: Tensor, walk: Callable[[], Walk] | None = None) -> Tensor:
        """walk: makes what leaves; then one picture at a time."""
        made = None if walk is None else walk()
        x = self.enter(image) + self.places
        x = x.flatten(2) if self.rows or made else x
        if made and not self.rows:
            x = x[..., None]
        for number, block in enumerate(self.blocks):
            x = block(x, made, number)
        if self.head == "largest":
            return self.linear(x.flatten(2).amax(2))
        if self.head == "mean":
            sizes = x.new_ones(1) if made is None or made.mass is None else made.mass
            weights = sizes.expand(x.flatten(2).shape[2])
            return self.linear((x.flatten(2) * weights).sum(2) / weights.sum())
        if made:
            x = torch.cat([x.flatten(2), *(gone.T[None] for gone in reversed(made.gone))], dim=2)
        return self.window(x.reshape(-1, CHANNELS, SIDE, SIDE))


def first(count: int) -> Cut:
    return lambda x, q, k, sizes: (x[:count], sizes[:count], x[count:])


def longest_keys(count: int) -> Cut:
    """Keep the tokens whose mean key is longest, in the order of their places."""

    def cut(x: Tensor, q: Tensor, k: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = k.mean(0).norm(dim=1).topk(count).indices.sort().values
        return x[index], sizes[index], x[:0]

    return cut


def received(count: int) -> Cut:
    """Keep the tokens that get most attention, on the mean over heads and queries."""

    def cut(x: Tensor, q: Tensor, k: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = (q @ k.transpose(1, 2) * SCALE).softmax(-1).mean((0, 1))
        index = weights.topk(count).indices.sort().values
        return x[index], sizes[index], x[:0]

    return cut


def merged(remove: int) -> Cut:
    method = ToMe(remove, 0)
    return lambda x, q, k, sizes: (*method(x, q, k, sizes, 0)[:2], x[:0])


def image() -> Tensor:
    return torch.randn(2, 3, 8 * SIDE, 8 * SIDE, generator=torch.Generator().manual_seed(2))


def exported(net: nn.Module, *, free: bool = True) -> ir.Model:
    return ir.from_proto(traced(net, (image(),), ["x"], free=free))


def compare(made: ir.Model, net: nn.Module, cuts: dict[int, Cut], *, weighs: bool = False) -> None:
    (found,) = run(made, {"x": image().numpy()})
    double, single = (
        plain(net, [image()], kind, walk=lambda: Walk(cuts, weighs))[0]
        for kind in (torch.float64, torch.float32)
    )
    within_twice(found, double, single)


FORMS = [
    ("values first", "turned", False, "window"),
    ("values first", "by hand", True, "largest"),
    ("keys by queries", "by hand", False, "mean"),
    ("keys by queries", "turned", True, "window"),
    ("queries first", "turned", False, "largest"),
    ("queries first", "by hand", True, "mean"),
]


@pytest.mark.parametrize("free", [True, False], ids=["free", "fixed"])
@pytest.mark.parametrize(("form", "norm", "rows", "head"), FORMS)
def test_streams_with_the_channels_first(form: str, norm: str, rows: bool, head: str, free: bool) -> None:
    """Tokens cut off, chosen by keys and by attention, and merged; back before a convolution over the grid."""
    net = seeded(Net(form, norm, rows, head))
    model = exported(net, free=free)
    found = inspect(model)
    assert [(row.tokens, row.heads) for row in found.blocks] == [(TOKENS, HEADS)] * 3
    made = reduce(model, method="slice", budget=Budget.tokens([13, 10, 7]))
    compare(made.model, net, {0: first(13), 1: first(10), 2: first(7)})
    if head == "window" or not free:
        return
    made = reduce(model, method="tome", budget=Budget.remove(3))
    compare(made.model, net, {number: merged(3) for number in range(3)}, weighs=True)
    for score, cut in (("key_norm", longest_keys), ("received", received)):
        made = reduce(model, method="topk", budget=Budget.tokens([12, 9], [0, 1]), options={"score": score})
        compare(made.model, net, {0: cut(12), 1: cut(9)})


class Mixing(nn.Module):
    """Blocks whose MLP has a depthwise convolution with a window in it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.blocks = (
            nn.Conv2d(3, CHANNELS, 8, 8),
            nn.ModuleList(Block("values first", "turned", nn.Conv2d) for _ in range(2)),
        )
        self.near, self.linear = (
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
            nn.Linear(CHANNELS, 5),
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.enter(image)
        for block in self.blocks:
            x = block(x, None, 0)
            x = x + self.near(x)
        return self.linear(x.mean((2, 3)))


def test_a_window_between_the_blocks_is_named() -> None:
    """What lies in front of it cannot lose tokens; no block is offered whose tokens would be needed there."""
    model = exported(seeded(Mixing()))
    found = inspect(model)
    assert [row.index for row in found.blocks] == [0]
    (refusal,) = found.refusals
    assert "Conv node" in refusal.reason
    assert "it works on neighbouring positions and needs all of them" in refusal.reason
