"""Vision towers whose projector reads the picture with learned queries, small and seeded, each in a form of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.passes.helpers.projectors import SIDE, WIDTH, Block, exported

QUERIES = 16


class Published(nn.Module):
    """As MQT-LLaVA and Qwen-VL have it: tokens first, positions beside queries and keys, a product behind."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.table = (
            nn.Parameter(torch.randn(QUERIES, WIDTH)),
            nn.Parameter(torch.randn(QUERIES, WIDTH)),
        )
        self.places = nn.Parameter(torch.randn(SIDE**2, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4)
        self.before, self.keys, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.out = nn.Parameter(torch.randn(WIDTH, 40) / 6)

    def forward(self, x: Tensor, count: int) -> Tensor:
        x = self.keys(x).permute(1, 0, 2)
        queries = self.before(self.query[:count]).unsqueeze(1).repeat(1, x.shape[1], 1)
        read = self.attention(queries + self.table[:count].unsqueeze(1), x + self.places.unsqueeze(1), x)[0]
        return self.after(read.permute(1, 0, 2)) @ self.out


class Layer(nn.Module):
    """Cross-attention and an MLP, each added to the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = (nn.Linear(WIDTH, width) for width in (WIDTH, 2 * WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        split = (x.shape[0], -1, 4, WIDTH // 4)
        q = self.q(self.norms[0](queries)).view(split).transpose(1, 2)
        k, v = (part.reshape(split).transpose(1, 2) for part in self.kv(self.norms[1](x)).chunk(2, -1))
        weights = (q @ k.transpose(-1, -2) * (WIDTH // 4) ** -0.5).softmax(-1)
        queries = queries + self.o((weights @ v).transpose(1, 2).reshape(x.shape[0], -1, WIDTH))
        return queries + self.mlp(self.norms[2](queries))


class Perceiver(nn.Module):
    """Two layers over latents [1,M,C], with a table of positions before the last product; itself: they are keys as well."""

    def __init__(self, itself: bool = False) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, QUERIES, WIDTH))
        self.place = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.out, self.itself = nn.Linear(WIDTH, 40), itself

    def forward(self, x: Tensor, count: int) -> Tensor:
        queries = self.latents[:, :count].expand(x.shape[0], -1, -1)
        for layer in self.layers:
            queries = layer(queries, torch.cat((x, queries), 1) if self.itself else x)
        return self.out(queries + self.place[:count])


class Among(nn.Module):
    """Queries that attend to one another between two looks at the picture, as in BLIP-2."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, QUERIES, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.out = nn.Linear(WIDTH, 40)

    def forward(self, x: Tensor, count: int) -> Tensor:
        queries = self.latents[:, :count].expand(x.shape[0], -1, -1)
        first, among, last = self.layers
        queries = first(queries, x)
        return self.out(last(among(queries, queries), x))


class Reader(nn.Module):
    """Pictures [B,3,24,24] -> [B,M,40]; count: how many of its queries it reads with."""

    def __init__(self, resampler: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.place = nn.Parameter(torch.randn(1, SIDE**2, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.resampler, self.count = resampler, QUERIES

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.resampler(x, self.count)
        return made


FORMS: Mapping[str, Callable[[], nn.Module]] = {
    "published": Published,
    "perceiver": Perceiver,
    "itself": partial(Perceiver, itself=True),
    "among": Among,
}


def reader(form: str) -> Reader:
    torch.manual_seed(3)
    return Reader(FORMS[form]()).eval()


def file(form: str, free: bool = True) -> Path:
    """The ONNX file of a form, with a free batch or for one picture."""
    pictures = torch.zeros(2 if free else 1, 3, 4 * SIDE, 4 * SIDE)
    name = f"resampler_{form}_{'free' if free else 'one'}"
    return exported(name, lambda: reader(form), pictures, ["image_features"], 18, free)
