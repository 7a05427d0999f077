"""Transformer blocks in plain torch whose tokens can leave, around the attention or behind it."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.helpers.probes import Line

WIDTH, CONTEXT, HEADS = 16, 12, 2

Plan = Mapping[tuple[int, int], int]
"""Tokens behind block b of transformer t, by (t, b)."""


class Attention(nn.Module):
    """Queries of one stream, keys and values of another; sizes [N] are added to the logits as logarithms."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key, self.value = (nn.Linear(context, WIDTH, bias=False) for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, x: Tensor, context: Tensor, sizes: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        parts = self.query(x), self.key(context), self.value(context)
        q, k, v = (p.reshape(p.shape[0], p.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2) for p in parts)
        logits = q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5
        logits = logits if bias is None else logits + bias
        mixed = (logits if sizes is None else logits + sizes.log()).softmax(dim=-1) @ v
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return result


@dataclass
class Walk:
    """How the tokens of one image run through one transformer: what is left behind its blocks, and what left."""

    method: Any
    around: bool
    keep: Mapping[int, int]
    line: Line = field(default_factory=lambda: Line(torch.empty(0), torch.empty(0)))

    def attended(self, number: int, norm: nn.Module, own: Attention, x: Tensor) -> Tensor:
        """The stream [1,N,C] behind block `number`'s own attention."""
        line, keep, h = self.line, self.keep.get(number, 0), norm(x)
        if not line.left:
            line.sizes = x.new_ones(x.shape[1])
        line.stream = x[0]
        if keep and self.around:
            short = self.method(line, h[0], keep)[None]
            return x + line.back(own(short, short, self.sizes())[0])[None]
        x = x + own(h, h, self.sizes())
        return self.method(line, x[0], keep)[None] if keep else x

    def sizes(self) -> Tensor | None:
        return self.line.sizes if self.method.proportional else None

    def back(self, x: Tensor) -> Tensor:
        """All tokens again."""
        return self.line.back(x[0])[None]


class Block(nn.Module):
    """Self-attention, cross-attention where there is a context, gated MLP."""

    def __init__(self, context: int = 0) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.own = Attention(WIDTH)
        self.cross = Attention(context) if context else None
        self.table: Tensor | None = None
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(
        self, x: Tensor, context: Tensor | None, walk: Walk | None, number: int, sizes: Tensor | None = None
    ) -> Tensor:
        if walk is None:
            h = self.first(x)
            x = x + self.own(h, h)
        else:
            x = walk.attended(number, self.first, self.own, x)
        if self.cross is not None and context is not None:
            x = x + self.cross(self.second(x), context, sizes, self.table)
        left, gate = self.up(self.third(x)).chunk(2, dim=-1)
        result: Tensor = x + self.down(left * functional.gelu(gate))
        return result


