"""Small denoisers as diffusion has them: norms and gates made of the timestep, rotary positions, text beside the picture."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.helpers.probes import Line

WIDTH, HEADS, SIDE, TEXT = 16, 2, 4, 3
TOKENS = SIDE * SIDE
PACKED = 16
"""Numbers of a row of packed latents: 4 channels of 2 x 2."""


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions for [B,H,N,D]; angles [N,D]."""
    left, right = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-right, left], dim=-1) * angles.sin()


def angles_of(tokens: int, width: int = WIDTH) -> Tensor:
    half = torch.arange(tokens)[:, None] / 3.0 ** torch.arange(width // HEADS // 2)
    return torch.cat([half, half], dim=1)


def by_head(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


def adapted(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, (int(x.shape[2]),)) * (1 + scale[:, None]) + shift[:, None]


def mixed(q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None = None) -> Tensor:
    """sizes [N]: how many tokens each key stands for."""
    scores = q @ k.transpose(2, 3) * int(q.shape[3]) ** -0.5
    weights = (scores if sizes is None else scores + sizes.log()).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Stream(nn.Module):
    """What one stream brings to an attention, and what it makes of the result: adaptive norms, gates, MLP."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.adapt = nn.Linear(width, 6 * width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def numbers(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.adapt(functional.silu(time)).chunk(6, dim=1)

    def parts(self, h: Tensor, angles: Tensor) -> list[Tensor]:
        q, k, v = (by_head(part(h)) for part in (self.query, self.key, self.value))
        return [turned(q, angles), turned(k, angles), v]

    def fed(self, x: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        *_, shift, scale, gate = numbers
        h = functional.gelu(self.up(adapted(x, shift, scale)), approximate="tanh")
        return x + gate[:, None] * self.down(h)


class DiT(nn.Module):
    """Blocks on patches of a latent; the head puts its patches back on the grid."""

    def __init__(self, width: int = WIDTH, side: int = SIDE, blocks: int = 3) -> None:
        super().__init__()
        self.side = side
        self.enter, self.time = nn.Conv2d(4, width, 2, 2), nn.Linear(2, width)
        self.blocks = nn.ModuleList(Stream(width) for _ in range(blocks))
        self.adapt, self.leave = nn.Linear(width, 2 * width), nn.Linear(width, 16)
        self.register_buffer("angles", angles_of(side * side, width))

    def forward(
        self, latent: Tensor, timestep: Tensor, keep: dict[int, int] | None = None, method: Any = None
    ) -> Tensor:
        """keep: tokens left at each block; the first of them stay, or `method` merges for the attention alone."""
        time = self.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        x, angles, gone = self.enter(latent).flatten(2).transpose(1, 2), self.angles, list[Tensor]()
        for number, block in enumerate(self.blocks):
            numbers = block.numbers(time)
            count = (keep or {}).get(number, x.shape[1])
            here = adapted(x, *numbers[:2])
            if method is not None and count < x.shape[1]:
                line = Line(x[0], x.new_ones(x.shape[1]), stream=x[0])
                short = method(line, here[0], count)[None]
                at = self.angles[first_members(line.left[0][0], count)]
                result = line.back(block.out(mixed(*block.parts(short, at)))[0])[None]
            else:
                result = block.out(mixed(*block.parts(here, angles)))
            x = x + numbers[2][:, None] * result
            if method is None and count < x.shape[1]:
                gone.append(x[:, count:])
                x, angles = x[:, :count], angles[:count]
            x = block.fed(x, numbers)
        x = torch.cat([x, *reversed(gone)], dim=1)
        shift, scale = self.adapt(functional.silu(time)).chunk(2, dim=1)
        patches = self.leave(adapted(x, shift, scale)).reshape(-1, self.side, self.side, 2, 2, 4)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 4, 2 * self.side, 2 * self.side)


def first_members(assign: Tensor, count: int) -> Tensor:
    """The token whose place a merged one takes: the destination, which is the top left of its cell."""
    goals = {row * SIDE + column for row in range(0, SIDE, 2) for column in range(0, SIDE, 2)}
    members = [[token for token in range(len(assign)) if assign[token] == slot] for slot in range(count)]
    return torch.tensor([next((token for token in each if token in goals), each[0]) for each in members])


@dataclass(frozen=True)
class First:
    """The first tokens stay; the others come back as they were when they left."""

    proportional: bool = False

    def __call__(self, line: Line, x: Tensor, keep: int) -> Tensor:
        assign = torch.arange(len(x))
        assign[keep:] = -1
        line.left.append((assign, x, None))
        line.sizes = line.sizes[:keep]
        return x[:keep]


@dataclass
class Leaving:
    """How a picture's tokens run through blocks: who leaves, for the attention alone or for good, where the others stand."""

    method: Any
    around: bool
    line: Line
    at: Tensor

    @classmethod
    def of(cls, method: Any, around: bool, x: Tensor) -> Leaving:
        return cls(method, around, Line(x[0], x.new_ones(x.shape[1])), torch.arange(x.shape[1]))

    def less(self, x: Tensor, count: int, stream: Tensor) -> Tensor:
        """What is left of [1,N,C]."""
        self.line.stream, self.line.stands = stream[0], None
        short: Tensor = self.method(self.line, x[0], count)[None]
        stands, assign = self.line.stands, self.line.left[-1][0]
        if stands is None:
            firsts = [int((assign == slot).nonzero()[0, 0]) for slot in range(count)]
            stands = first_members(assign, count) if self.around else torch.tensor(firsts)
        self.at = self.at[stands]
        return short

    def saw(self, query: Tensor, key: Tensor, front: int = 0) -> None:
        """What an attention of [1,H,N,D] tells of the tokens behind the first `front`."""
        weights = (query @ key.transpose(2, 3) * int(key.shape[3]) ** -0.5).softmax(dim=-1)
        self.line.received = weights[0].mean(dim=(0, 1))[front:]
        self.line.metric = key[0].mean(dim=0)[front:]

    def back(self, x: Tensor) -> Tensor:
        """All again."""
        whole = self.line.back(x[0])[None]
        self.at = torch.arange(whole.shape[1])
        return whole

    def sizes(self, front: int, behind: int) -> Tensor | None:
        """What each key counts, where tokens of another stream stand beside these."""
        own = self.line.sizes
        return (
            torch.cat([own.new_ones(front), own, own.new_ones(behind)]) if self.method.proportional else None
        )


class Joint(nn.Module):
    """Blocks in which text and image attend to one another, each with weights of its own; then blocks over both as one.

    packed: the latent picture comes as rows [B,N,PACKED].
    """

    def __init__(self, single: int = 0, text_first: bool = False, packed: bool = False) -> None:
        super().__init__()
        self.enter = nn.Linear(PACKED, WIDTH) if packed else nn.Conv2d(4, WIDTH, 2, 2)
        self.time, self.packed = nn.Linear(2, WIDTH), packed
        self.image, self.text = (nn.ModuleList(Stream() for _ in range(2)) for _ in range(2))
        self.single = nn.ModuleList(Single() for _ in range(single))
        self.leave, self.text_first = nn.Linear(WIDTH, PACKED if packed else 4), text_first

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        plan: dict[tuple[int, int], int] | None = None,
        method: Any = None,
        around: bool = True,
    ) -> Tensor:
        """plan: tokens left at block b, those of text counted too where both are one stream; (0, b) with two, (1, b) with one."""
        plan = plan or {}
        time = self.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        x, angles = self.entered(latent), angles_of(TOKENS + TEXT).to(latent)
        go = Leaving.of(method or First(), around, x)
        for number, (image, words) in enumerate(zip(self.image, self.text, strict=True)):
            numbers, count = (image.numbers(time), words.numbers(time)), plan.get((0, number), 0)
            here = adapted(x, *numbers[0][:2])
            here = go.less(here, count, x) if count and around else here
            own = image.parts(here, angles[TEXT:][go.at])
            go.saw(*own[:2])
            other = words.parts(adapted(text, *numbers[1][:2]), angles[:TEXT])
            if self.text_first:
                both = mixed(
                    *(torch.cat(pair, dim=2) for pair in zip(other, own, strict=True)), go.sizes(TEXT, 0)
                )
                second, first = both[:, :TEXT], both[:, TEXT:]
            else:
                both = mixed(
                    *(torch.cat(pair, dim=2) for pair in zip(own, other, strict=True)), go.sizes(0, TEXT)
                )
                first, second = both[:, :-TEXT], both[:, -TEXT:]
            result = image.out(first)
            x = x + numbers[0][2][:, None] * (go.back(result) if count and around else result)
            x = image.fed(go.less(x, count, x) if count and not around else x, numbers[0])
            text = words.fed(text + numbers[1][2][:, None] * words.out(second), numbers[1])
        x = x if around else go.back(x)
        if self.single:
            both = torch.cat([text, x], dim=1)
            for number, block in enumerate(self.single):
                both = block(both, time, angles, go, plan.get((1, number), 0))
            x = (
                both[:, TEXT:]
                if around
                else torch.cat([both[:, :TEXT], go.back(both[:, TEXT:])], dim=1)[:, TEXT:]
            )
        result: Tensor = self.leave(x)
        return result

    def entered(self, latent: Tensor) -> Tensor:
        """[B,N,C] of a latent picture, or of rows of packed latents."""
        found: Tensor = self.enter(latent)
        return found if self.packed else found.flatten(2).transpose(1, 2)


class Single(nn.Module):
    """Attention and MLP side by side, joined along the channels in front of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, self.out = Stream(), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor, time: Tensor, angles: Tensor, go: Leaving, count: int) -> Tensor:
        shift, scale, gate, *_ = self.stream.numbers(time)
        h = adapted(x, shift, scale)
        short = count and go.around
        if short:
            h = torch.cat([h[:, :TEXT], go.less(h[:, TEXT:], count - TEXT, x[:, TEXT:])], dim=1)
        at = torch.cat([torch.arange(TEXT), go.at + TEXT])
        query, key, value = self.stream.parts(h, angles[at])
        go.saw(query, key, TEXT)
        parts = [mixed(query, key, value, go.sizes(TEXT, 0)), functional.gelu(self.stream.up(h))]
        result = gate[:, None] * self.out(torch.cat(parts, dim=2))
        if short:
            result = torch.cat([result[:, :TEXT], go.back(result[:, TEXT:])], dim=1)
        x = x + result
        if count and not go.around:
            x = torch.cat([x[:, :TEXT], go.less(x[:, TEXT:], count - TEXT, x)], dim=1)
        return x


class Crossed(nn.Module):
    """A block of PixArt: norms and gates are numbers that all blocks share plus a table [6,C]; text is read without a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, WIDTH))
        self.own, self.cross = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)) for _ in range(2))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, shared: Tensor, text: Tensor, go: Leaving, count: int) -> Tensor:
        """shared [B,6,C]; count: tokens left here, 0 for all."""
        shift, scale, gate, *fed = (self.table[None] + shared).chunk(6, dim=1)
        h = modulated(x, shift, scale)
        h = go.less(h, count, x) if count and go.around else h
        query, key, value, out = self.own
        parts = [by_head(part(h)) for part in (query, key, value)]
        go.saw(*parts[:2])
        result = out(mixed(*parts, go.sizes(0, 0)))
        x = x + gate * (go.back(result) if count and go.around else result)
        x = go.less(x, count, x) if count and not go.around else x
        query, key, value, out = self.cross
        x = x + out(mixed(by_head(query(x)), by_head(key(text)), by_head(value(text))))
        shift, scale, gate = fed
        return x + gate * self.down(functional.gelu(self.up(modulated(x, shift, scale)), approximate="tanh"))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """shift and scale [B,1,C]."""
    return functional.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift


