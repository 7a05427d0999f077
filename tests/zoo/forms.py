"""Forms that people bring: the stream laid otherwise, attention written otherwise, gates, learned tokens behind, int8, an If.

Every module takes `keep`, the tokens that go on behind each block's own attention, and cuts what belongs to the tokens
with them: the right value for a reduction that keeps the first ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import finish
from .attentions import (
    SCALE,
    Form,
    einsum,
    five_axes,
    head_by_head,
    heads_summed,
    keys_by_queries,
    logarithms,
    over_channels,
    plain,
    shared_key,
    sigmoid,
)
from .entry import HEADS, VOCABULARY, WIDTH, WORDS, Entry, Finish, zero

BLOCKS, TOKENS, TRAIL = 2, 16, 3
FORM = frozenset({"form"})

Keep = Sequence[int] | None


class Block(nn.Module):
    """Norm, attention in the given form, norm, MLP; `gated`: the branch times a gate computed from what it read."""

    def __init__(self, form: Form = plain, gated: bool = False) -> None:
        super().__init__()
        self.form = form
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate = nn.Linear(WIDTH, WIDTH) if gated else None
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def attended(self, x: Tensor) -> Tensor:
        x = self.n1(x)
        q, k, v = (part(x).unflatten(2, (HEADS, -1)) for part in (self.q, self.k, self.v))
        mixed: Tensor = self.out(self.form(q, k, v))
        return mixed if self.gate is None else mixed * self.gate(x).sigmoid()

    def rest(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mlp(self.n2(x))
        return mixed


class Former(nn.Module):
    """A small ViT whose stream lies as `layout` says: rows [B,N,C], flat [B*N,C], bare [N,C], or grid [B,H,W,C]."""

    def __init__(self, form: Form = plain, layout: str = "rows", gated: bool = False, trail: int = 0) -> None:
        super().__init__()
        self.layout, self.trail = layout, trail
        self.patch = nn.Conv2d(3, WIDTH, 16, 16)
        self.position = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.learned = nn.Parameter(torch.randn(1, trail, WIDTH)) if trail else None
        self.blocks = nn.ModuleList(Block(form, gated) for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def laid(self, x: Tensor) -> Tensor:
        if self.layout == "grid":
            return x.unflatten(1, (4, 4) if x.shape[1] == TOKENS else (-1, 1))
        return x if self.layout == "rows" else x.reshape(-1, WIDTH)

    def rows(self, x: Tensor, batch: int) -> Tensor:
        return x if self.layout == "rows" else x.reshape(batch, -1, WIDTH)

    def kept(self, x: Tensor, count: int) -> Tensor:
        """The first `count` tokens; learned ones behind the patches are among them."""
        last = x.shape[1] - self.trail
        return torch.cat([x[:, : count - self.trail], x[:, last:]], 1)

    def forward(self, pixel_values: Tensor, keep: Keep = None) -> Tensor:
        batch = 1 if self.layout == "bare" else pixel_values.shape[0]
        x = self.patch(pixel_values).flatten(2).transpose(1, 2) + self.position
        if self.learned is not None:
            x = torch.cat([x, self.learned.expand(batch, -1, -1)], 1)
        x = self.laid(x)
        for number, block in enumerate(self.blocks):
            x = x + self.laid(block.attended(self.rows(x, batch)))
            if keep is not None:
                x = self.laid(self.kept(self.rows(x, batch), keep[number]))
            x = x + block.rest(x)
        x = self.norm(self.rows(x, batch))
        result: Tensor = self.head(x[:, -self.trail :] if self.trail else x.mean(1))
        return result


class Convolved(nn.Module):
    """A stream [B,C,H,W]: projections are 1x1 convolutions, values times the transposed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, WIDTH, 16, 16), nn.Linear(WIDTH, 10)
        self.qkv = nn.ModuleList(nn.Conv2d(WIDTH, 3 * WIDTH, 1) for _ in range(BLOCKS))
        self.out = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(BLOCKS))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, 2 * WIDTH, 1), nn.SiLU(), nn.Conv2d(2 * WIDTH, WIDTH, 1))
            for _ in range(BLOCKS)
        )

    def forward(self, pixel_values: Tensor, keep: Keep = None) -> Tensor:
        x = self.patch(pixel_values)
        for number in range(BLOCKS):
            q, k, v = self.qkv[number](x).flatten(2).unflatten(1, (HEADS, 3, -1)).unbind(2)
            mixed = v @ (q.transpose(-2, -1) @ k * SCALE).softmax(-1).transpose(-2, -1)
            x = x + self.out[number](mixed.reshape(x.shape))
            if keep is not None:
                x = x.flatten(2)[:, :, : keep[number], None]
            x = x + self.mlp[number](x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Root(nn.Module):
    """x / sqrt(mean(x^2)) with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions: x [...,D] and the angles of its half, of a shape that broadcasts."""
    one, other = x.chunk(2, -1)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    return x * cos + torch.cat([-other, one], -1) * sin


def angles(tokens: int) -> Tensor:
    return torch.arange(tokens)[:, None] / 50 ** (torch.arange(WIDTH // HEADS // 2) / 8)


class Tower(nn.Module):
    """The vision tower of a language model: no batch, [N,C], heads [H,N,D], rotary tables [N,1,D], RMS norms, gated MLP.

    `merged`: each four tokens in a row are one at the end. `windows`: the first block attends within each four.
    """

    def __init__(self, merged: bool = False, windows: bool = False) -> None:
        super().__init__()
        self.merged, self.windows = merged, windows
        self.patch = nn.Conv2d(3, WIDTH, 16, 16, bias=False)
        self.norms = nn.ModuleList(Root() for _ in range(2 * BLOCKS + 1))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(BLOCKS))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2 * BLOCKS))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(BLOCKS))
        self.head = nn.Linear(4 * WIDTH if merged else WIDTH, 10)
        self.register_buffer("angles", angles(TOKENS)[:, None])
        far = torch.full((1, TOKENS, TOKENS), -30000.0)
        for start in range(0, TOKENS, 4):
            far[:, start : start + 4, start : start + 4] = 0
        self.register_buffer("far", far)

    def attended(self, x: Tensor, number: int, where: Tensor) -> Tensor:
        q, k, v = self.qkv[number](self.norms[2 * number](x)).unflatten(1, (3, HEADS, -1)).unbind(1)
        q, k, v = (part.transpose(0, 1) for part in (turned(q, where), turned(k, where), v))
        scores = q @ k.transpose(1, 2) * SCALE
        scores = scores + self.far if self.windows and not number else scores
        mixed: Tensor = self.out[number]((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
        return mixed

    def forward(self, pixel_values: Tensor, keep: Keep = None) -> Tensor:
        x, where = self.patch(pixel_values)[0].flatten(1).transpose(0, 1), self.angles
        gone: list[Tensor] = []
        for number in range(BLOCKS):
            x = x + self.attended(x, number, where)
            if keep is not None:
                gone.insert(0, x[keep[number] :])
                x, where = x[: keep[number]], where[: keep[number]]
            normed = self.norms[2 * number + 1](x)
            gate, up = self.up[2 * number](normed), self.up[2 * number + 1](normed)
            x = x + self.down[number](functional.silu(gate) * up)
        # Where each place is needed, what was cut is back in its place, as it left.
        x = self.norms[-1](torch.cat([x, *gone]) if self.merged else x)
        result: Tensor = self.head(x.reshape(-1, 4 * WIDTH) if self.merged else x.mean(0, keepdim=True))
        return result


class Detector(nn.Module):
    """An encoder whose layers add positions to queries and keys alone, and a decoder of five queries that reads it.

    Attention is torch's own; sequence first unless `batch_first`, where it turns and the exporter folds the turns.
    """

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__()
        self.tokens = 1 if batch_first else 0
        self.patch = nn.Conv2d(3, WIDTH, 16, 16)
        own = partial(nn.MultiheadAttention, WIDTH, HEADS, batch_first=batch_first)
        self.encoder = nn.ModuleList(own() for _ in range(BLOCKS))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2 * BLOCKS + 3))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(BLOCKS + 1)
        )
        self.own, self.cross, self.head = own(), own(), nn.Linear(WIDTH, 10)
        self.position = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.query = nn.Parameter(torch.zeros(1, 5, WIDTH))

    def first(self, x: Tensor) -> Tensor:
        """[B,N,C] as the stream lies."""
        return x if self.tokens else x.transpose(0, 1)

    def encoded(self, x: Tensor, where: Tensor, number: int, keep: Keep) -> tuple[Tensor, Tensor]:
        asked = x + where
        x = x + self.encoder[number](asked, asked, x, need_weights=False)[0]
        if keep is not None:
            x, where = (part.narrow(self.tokens, 0, keep[number]) for part in (x, where))
        x = self.norms[2 * number](x)
        return self.norms[2 * number + 1](x + self.mlps[number](x)), where

    def forward(self, pixel_values: Tensor, keep: Keep = None) -> Tensor:
        x = self.first(self.patch(pixel_values).flatten(2).transpose(1, 2))
        where = self.first(self.position)
        for number in range(BLOCKS):
            x, where = self.encoded(x, where, number, keep)
        query = self.first(self.query.expand(pixel_values.shape[0], -1, -1))
        found = self.norms[-3](query + self.own(query, query, query, need_weights=False)[0])
        found = self.norms[-2](found + self.cross(found + query, x + where, x, need_weights=False)[0])
        result: Tensor = self.head(self.first(self.norms[-1](found + self.mlps[-1](found))))
        return result


