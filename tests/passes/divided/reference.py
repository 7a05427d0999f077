"""Divided attention in torch, with frames or places left out or merged as a source map says: what a rewritten graph must equal.

Shapes: B clips, P places, T frames, C channels; tokens x [B,P,T,C] beside one class token [B,1,1,C].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

PLACES, FRAMES = 1, 2
"""Axes of x."""


@dataclass(frozen=True)
class Cut:
    """What leaves behind a block's attention over the axis: the source maps [B,N0] before and behind it."""

    before: Tensor
    behind: Tensor

    def weights(self) -> tuple[Tensor, Tensor]:
        """[B,K,N] by which tokens become fewer, each counted by its size; [B,K] sizes behind."""
        count, left = int(self.before.max()) + 1, int(self.behind.max()) + 1
        found = torch.zeros(len(self.before), left, count)
        for clip, (old, new) in enumerate(zip(self.before.tolist(), self.behind.tolist(), strict=True)):
            for source, goal in zip(old, new, strict=True):
                if goal >= 0:
                    found[clip, goal, source] += 1
        size = found.sum(2)
        return found / size[..., None], size


def attention(module: nn.Module, x: Tensor, heads: int, sizes: Tensor | None = None) -> Tensor:
    """Self-attention of rows x [R,N,C] by a module of TimeSformer's; sizes [R,N] of merged keys."""
    rows, count, width = x.shape
    query, key, value = module.attention.qkv(x).reshape(rows, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) * (width // heads) ** -0.5
    if sizes is not None:
        scores = scores + sizes.log()[:, None, None]
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, count, width)
    return module.output.dense(mixed)


class Divided:
    """A TimesformerModel of transformers, block by block; proportional: merged keys count by their sizes."""

    def __init__(
        self,
        model: Any,
        cuts: Mapping[int, Cut],
        axis: int,
        *,
        merges: bool = False,
        proportional: bool = True,
    ) -> None:
        self.model, self.cuts, self.axis, self.merges = model, cuts, axis, merges
        self.heads, self.proportional = model.config.num_attention_heads, proportional
        self.sizes: Tensor | None = None
        self.lengths: Tensor | None = None
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        """Tokens [B,1+P*T,C], all of them: those that left as they were, behind the last norm."""
        stream = self.model.embeddings(pixels)
        frames = self.model.config.num_frames
        first, x = stream[:, :1, None], stream[:, 1:].unflatten(1, (-1, frames))
        for number, layer in enumerate(self.model.encoder.layer):
            first, x = self._block(layer, first, x, self.cuts.get(number))
        x = self._restored(x)
        return self.model.layernorm(torch.cat((first[:, 0], x.flatten(1, 2)), 1))

    def _block(self, layer: Any, first: Tensor, x: Tensor, cut: Cut | None) -> tuple[Tensor, Tensor]:
        first, x = self.attended(layer, first, x, cut)

        def mlp(value: Tensor) -> Tensor:
            return value + layer.output(layer.intermediate(layer.layernorm_after(value)))

        return mlp(first), mlp(x)

    def attended(self, layer: Any, first: Tensor, x: Tensor, cut: Cut | None = None) -> tuple[Tensor, Tensor]:
        """The class token and the tokens that are left behind both attentions of a layer."""
        clips, places, frames, width = x.shape
        sizes = self._repeated(places) if self.axis == FRAMES else None
        rows = layer.temporal_layernorm(x.reshape(-1, frames, width))
        mixed = attention(layer.temporal_attention, rows, self.heads, sizes)
        x = x + layer.temporal_dense(mixed.reshape(x.shape))
        if cut is not None and self.axis == FRAMES:
            x = self._cut(x, cut)
            frames = x.shape[FRAMES]
        each = torch.cat((first.expand(-1, frames, -1, -1), x.transpose(1, 2)), 2)
        sizes = self._repeated(frames) if self.axis == PLACES else None
        if sizes is not None:
            sizes = torch.cat((torch.ones(len(sizes), 1), sizes), 1)
        rows = layer.layernorm_before(each.reshape(clips * frames, -1, width))
        mixed = attention(layer.attention, rows, self.heads, sizes).reshape(each.shape)
        copies = mixed[:, :, :1]
        if self.lengths is not None:
            share = self.lengths / self.lengths.sum(1, keepdim=True)
            first = first + (copies * share[:, :, None, None]).sum(1, keepdim=True)
        else:
            first = first + copies.mean(1, keepdim=True)
        x = x + mixed[:, :, 1:].transpose(1, 2)
        if cut is not None and self.axis == PLACES:
            x = self._cut(x, cut)
        return first, x

    def _cut(self, x: Tensor, cut: Cut) -> Tensor:
        weights, size = cut.weights()
        self.seen[-1:] = [(x, cut.before), (x, cut.behind)]
        self.sizes = size if self.merges and self.proportional else None
        if self.axis == FRAMES and self.merges:
            self.lengths = size
        return torch.einsum("bkn,bntc->bktc" if self.axis == PLACES else "bkn,bpnc->bpkc", weights, x)

    def _repeated(self, rows: int) -> Tensor | None:
        return None if self.sizes is None else self.sizes.repeat_interleave(rows, 0)

    def _restored(self, x: Tensor) -> Tensor:
        """All tokens: those that are left, what others were merged into, and those that left as they last were."""
        if not self.seen:
            return x
        self.seen[-1] = (x, self.seen[-1][1])
        whole = self.seen[0][0]
        for here, source in self.seen:
            pairs = zip(here, source.clamp(min=0), strict=True)
            taken = torch.stack([clip.index_select(self.axis - 1, own) for clip, own in pairs])
            there = (
                (source >= 0)[:, :, None, None] if self.axis == PLACES else (source >= 0)[:, None, :, None]
            )
            whole = torch.where(there, taken, whole)
        return whole


def cuts(maps: Sequence[Tensor], blocks: Sequence[int], protected: int) -> dict[int, Cut]:
    """The cuts of sites at these blocks, from the source map [B,N] behind each; `protected` first tokens are none of x."""
    own = [(source[:, protected:] - protected).clamp(min=-1) for source in maps]
    first = torch.arange(own[0].shape[1]).expand(len(own[0]), -1)
    return {block: Cut(old, new) for block, old, new in zip(blocks, [first, *own], own, strict=False)}
