"""Small seeded models of architectures that spend less on tokens by design: the mechanism of each, and nothing more of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

C, H, SIDE = 16, 2, 8
N = SIDE * SIDE


class Attend(nn.Module):
    """Queries [B,Q,C] read keys [B,K,C]; causal: none that stands behind a query."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(C, C) for _ in range(4))
        self.causal = causal

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q, k, v = (
            part.reshape(*part.shape[:-1], H, C // H).transpose(-2, -3)
            for part in (self.q(queries), self.k(keys), self.v(keys))
        )
        scores = q @ k.transpose(-1, -2) * (C // H) ** -0.5
        if self.causal:
            hidden = torch.triu(torch.ones(scores.shape[-2:], dtype=torch.bool), 1)
            scores = scores + torch.zeros(scores.shape[-2:]).masked_fill(hidden, -1e9)
        found = (scores.softmax(-1) @ v).transpose(-2, -3)
        return self.o(found.reshape(*found.shape[:-2], C))


class Block(nn.Module):
    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(C), Attend(causal)
        self.mlp = nn.Sequential(nn.LayerNorm(C), nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        read = self.norm(x)
        x = x + self.attend(read, read if keys is None else keys)
        return x + self.mlp(x)


class Model(nn.Module):
    """x of a fixed shape -> what `rule` makes of it with three blocks, two attentions and some layers."""

    def __init__(self, rule: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.reads, self.again, self.later = Attend(), Attend(), Block(causal=True)
        self.one, self.two = nn.Linear(C, C), nn.Linear(C, C)
        self.deep = nn.ModuleList(nn.Conv2d(C, C, 3, 1, 1, groups=C) for _ in range(3))
        self.gates = nn.ModuleList(nn.Conv2d(C, C, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, x)


def plane(x: Tensor) -> Tensor:
    """[B,N,C] -> [B,C,h,w]."""
    return x.transpose(1, 2).reshape(len(x), C, SIDE, SIDE)


def rows(x: Tensor) -> Tensor:
    """[B,C,h,w] -> [B,N,C]."""
    return x.flatten(2).transpose(1, 2)


def regions(x: Tensor, side: int) -> Tensor:
    """[B,N,C] -> [B,R,side * side,C]."""
    split = x.reshape(len(x), SIDE // side, side, SIDE // side, side, C).permute(0, 1, 3, 2, 4, 5)
    return split.reshape(len(x), -1, side * side, C)


def plain(model: Model, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(x)
    return x


def packer(model: Model, x: Tensor) -> Tensor:
    x = model.blocks[0](x)
    coarse = rows(functional.interpolate(plane(x), scale_factor=0.25, mode="bilinear"))
    own = regions(x, 4)
    return coarse + model.reads(coarse[:, :, None], own)[:, :, 0]


def frames(model: Model, x: Tensor) -> Tensor:
    """x [F,N,C]: one clip."""
    x = model.blocks[0](x)
    x = model.later(x.transpose(0, 1)).transpose(0, 1)
    return model.blocks[1](x)


def sparse(model: Model, x: Tensor) -> Tensor:
    x = x + model.one(x.mean(1, keepdim=True))
    few = rows(functional.avg_pool2d(plane(x), 2))
    few = few + model.reads(few, x)
    few = model.blocks[1](few)
    wide = rows(
        functional.interpolate(few.transpose(1, 2).reshape(len(x), C, SIDE // 2, SIDE // 2), scale_factor=2.0)
    )
    return model.blocks[2](wide + model.again(x + wide, few))


def proxies(model: Model, x: Tensor) -> Tensor:
    for block in model.blocks[:1]:
        mean = regions(x, 4).mean(2)
        x = x + model.reads(x, block(mean))
    return model.blocks[1](x)


def words(model: Model, x: Tensor) -> Tensor:
    """x [W,L,C]: one text of W words of L characters, of which the first stands for the word."""
    first, among, last = model.blocks
    x = first(x)
    whole = among(x[:, 0][None])[0]
    return last(torch.cat((whole[:, None], x[:, 1:]), 1))


def ponet(model: Model, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    read = model.reads(mean, x)
    peaks = model.one(x).reshape(len(x), 4, N // 4, C).amax(2).repeat_interleave(N // 4, 1)
    near = functional.max_pool1d(model.two(x).transpose(1, 2), 3, 1, 1).transpose(1, 2)
    return x + (read + peaks) * x + near


def biformer(model: Model, x: Tensor) -> Tensor:
    q, k = model.one(x), model.two(x)
    queries, keys = regions(q, 2), regions(k, 2)
    chosen = (queries.mean(2) @ keys.mean(2).transpose(1, 2)).topk(3, -1).indices
    taken = torch.gather(
        keys[:, None].expand(-1, chosen.shape[1], -1, -1, -1),
        2,
        chosen[..., None, None].expand(-1, -1, -1, 4, C),
    )
    return model.reads(queries, taken.flatten(2, 3)).flatten(1, 2)


def casvit(model: Model, x: Tensor) -> Tensor:
    q, k, v = (layer(plane(x)) for layer in model.deep)
    gated = [part * gate(part).sigmoid() for part, gate in zip((q, k), model.gates, strict=True)]
    return rows(model.deep[0](gated[0] + gated[1]) * v)


SYSTEMS: Mapping[str, tuple[Callable[[Model, Tensor], Tensor], tuple[int, ...]]] = {
    "": (plain, (1, N, C)),
    "TokenPacker": (packer, (1, N, C)),
    "PVC": (frames, (4, 9, C)),
    "FlexDiT": (sparse, (1, N, C)),
    "PT-DiT (Qihoo-T2X)": (proxies, (1, N, C)),
    "Learn Your Tokens, HAT": (words, (6, 5, C)),
    "PoNet": (ponet, (1, N, C)),
    "BiFormer": (biformer, (1, N, C)),
    "CAS-ViT": (casvit, (1, N, C)),
}
"""By the systems: what a model does, and the shape of its input; "" is a plain transformer."""


def model(system: str) -> tuple[Model, Tensor]:
    """A seeded module and an input for it."""
    rule, shape = SYSTEMS[system]
    torch.manual_seed(0)
    return Model(rule).eval(), torch.randn(shape)
