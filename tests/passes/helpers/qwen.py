"""Qwen's vision towers in plain torch, of transformers' own modules, with units of tokens that leave inside them.

A choice is made behind the attention of one block. It gets the stream as it is there and gives the stream that goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.export.helpers import vision_language as small
from tokenrt.export.options import Options
from tokenrt.export.quiet import quiet
from tokenrt.export.sources.vision_language import vision
from tokenrt.perf.bench.towers.families import configuration

UNIT = 4
"""Tokens of a merge unit."""


def grid(name: str) -> Tensor:
    """[1,3] frames, rows and columns of the patches of a file of `small.FILES`."""
    return torch.tensor([[2, 4, 4] if name.endswith("video") else [1, 8, 8]])


@dataclass(frozen=True)
class Stream:
    """Tokens x [T,C] in whole units, their rotary angles cos, sin [T,D] and sizes [T], and places [T] that they had at first.

    windows, every [T,T]: of each key (column) how many members a query (row) sees, in windows and in all of them. keys [H,T,D],
    received [T]: of the attention that was computed last.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    windows: Tensor
    every: Tensor
    sizes: Tensor
    places: Tensor
    keys: Tensor
    received: Tensor

    def at(self, index: Tensor) -> Stream:
        """The stream with these tokens alone."""
        return replace(
            self,
            x=self.x[index],
            cos=self.cos[index],
            sin=self.sin[index],
            windows=self.windows[index][:, index],
            every=self.every[index][:, index],
            sizes=self.sizes[index],
            places=self.places[index],
        )


Choice = Callable[[Stream], Stream]


@cache
def tower(name: str) -> Any:
    """The tower of a file of `small.FILES`, with the weights it was exported with."""
    kind, options = small.FILES[name]
    torch.manual_seed(0)
    with quiet():
        made = vision(kind, configuration(kind), Options(random_weights=True, part="vision", **options))
    return made.module.eval().model.visual