class Conditioned(nn.Module):
    """A diffusion transformer: shift, scale and gate of each branch from a time, rotary positions, a map of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.time = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(8, WIDTH)
        self.shift = nn.ModuleList(nn.Linear(WIDTH, 6 * WIDTH) for _ in range(BLOCKS))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(BLOCKS))
        self.out = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(BLOCKS)
        )
        self.head = nn.Linear(WIDTH, 16)
        self.register_buffer("angles", angles(TOKENS))
        self.register_buffer("steps", torch.exp(-torch.arange(4) * 0.7))

    def attended(self, x: Tensor, number: int, where: Tensor) -> Tensor:
        q, k, v = (
            part.transpose(1, 2) for part in self.qkv[number](x).unflatten(2, (3, HEADS, -1)).unbind(2)
        )
        scores = turned(q, where) @ turned(k, where).transpose(-2, -1) * SCALE
        mixed: Tensor = self.out[number](
            (scores.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        )
        return mixed

    def tokens(self, latent: Tensor, timestep: Tensor, keep: Keep) -> tuple[Tensor, list[Tensor]]:
        """The stream behind the last block, and what was cut, in its places."""
        waves = timestep[:, None] * self.steps
        time = functional.silu(self.time(torch.cat([waves.cos(), waves.sin()], -1)))
        x, where = self.patch(latent).flatten(2).transpose(1, 2), self.angles
        gone: list[Tensor] = []
        for number in range(BLOCKS):
            s1, m1, g1, s2, m2, g2 = self.shift[number](time).unsqueeze(1).chunk(6, -1)
            x = x + g1 * self.attended(functional.layer_norm(x, (WIDTH,)) * (1 + m1) + s1, number, where)
            if keep is not None:
                gone.insert(0, x[:, keep[number] :])
                x, where = x[:, : keep[number]], where[: keep[number]]
            x = x + g2 * self.mlp[number](functional.layer_norm(x, (WIDTH,)) * (1 + m2) + s2)
        return x, gone

    def forward(self, latent: Tensor, timestep: Tensor, keep: Keep = None) -> Tensor:
        x, gone = self.tokens(latent, timestep, keep)
        made = self.head(torch.cat([x, *gone], 1)).unflatten(1, (4, 4)).unflatten(3, (2, 2, 4))
        result: Tensor = made.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return result


class WrittenNorm(nn.Module):
    """A LayerNorm as TensorFlow's graphs have it: x * g + (beta - mean * g) with g = gamma / sqrt(variance)."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        away = x - mean
        factor = torch.reciprocal(torch.sqrt((away * away).mean(-1, keepdim=True) + 1e-6)) * self.gamma
        return x * factor + (self.beta - mean * factor)