class PixArt(nn.Module):
    """Self-attention with gates, cross-attention to text without, an MLP with one; positions are added to the patches."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.enter, self.time = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(2, WIDTH)
        self.shared, self.caption = nn.Linear(WIDTH, 6 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Crossed() for _ in range(blocks))
        self.table, self.leave = nn.Parameter(torch.zeros(2, WIDTH)), nn.Linear(WIDTH, 16)
        self.register_buffer("places", angles_of(TOKENS, HEADS * WIDTH).sin())

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        plan: dict[tuple[int, int], int] | None = None,
        method: Any = None,
        around: bool = True,
    ) -> Tensor:
        """plan: tokens left at block b, by (0, b)."""
        time = self.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        shared = self.shared(functional.silu(time)).reshape(-1, 6, WIDTH)
        x = self.enter(latent).flatten(2).transpose(1, 2) + self.places
        text, go = functional.gelu(self.caption(text)), Leaving.of(method or First(), around, x)
        for number, block in enumerate(self.blocks):
            x = block(x, shared, text, go, (plan or {}).get((0, number), 0))
        x = x if around else go.back(x)
        shift, scale = (self.table[None] + time[:, None]).chunk(2, dim=1)
        patches = self.leave(modulated(x, shift, scale)).reshape(-1, SIDE, SIDE, 2, 2, 4)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 4, 2 * SIDE, 2 * SIDE)


def given(net: nn.Module) -> dict[str, Tensor]:
    made, side = torch.Generator().manual_seed(3), getattr(net, "side", SIDE)
    shape = (TOKENS, PACKED) if getattr(net, "packed", False) else (4, 2 * side, 2 * side)
    inputs = {
        "latent": torch.randn(2, *shape, generator=made),
        "timestep": torch.tensor([0.3, 1.9]),
    }
    return inputs | (
        {"text": torch.randn(2, TEXT, WIDTH, generator=made)} if isinstance(net, Joint | PixArt) else {}
    )


def exported(net: nn.Module, file: Path, *, free: bool = True, dynamo: int = 0) -> Path:
    """The net as ONNX; dynamo: the operator set of that exporter, 0 for the other one."""
    inputs = given(net)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            tuple(inputs.values()),
            str(file),
            dynamo=bool(dynamo),
            opset_version=dynamo or 17,
            input_names=[*inputs],
            output_names=["noise"],
            dynamic_axes={name: {0: "batch"} for name in (*inputs, "noise")} if free else None,
            **({"verbose": False} if dynamo else {}),
        )
    return file