def patches(name: str, seed: int = 5) -> Tensor:
    """[T,V] seeded values of patches."""
    config = tower(name).config
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    return torch.randn(int(grid(name).prod()), width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(name: str, pixels: Tensor, choices: Mapping[int, Choice]) -> tuple[list[Tensor], Tensor]:
    """[M,E] features and those of DeepStack, of the last choice, and which rows [M] of the whole output these are.

    Rows are in the order of the model's output.
    """
    from transformers import vision_utils

    model, size = tower(name), grid(name)
    angles = vision_utils.get_vision_position_ids(size, 2)
    x = model.patch_embed(pixels)
    if hasattr(model, "pos_embed"):
        given = {"num_grid_per_side": model.num_grid_per_side, "mode": model.interpolation_mode}
        index, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            size, align_corners=model.interpolation_align_corners, spatial_merge_size=2, **given
        )
        x = x + (model.pos_embed(index) * weights[:, :, None]).sum(1)
    cos, sin = model.rotary_pos_emb(x, angles)
    order, every = torch.arange(len(x) // UNIT), _together(vision_utils.get_vision_cu_seqlens(size))
    windows = every
    if hasattr(model, "window_size"):
        order, ends = vision_utils.get_vision_window_index(size, 2, model.window_size, model.patch_size)
        tokens = (order[:, None] * UNIT + torch.arange(UNIT)).flatten()
        x, cos, sin = x[tokens], cos[tokens], sin[tokens]
        windows = _together(ends)
    places, deep, at = torch.arange(len(x)), [], list(getattr(model, "deepstack_visual_indexes", ()))
    stream = Stream(x, cos, sin, windows, every, torch.ones(len(x)), places, x, x[:, 0])
    for number, block in enumerate(model.blocks):
        full = number in getattr(model, "fullatt_block_indexes", range(len(model.blocks)))
        stream = _attend(block, stream, stream.every if full else stream.windows)
        stream = choices[number](stream) if number in choices else stream
        stream = replace(stream, x=stream.x + block.mlp(block.norm2(stream.x)))
        if number in at:
            deep.append((model.deepstack_merger_list[at.index(number)](stream.x), stream.places))
    units = order[stream.places[::UNIT] // UNIT]
    turn = torch.arange(len(units)) if windows is every else torch.argsort(units)
    rows = [model.merger(stream.x)[turn]]
    for made, places in deep:
        there = {int(place): row for row, place in enumerate(places[::UNIT])}
        rows.append(made[[there[int(place)] for place in stream.places[::UNIT]]])
    return rows, units[turn]


def _together(ends: Tensor) -> Tensor:
    """[T,T]: 1 where two tokens lie between the same two of these ends."""
    which = torch.arange(len(ends) - 1).repeat_interleave(ends.diff())
    return (which[:, None] == which).float()


def _attend(block: Any, stream: Stream, mask: Tensor) -> Stream:
    """The stream behind the attention of a block, keys counted by the members of them that are seen."""
    attention = block.attn
    mixed = attention.qkv(block.norm1(stream.x)).reshape(len(stream.x), 3, attention.num_heads, -1)
    query, key, value = mixed.permute(1, 2, 0, 3)
    query, key = (_turned(part, stream) for part in (query, key))
    weights = (query @ key.transpose(-1, -2) * attention.scaling + mask.log()).softmax(-1)
    x = stream.x + attention.proj((weights @ value).transpose(0, 1).reshape(len(stream.x), -1))
    return replace(stream, x=x, keys=key, received=weights.mean((0, 1)))


def _turned(x: Tensor, stream: Stream) -> Tensor:
    half = x.shape[-1] // 2
    return x * stream.cos + torch.cat((-x[..., half:], x[..., :half]), -1) * stream.sin


def _members(units: Tensor) -> Tensor:
    return (units[:, None] * UNIT + torch.arange(UNIT)).flatten()


def given(units: Tensor) -> Choice:
    """These units [M], by the places they had at first, in this order."""

    def choose(stream: Stream) -> Stream:
        there = {int(place) // UNIT: row for row, place in enumerate(stream.places[::UNIT])}
        return stream.at(_members(torch.tensor([there[int(unit)] for unit in units])))

    return choose


def most_received(keep: int) -> Choice:
    """The `keep` tokens whose units receive the most attention, in the order of the stream."""

    def choose(stream: Stream) -> Stream:
        score = stream.received.reshape(-1, UNIT).mean(1)
        return stream.at(_members(score.topk(keep // UNIT).indices.sort().values))

    return choose


def fused(keep: int) -> Choice:
    """EViT: those but one, and a unit whose member j is the sum of members j of the others, each by what its unit received."""

    def choose(stream: Stream) -> Stream:
        score = stream.received.reshape(-1, UNIT).sum(1)
        ranked = score.argsort(descending=True)
        best, rest = ranked[: keep // UNIT - 1].sort().values, ranked[keep // UNIT - 1 :]
        wide = stream.x.reshape(len(score), UNIT, -1)
        extra = (wide[rest] * score[rest, None, None]).sum(0)
        kept = stream.at(_members(torch.cat((best, rest[:1]))))
        return replace(kept, x=torch.cat((stream.x[_members(best)], extra)))

    return choose


def matched(keep: int) -> Choice:
    """ToMe of units: those at even places whose keys, all of a unit side by side, are nearest to one at an odd place join it."""

    def choose(stream: Stream) -> Stream:
        keys = torch.nn.functional.normalize(stream.keys.mean(0).reshape(len(stream.x) // UNIT, -1), dim=-1)
        even, odd = torch.arange(0, len(keys), 2), torch.arange(1, len(keys), 2)
        value, where = (keys[even] @ keys[odd].T).max(-1)
        ranked = value.argsort(descending=True)
        joined, alone = ranked[: (len(stream.x) - keep) // UNIT], ranked[(len(stream.x) - keep) // UNIT :]
        wide, sizes = stream.x.reshape(len(keys), UNIT, -1), stream.sizes[::UNIT].clone()
        total = wide * sizes[:, None, None]
        masks = [mask.clone() for mask in (stream.windows, stream.every)]
        for source in joined:
            start, goal = even[source], odd[where[source]]
            total[goal] += total[start]
            sizes[goal] += sizes[start]
            for mask in masks:
                mask[:, _members(goal[None])] += mask[:, _members(start[None])]
        units = torch.cat((even[alone], odd))
        kept = replace(stream, windows=masks[0], every=masks[1]).at(_members(units))
        mean = (total / sizes[:, None, None])[units]
        return replace(kept, x=mean.flatten(0, 1), sizes=sizes[units].repeat_interleave(UNIT))

    return choose


def told(name: str, rows: Any) -> Choice:
    """The units that these rows [M] of the output are of."""
    from transformers import vision_utils

    model, units = tower(name), torch.as_tensor(rows)
    if hasattr(model, "window_size"):
        order, _ = vision_utils.get_vision_window_index(grid(name), 2, model.window_size, model.patch_size)
        units = torch.argsort(order)[units]
    return given(units)