class FlatText(nn.Module):
    """BERT as TensorFlow writes it: the stream is [B*N,C], norms are chains behind the additions, padding is masked."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Parameter(torch.zeros(VOCABULARY, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, WORDS, WIDTH))
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4 * BLOCKS))
        self.norms = nn.ModuleList(WrittenNorm() for _ in range(2 * BLOCKS + 1))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(BLOCKS)
        )
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, keep: Keep = None) -> Tensor:
        batch, tokens = input_ids.shape
        x = functional.embedding(input_ids.flatten(), self.word).reshape(batch, tokens, WIDTH)
        x = self.norms[-1](x + self.position).reshape(-1, WIDTH)
        bias = (1 - attention_mask.to(x.dtype))[:, None, None] * -10000.0
        for number in range(BLOCKS):
            q, k, v, out = self.parts[4 * number : 4 * number + 4]
            heads = (part(x).reshape(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for part in (q, k, v))
            asked, known, said = heads
            weights = (asked @ known.transpose(-2, -1) * SCALE + bias).softmax(-1)
            x = x + out((weights @ said).transpose(1, 2).reshape(-1, WIDTH))
            if keep is not None:
                x = x.reshape(batch, -1, WIDTH)[:, : keep[number]].reshape(-1, WIDTH)
                bias = bias[..., : keep[number]]
            x = self.norms[2 * number](x)
            x = self.norms[2 * number + 1](x + self.mlps[number](x))
        result: Tensor = self.head(x.reshape(batch, -1, WIDTH)[:, 0])
        return result


LOGITS, POSITION = ("logits",), zero("position")


def _entry(
    name: str,
    make: Callable[[], nn.Module] = Former,
    follows: str = "mean-pool",
    tokens: int = TOKENS,
    protected: int = 0,
    inputs: str = "image",
    after: Finish | None = None,
    heads: int = HEADS,
    placed: bool = True,
) -> Entry:
    hook = POSITION if placed else None
    return Entry(
        name, make, LOGITS, follows, tokens, protected, inputs, FORM, hook, None, BLOCKS, heads, WIDTH, after
    )


ENTRIES = (
    _entry("form_einsum", partial(Former, einsum)),
    _entry("form_keys_by_queries", partial(Former, keys_by_queries)),
    _entry("form_five_axes", partial(Former, five_axes)),
    _entry("form_logarithms", partial(Former, logarithms)),
    _entry("form_shared_key", partial(Former, shared_key)),
    _entry("form_head_by_head", partial(Former, head_by_head)),
    _entry("form_heads_summed", partial(Former, heads_summed)),
    _entry("form_sigmoid", partial(Former, sigmoid)),
    _entry("form_over_channels", partial(Former, over_channels)),
    _entry("form_channels_first", Convolved, placed=False),
    _entry("form_flat", partial(Former, layout="flat")),
    _entry("form_flat_text", FlatText, "class-token", WORDS, 1, "text"),
    _entry("form_grid", partial(Former, layout="grid")),
    _entry("form_no_batch", partial(Former, layout="bare"), inputs="one-image"),
    _entry("form_tower", Tower, inputs="one-image", placed=False),
    _entry("form_tower_merged", partial(Tower, merged=True), "tokens", inputs="one-image", placed=False),
    _entry("form_tower_windows", partial(Tower, windows=True), inputs="one-image", placed=False),
    _entry("form_detector", Detector, "attention-pool"),
    _entry("form_detector_batch_first", partial(Detector, batch_first=True), "attention-pool"),
    _entry("form_gate", partial(Former, gated=True)),
    _entry("form_conditioned", Conditioned, "dense", inputs="latent", placed=False),
    _entry("form_trailing_tokens", partial(Former, trail=TRAIL), "tokens", TOKENS + TRAIL, TRAIL),
    _entry("form_int8_products", after=finish.int8(("MatMul", "Gemm", "Conv"))),
    _entry("form_int8_everything", after=finish.int8(None)),
    _entry("form_int8_dynamic", after=finish.dynamic),
    _entry("form_in_if", after=finish.in_if),
)
