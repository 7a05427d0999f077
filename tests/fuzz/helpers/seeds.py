"""Small working transformers with seeded weights, the graphs that every change starts from; each is exported once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
import torch
from torch import Tensor, nn
from torch.nn import functional

from tokenrt.export.quiet import quiet

BATCH, WIDTH, HEADS, BLOCKS, HIDDEN, IMAGE, PATCH, WORDS = 3, 32, 4, 2, 48, 40, 8, 22
EXPORTED = "-exported"
GRID = IMAGE // PATCH
PATCHES = GRID * GRID
"""No two axes that mean different things have one length."""

Array = np.ndarray[Any, np.dtype[Any]]


class Separate(nn.Module):
    """Attention with three projections; `positions` are added to queries and keys alone, `mask` to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, turn: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            each(x).reshape(batch, tokens, HEADS, -1).transpose(1, 2) for each in (self.q, self.k, self.v)
        )
        if turn is not None:
            q, k = turn(q), turn(k)
        scores = q @ k.transpose(-1, -2) / (width // HEADS) ** 0.5
        mixed = (scores if mask is None else scores + mask).softmax(-1) @ v
        made: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return made


class Joined(nn.Module):
    """Attention with one projection for queries, keys and values, the queries scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = (
            self.qkv(x).reshape(batch, tokens, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        )
        mixed = ((q * (width // HEADS) ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        made: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return made


class Fused(Joined):
    """The same by torch's own function, which the exporter opens with the root of the scale on both sides."""

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.reshape(batch, tokens, HEADS, width // HEADS).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        made: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return made


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))


class Before(nn.Module):
    """A block with its norms in front."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp = attention, Perceptron()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        made: Tensor = x + self.mlp(self.second(x))
        return made


class Patches(nn.Module):
    """A picture as tokens [B,N,C], behind a class token where there is one, with positions added."""

    def __init__(self, first: bool, positions: bool = True) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.first = nn.Parameter(torch.zeros(1, 1, WIDTH)) if first else None
        self.positions = nn.Parameter(torch.zeros(1, PATCHES + first, WIDTH)) if positions else None

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.cut(pixels).flatten(2).transpose(1, 2)
        if self.first is not None:
            x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1)
        return x if self.positions is None else x + self.positions


class Vision(nn.Module):
    """A pre-norm ViT; `outputs` says what is made of the tokens behind its last norm."""

    def __init__(self, attention: type[nn.Module], *outputs: str, first: bool = True) -> None:
        super().__init__()
        self.patches, self.outputs = Patches(first), outputs
        self.blocks = nn.Sequential(*(Before(attention()) for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 7)
        self.dense = nn.Conv2d(WIDTH, 5, 3, padding=1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        x = self.norm(self.blocks(self.patches(pixels)))
        made = {
            "class": lambda: self.head(x[:, 0]),
            "mean": lambda: self.head(x[:, 1:].mean(dim=1)),
            "tokens": lambda: x,
            "dense": lambda: self.dense(x.transpose(1, 2).reshape(-1, WIDTH, GRID, GRID)),
        }
        return tuple(made[name]() for name in self.outputs)


class Words(nn.Module):
    """A post-norm encoder with a padding mask, its first token pooled; the tokens are an output beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, WIDTH), nn.Embedding(WORDS, WIDTH)
        self.attentions = nn.ModuleList(Separate() for _ in range(BLOCKS))
        self.mlps = nn.ModuleList(Perceptron() for _ in range(BLOCKS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * BLOCKS + 1))
        self.pool = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norms[-1](self.words(ids) + self.places(torch.arange(WORDS)))
        hidden = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        for number, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            x = self.norms[2 * number](x + attention(x, hidden))
            x = self.norms[2 * number + 1](x + mlp(x))
        return torch.tanh(self.pool(x[:, 0]))


class Detection(nn.Module):
    """A sequence-first, post-norm encoder [N,B,C]; positions are added to queries and keys at every layer, or once."""

    def __init__(self, positions: bool = True) -> None:
        super().__init__()
        self.patches = Patches(first=False, positions=not positions)
        self.positions = nn.Parameter(torch.zeros(PATCHES, 1, WIDTH)) if positions else None
        self.attentions = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS) for _ in range(BLOCKS))
        self.mlps = nn.ModuleList(Perceptron() for _ in range(BLOCKS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * BLOCKS))
        self.head = nn.Linear(WIDTH, 6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).transpose(0, 1)
        for number, (attention, mlp) in enumerate(zip(self.attentions, self.mlps, strict=True)):
            placed = x if self.positions is None else x + self.positions
            x = self.norms[2 * number](x + attention(placed, placed, x, need_weights=False)[0])
            x = self.norms[2 * number + 1](x + mlp(x))
        made: Tensor = self.head(x).transpose(0, 1)
        return made