@dataclass(frozen=True)
class Cells:
    """ToMe for diffusion: the top left token of each 2 x 2 cell takes the sources most like it; means; copied back."""

    grids: Mapping[int, tuple[int, int]]
    proportional: bool = False

    def __call__(self, line: Line, x: Tensor, keep: int) -> Tensor:
        height, breadth = self.grids[len(x)]
        places = torch.arange(len(x)).reshape(height, breadth)
        goal = places[: height // 2 * 2 : 2, : breadth // 2 * 2 : 2].reshape(-1)
        source = torch.tensor(sorted({*range(len(x))} - {*goal.tolist()}))
        assert line.stream is not None
        unit = functional.normalize(line.stream, dim=1)
        best, nearest = (unit[source] @ unit[goal].T).max(dim=1)
        leave = best.argsort(descending=True)[: len(x) - keep]
        assign = torch.full((len(x),), -1)
        for token, into in zip(source[leave].tolist(), goal[nearest[leave]].tolist(), strict=True):
            assign[token] = into
        stay = [token for token in range(len(x)) if assign[token] < 0]
        slots = {token: slot for slot, token in enumerate(stay)}
        assign = torch.tensor([slots[int(into) if into >= 0 else token] for token, into in enumerate(assign)])
        line.left.append((assign, x, None))
        return torch.stack([x[assign == slot].mean(dim=0) for slot in range(keep)])


@dataclass(frozen=True)
class Tome:
    """ToMe: even positions into odd ones by mean keys, size-weighted means; front: protected tokens before these."""

    front: int = 0
    proportional: bool = True

    def __call__(self, line: Line, x: Tensor, keep: int) -> Tensor:
        assert line.metric is not None
        unit = functional.normalize(line.metric, dim=1)
        even, odd = (torch.arange((self.front + side) % 2, len(x), 2) for side in (0, 1))
        best, nearest = (unit[even] @ unit[odd].T).max(dim=1)
        order = best.argsort(descending=True)
        leave, stay = order[: len(x) - keep], order[len(x) - keep :]
        line.stands = torch.cat([even[stay.sort().values if self.front else stay], odd])
        assign = torch.empty(len(x), dtype=torch.int64)
        assign[line.stands] = torch.arange(keep)
        assign[even[leave]] = assign[odd[nearest[leave]]]
        members = (assign[None] == torch.arange(keep)[:, None]).to(x) * line.sizes
        line.left.append((assign, x, None))
        line.sizes = members.sum(dim=1)
        return members @ x / line.sizes[:, None]


@dataclass(frozen=True)
class Topk:
    """Those that receive the most attention stay, or, if `by_key`, those whose mean keys are longest."""

    by_key: bool = False
    proportional: bool = False

    def __call__(self, line: Line, x: Tensor, keep: int) -> Tensor:
        score = line.metric.norm(dim=1) if self.by_key and line.metric is not None else line.received
        assert score is not None
        line.stands = score.topk(keep).indices.sort().values
        assign = torch.full((len(x),), -1)
        assign[line.stands] = torch.arange(keep)
        line.left.append((assign, x, None))
        line.sizes = line.sizes[line.stands]
        return x[line.stands]


@dataclass(frozen=True)
class Soft:
    """Expedit from a grid to a smaller one whose sides divide it, restored by weights that add up to one."""

    grid: tuple[int, int]
    small: tuple[int, int]
    proportional: bool = False
    window, temperature, near, sharpness, rounds = 3, 0.1, 3, 0.05, 5

    @property
    def options(self) -> dict[str, float | str]:
        """The same as options of the method."""
        return {
            "rows": self.small[0],
            "iterations": self.rounds,
            "temperature": self.temperature,
            "window": self.window,
            "recon_temperature": self.sharpness,
            "recon_k": self.near,
            "norm": "l1",
        }

    def __call__(self, line: Line, x: Tensor, keep: int) -> Tensor:
        row, column = (
            torch.arange(whole) * few // whole for whole, few in zip(self.grid, self.small, strict=True)
        )
        cell = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).reshape(-1, 2)
        mine = torch.cartesian_prod(*(torch.arange(few) for few in self.small))
        apart = (mine[:, None] - cell[None]).abs().amax(dim=2)
        centres = torch.stack([x[apart[each] == 0].mean(dim=0) for each in range(keep)])
        for _ in range(self.rounds):
            logits = -self.temperature * (centres[:, None] - x[None]).square().sum(dim=2)
            shares = logits.masked_fill(apart > self.window // 2, -torch.inf).softmax(dim=0)
            centres = shares @ x / shares.sum(dim=1, keepdim=True)
        distance = (x[:, None] - centres[None]).square().sum(dim=2)
        far = distance > distance.sort(dim=1).values[:, min(self.near, keep) - 1 :][:, :1]
        weights = (-self.sharpness * distance).masked_fill(far, -torch.inf).softmax(dim=1)
        line.stands = shares.argmax(dim=1)
        line.left.append((distance.argmin(dim=1), x, weights))
        line.sizes = shares @ line.sizes
        return centres


def seeded(net: nn.Module) -> nn.Module:
    """Weights that make attentions differ, and norms of unequal weight.

    Without those all tokens have one length, and rounding decides which is longest.
    """
    drawn = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim == 2:
            parameter.data = torch.randn(parameter.shape, generator=drawn) * parameter.shape[1] ** -0.5
        elif parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=drawn)
    return net.eval()


def traced(
    net: nn.Module,
    inputs: tuple[Tensor, ...],
    names: Sequence[str],
    outputs: Sequence[str] = ("y",),
    *,
    free: bool = True,
) -> onnx.ModelProto:
    """The model as torch's older exporter writes it; free: any number of images."""
    file = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            inputs,
            file,
            dynamo=False,
            opset_version=17,
            input_names=[*names],
            output_names=[*outputs],
            dynamic_axes={name: {0: "batch"} for name in (*names, *outputs)} if free else {},
        )
    return onnx.load_from_string(file.getvalue())


def plain(net: Any, inputs: Iterable[Tensor], kind: torch.dtype, **how: Any) -> list[Tensor]:
    """Outputs of a model in this type, one image after the other; how: method, plan and around."""
    cast = [value.to(kind) if value.is_floating_point() else value for value in inputs]
    rows = zip(*cast, strict=True)
    with torch.no_grad():
        made = [copy.deepcopy(net).to(kind)(*(value[None] for value in row), **how) for row in rows]
    made = [each if isinstance(each, tuple) else (each,) for each in made]
    return [torch.cat(parts) for parts in zip(*made, strict=True)]
