"""ToMe, EViT and DivPrune in plain torch, written from the papers' mathematics and nothing of tokenrt's.

One image at a time, one formula to a line. `forward` runs a timm VisionTransformer through its own weights and
lets a method shorten the sequence between attention and MLP, where both papers put it. Each method also
returns its margin: how far the nearest decision was from falling the other way, so that a comparison between
precisions can insist that no decision was a matter of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# tokens [N,C], queries and keys [H,N,D], sizes [N], block -> tokens, sizes, margin
Step = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class ToMe:
    """Bolya et al. 2023, section 3: R pairs of each block, bipartite by position, size-weighted mean.

    protected: leading tokens no pair may contain. The layout is the published one: class (and distillation)
    token, unmerged even tokens, odd tokens; without a class token the unmerged stay in order of similarity.
    """

    remove: int
    protected: int
    proportional: bool = True

    def __call__(
        self, tokens: Tensor, queries: Tensor, keys: Tensor, sizes: Tensor, block: int
    ) -> tuple[Tensor, Tensor, float]:
        metric = keys.mean(dim=0)
        unit = metric / metric.norm(dim=-1, keepdim=True)
        even, odd = torch.arange(0, len(tokens), 2), torch.arange(1, len(tokens), 2)
        similarity = unit[even] @ unit[odd].T
        similarity[even < self.protected] = -math.inf
        similarity[:, odd < self.protected] = -math.inf
        value, partner = similarity.max(dim=1)
        order = torch.argsort(value, descending=True)
        remove = min(self.remove, (len(tokens) - self.protected) // 2)
        leaving, staying = order[:remove], order[remove:]
        if self.protected:
            staying = staying.sort().values
        total, mass = tokens[odd] * sizes[odd, None], sizes[odd].clone()
        for source in leaving.tolist():
            total[partner[source]] += tokens[even[source]] * sizes[even[source]]
            mass[partner[source]] += sizes[even[source]]
        free = odd >= self.protected
        front = torch.arange(self.protected)
        unmerged = even[staying][even[staying] >= self.protected]
        kept = torch.cat([front, unmerged])
        merged = torch.cat([tokens[kept], (total / mass[:, None])[free]])
        return merged, torch.cat([sizes[kept], mass[free]]), _margin(value, similarity, leaving, remove)


def _margin(value: Tensor, similarity: Tensor, leaving: Tensor, remove: int) -> float:
    ranked = value[value > -math.inf].sort(descending=True).values
    margins = [] if remove in (0, len(ranked)) else [float(ranked[remove - 1] - ranked[remove])]
    two = similarity[leaving].topk(min(2, similarity.shape[1]), dim=1).values
    if two.shape[1] == 2 and len(two):
        margins.append(float((two[:, 0] - two[:, 1]).min()))
    return min(margins, default=math.inf)


@dataclass(frozen=True)
class EViT:
    """Liang et al. 2022, section 3.2: at `layers`, keep ceil(ratio * (N - 1)) tokens by class attention, fuse the rest."""

    ratio: float
    layers: tuple[int, ...]
    proportional: bool = False

    def __call__(
        self, tokens: Tensor, queries: Tensor, keys: Tensor, sizes: Tensor, block: int
    ) -> tuple[Tensor, Tensor, float]:
        if block not in self.layers:
            return tokens, sizes, math.inf
        logits = (queries[:, :1] @ keys.transpose(1, 2)) / math.sqrt(queries.shape[-1])
        attention = logits.softmax(dim=-1)[:, 0].mean(dim=0)[1:]
        keep = math.ceil(self.ratio * (len(tokens) - 1))
        order = torch.argsort(attention, descending=True)
        kept, dropped = order[:keep], order[keep:]
        fused = (attention[dropped, None] * tokens[1:][dropped]).sum(dim=0, keepdim=True)
        shortened = torch.cat([tokens[:1], tokens[1:][kept], fused])
        return shortened, sizes.new_ones(len(shortened)), float(attention[kept[-1]] - attention[dropped[0]])


@dataclass(frozen=True)
class DivPrune:
    """Alvar et al. 2025: at `layers`, keep ceil(ratio * (N - 1)) tokens beside the class token, the farthest from each other."""

    ratio: float
    layers: tuple[int, ...]
    proportional: bool = False

    def __call__(
        self, tokens: Tensor, queries: Tensor, keys: Tensor, sizes: Tensor, block: int
    ) -> tuple[Tensor, Tensor, float]:
        if block not in self.layers:
            return tokens, sizes, math.inf
        unit = tokens[1:] / tokens[1:].norm(dim=-1, keepdim=True)
        cosine = unit @ unit.T
        distance = 1 - (cosine + cosine.T) / 2  # a product need not be symmetric to the last bit
        nearest = distance.clone().fill_diagonal_(math.inf).min(dim=1).values
        chosen, margins = [int(nearest.argmax())], [_lead(nearest)]
        while len(chosen) < math.ceil(self.ratio * len(unit)):
            reach = distance[chosen].min(dim=0).values
            reach[chosen] = -math.inf
            chosen.append(int(reach.argmax()))
            margins.append(_lead(reach))
        shortened = torch.cat([tokens[:1], tokens[1:][sorted(chosen)]])
        return shortened, sizes.new_ones(len(shortened)), min(margins)


def _lead(values: Tensor) -> float:
    """How far the best is ahead; two nearest neighbours of each other tie exactly, and the first of them is chosen."""
    ranked = values.unique()
    return float(ranked[-1] - ranked[-2])


Published = ToMe | EViT | DivPrune


def forward(net: Any, images: Tensor, method: Published) -> tuple[Tensor, float]:
    """Outputs of a timm VisionTransformer under a method, [B, classes], and the smallest margin of all decisions."""
    net = net.to(images.dtype)
    results = [_one(net, image[None], method) for image in images]
    return torch.cat([output for output, _ in results]), min(margin for _, margin in results)


def _one(net: Any, image: Tensor, method: Published) -> tuple[Tensor, float]:
    x = net.norm_pre(net._pos_embed(net.patch_embed(image)))[0]
    sizes, smallest = x.new_ones(len(x)), math.inf
    for number, block in enumerate(net.blocks):
        attended, queries, keys = attention(block.attn, block.norm1(x), sizes, method.proportional)
        x = x + block.ls1(attended)
        x, sizes, margin = method(x, queries, keys, sizes, number)
        smallest = min(smallest, margin)
        x = x + block.ls2(block.mlp(block.norm2(x)))
    x = net.norm(x)
    if net.global_pool == "avg":
        weights = sizes[net.num_prefix_tokens :]
        pooled = (x[net.num_prefix_tokens :] * weights[:, None]).sum(dim=0) / weights.sum()
        return net.head(net.fc_norm(pooled))[None], smallest
    return net.forward_head(x[None]), smallest


def attention(module: Any, x: Tensor, sizes: Tensor, proportional: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What a timm attention adds to the stream, and its queries and keys; proportional: log size is added to the logits."""
    heads, width = module.num_heads, module.head_dim
    parts = module.qkv(x).reshape(len(x), 3, heads, width).permute(1, 2, 0, 3)
    queries, keys, values = module.q_norm(parts[0]), module.k_norm(parts[1]), parts[2]
    logits = (queries @ keys.transpose(1, 2)) / math.sqrt(width)
    if proportional:
        logits = logits + sizes.log()
    mixed = (logits.softmax(dim=-1) @ values).transpose(0, 1).reshape(len(x), heads * width)
    return module.proj(module.norm(mixed)), queries, keys


def timm_net(module: nn.Module) -> Any:
    """The timm model inside a zoo module."""
    return module.net