class Root(nn.Module):
    """A norm by the root of the mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Turned(nn.Module):
    """A block with rotary positions and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.first, self.second = Separate(), Root(), Root()
        self.gate, self.up, self.down = (
            nn.Linear(WIDTH, HIDDEN, bias=False),
            nn.Linear(WIDTH, HIDDEN, bias=False),
            nn.Linear(HIDDEN, WIDTH, bias=False),
        )

    def forward(self, x: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        x = x + self.attention(self.first(x), turn=turn)
        h = self.second(x)
        made: Tensor = x + self.down(functional.silu(self.gate(h)) * self.up(h))
        return made


class Rotary(nn.Module):
    """A ViT with rotary positions and root norms, its tokens averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = Patches(first=False, positions=False)
        self.blocks = nn.ModuleList(Turned() for _ in range(BLOCKS))
        self.norm, self.head = Root(), nn.Linear(WIDTH, 7)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(PATCHES).float(), 10.0 ** -torch.arange(half).float())
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turn(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-right, left], dim=-1) * self.sin

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels)
        for block in self.blocks:
            x = block(x, self.turn)
        made: Tensor = self.head(self.norm(x).mean(dim=1))
        return made


@dataclass(frozen=True)
class Seed:
    """A model and what is asked of it. methods: those it can take; first: whether a class token leads."""

    make: Callable[[], nn.Module]
    outputs: tuple[str, ...]
    methods: tuple[str, ...] = ("slice", "topk", "tome")
    words: bool = False
    dynamo: bool = False


WITH_CLASS = ("slice", "topk", "tome", "evit")

SEEDS: Mapping[str, Seed] = {
    "class": Seed(lambda: Vision(Joined, "class"), ("logits",), WITH_CLASS),
    "mean": Seed(lambda: Vision(Separate, "mean"), ("logits",), WITH_CLASS),
    "two": Seed(lambda: Vision(Fused, "class", "tokens"), ("logits", "tokens"), WITH_CLASS),
    "dense": Seed(lambda: Vision(Joined, "dense", first=False), ("map",)),
    "rotary": Seed(Rotary, ("logits",)),
    "words": Seed(Words, ("pooled",), words=True),
    "detection": Seed(Detection, ("boxes",)),
    "sequence": Seed(lambda: Detection(positions=False), ("boxes",)),
    "dynamo": Seed(lambda: Vision(Fused, "class"), ("logits",), WITH_CLASS, dynamo=True),
}


def _drawn(net: nn.Module) -> nn.Module:
    """Weights that make every part matter and keep the scores of tokens well apart."""
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=drawn)
            if parameter.ndim in (2, 4) and "words" not in name:
                parameter.copy_(noise * 1.5 / parameter[0].numel() ** 0.5)
            elif parameter.ndim > 1:
                parameter.copy_(noise)
            else:
                parameter.add_(0.2 * noise)
    return net.eval()


def of(name: str) -> Seed:
    return SEEDS[name.removesuffix(EXPORTED)]


def feeds(name: str, rows: int = BATCH) -> dict[str, Array]:
    """Inputs of a seed, the same in every call."""
    made = np.random.default_rng(11)
    if not of(name).words:
        return {"pixels": made.standard_normal((BATCH, 3, IMAGE, IMAGE), np.float32)[:rows]}
    mask = np.ones((BATCH, WORDS), np.int64)
    mask[1, -3:], mask[2, -9:] = 0, 0
    return {"ids": made.integers(1, 50, (BATCH, WORDS))[:rows], "mask": mask[:rows]}


@cache
def model(name: str) -> onnx.ModelProto:
    """A seed with its shape arithmetic folded, or as the exporter wrote it under NAME-exported. Callers copy it first."""
    if not name.endswith(EXPORTED):
        return onnxslim.slim(model(name + EXPORTED), skip_optimizations=["graph_fusion", "weight_tying"])
    name = name.removesuffix(EXPORTED)
    seed = SEEDS[name]
    given = {key: torch.from_numpy(value) for key, value in feeds(name).items()}
    common: dict[str, Any] = {"input_names": list(given), "output_names": list(seed.outputs)}
    if seed.dynamo:
        common |= {"dynamo": True, "opset_version": 18, "external_data": False}
        common |= {"dynamic_shapes": tuple({0: torch.export.Dim("batch", min=1)} for _ in given)}
    else:
        common |= {"dynamo": False, "opset_version": 17}
        common |= {"dynamic_axes": {key: {0: "batch"} for key in (*given, *seed.outputs)}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.onnx"
        with quiet(), torch.no_grad():
            torch.onnx.export(_drawn(seed.make()), tuple(given.values()), str(path), **common)
        return onnx.load(path)
