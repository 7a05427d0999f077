"""Inputs in which tokens repeat, and how many of them a merging method may remove before it has to touch a difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tests import zoo
from tests.passes.helpers.running import Array, Variant
from tests.zoo import files

ROTARY = ("hf_dinov3", "timm_eva", "timm_eva02")


def neutral_rotation(module: nn.Module) -> None:
    """Turn every position by the same angle, none: rotary tables then tell no position from another."""
    for name, parameter in module.named_parameters():
        if name.endswith("pos_embed"):
            parameter.data.zero_()
    for name, buffer in module.named_buffers():
        if name.endswith(("inv_freq", "bands")):
            buffer.zero_()
        elif name.endswith("rope.pos_embed"):
            sine, cosine = buffer.chunk(2, dim=-1)
            sine.zero_()
            cosine.fill_(1)


def without_positions(variant: Variant) -> Path:
    """The file of a zoo model in which equal patches or words are equal tokens."""
    options = {"exporter": variant.exporter, "dtype": variant.dtype, "fused": variant.fused}
    if variant.name not in ROTARY:
        return zoo.onnx(variant.name, variant.opset, zero_positions=True, **options)

    def build() -> nn.Module:
        module = zoo.build(variant.name)[0]
        neutral_rotation(module)
        return module

    return files.cached(
        zoo.entry(variant.name),
        build,
        lambda batch: zoo.examples(variant.name, batch),
        tag="s0n",
        opset=variant.opset,
        **options,
    )


def inputs(name: str, labels: Array, seed: int = 11, padding: Sequence[int] = ()) -> dict[str, Array]:
    """Model inputs whose unprotected tokens carry `labels` [B,M]: patches of a picture or clip, or words after the first.

    padding: how many words at the end of each row are hidden by the mask; pictures take none.
    """
    kinds = int(labels.max()) + 1
    if zoo.entry(name).inputs.startswith("text"):
        words = np.concatenate([np.full((len(labels), 1), 49), labels + 1], axis=1).astype(np.int64)
        mask = np.ones_like(words)
        for row, hidden in enumerate(padding):
            mask[row, words.shape[1] - hidden :] = 0
        return {"input_ids": words, "attention_mask": mask}
    if zoo.entry(name).inputs == "video":
        frames, patches_each = 4, 16
        pictures = inputs("hf_vit", labels.reshape(-1, patches_each), seed)["pixel_values"]
        return {"pixel_values": pictures.reshape(-1, frames, 3, 64, 64).repeat(2, axis=1)}
    side = round(labels.shape[1] ** 0.5)
    edge = 64 // side
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(kinds, 3, edge, edge, generator=generator).numpy()
    grid = patches[labels.reshape(-1, side, side)]
    return {"pixel_values": grid.transpose(0, 3, 1, 4, 2, 5).reshape(len(labels), 3, 64, 64)}


def masked(name: str, labels: Array, padding: Sequence[int]) -> Array:
    """The labels as matching sees them: hidden words resemble each other and nothing else."""
    if not zoo.entry(name).inputs.startswith("text"):
        return labels
    result = labels.copy()
    for row, hidden in enumerate(padding):
        result[row, labels.shape[1] - hidden :] = -1
    return result


class Line:
    """The labels of one sequence as merging shortens it; None where it depends on how rounding broke a tie."""

    def __init__(self, labels: Sequence[int], protected: int) -> None:
        self.labels: list[int | None] = list(labels)
        self.protected = protected

    def _sides(self) -> tuple[list[int | None], list[int | None]]:
        even = [label for place, label in enumerate(self.labels) if (place + self.protected) % 2 == 0]
        odd = [label for place, label in enumerate(self.labels) if (place + self.protected) % 2 == 1]
        return even, odd

    def repeats(self) -> int:
        """How many sources surely have an equal destination."""
        even, odd = self._sides()
        there = Counter(odd)
        return sum(label is not None and there[label] > 0 for label in even)

    def merge(self, removed: int) -> None:
        """Remove so many of them, no one knows which; the destinations stay, in order."""
        if not removed:
            return
        even, odd = self._sides()
        left = len(even) - removed
        sure = None not in self.labels and self.protected and removed == self.repeats()
        single = [label for label in even if label not in odd]
        self.labels = [*(single if sure else [None] * left), *odd]


def counts(labels: Array, protected: int, blocks: int, share: float = 1.0) -> list[int]:
    """Tokens to leave at each block so that only repeats are merged: `share` of what every row allows."""
    lines = [Line(row.tolist(), protected) for row in labels]
    here, result = labels.shape[1] + protected, []
    for _ in range(blocks):
        removed = int(share * min(line.repeats() for line in lines))
        for line in lines:
            line.merge(removed)
        here -= removed
        result.append(here)
    return result


def arranged(rows: int, tokens: int, kinds: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, kinds, (rows, tokens))
