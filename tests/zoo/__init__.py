"""Small seeded models of every architecture tokenrt promises to handle, and of those it must refuse.

Each is 64 wide with 4 heads and 4 blocks unless its entry says otherwise, takes 64 x 64 pictures, eight of them
as a clip, or 32 words, and gets the same weights from the same seed. `names` lists, `entry` describes, `build`
makes the torch module, `onnx` the cached file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import forms, hugging_face, own, vision
from .entry import INPUTS, Entry, randomise
from .files import cached

_TABLE = {
    entry.name: entry for entry in (*hugging_face.ENTRIES, *vision.ENTRIES, *own.ENTRIES, *forms.ENTRIES)
}

__all__ = ["Entry", "build", "entry", "examples", "names", "onnx"]


def names(*tags: str) -> tuple[str, ...]:
    """Names of the entries that carry all of `tags`: positive, negative, form, causal, dynamic-tokens."""
    return tuple(name for name, found in _TABLE.items() if found.tags.issuperset(tags))


def entry(name: str) -> Entry:
    """The entry called `name`."""
    return _TABLE[name]


def examples(name: str, batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    """Seeded inputs: pictures [B,3,64,64], clips [B,8,3,64,64], or words and mask [B,32], padded in rows 1 and 2 of three."""
    torch.manual_seed(seed)
    return INPUTS[entry(name).inputs][0](batch)


def build(
    name: str, *, seed: int = 0, zero_positions: bool = False
) -> tuple[nn.Module, dict[str, Tensor], list[str]]:
    """The module in eval mode, two example inputs by name, and the output names.

    Raises: LookupError when `zero_positions` is asked of a model that has no position values to set.
    """
    found = entry(name)
    torch.manual_seed(seed)
    module = found.make().eval()
    randomise(module)
    if zero_positions:
        if found.zero is None:
            raise LookupError(f"{name} has no position values that can be zeroed")
        found.zero(module)
    return module, examples(name), list(found.outputs)


def onnx(name: str, opset: int = 18, *, seed: int = 0, zero_positions: bool = False, **options: Any) -> Path:
    """Path of the exported file; further options are those of `cached`: exporter, batch, dtype, fused."""
    return cached(
        entry(name),
        lambda: build(name, seed=seed, zero_positions=zero_positions)[0],
        lambda batch: examples(name, batch),
        tag=f"s{seed}" + ("z" if zero_positions else ""),
        opset=opset,
        **options,
    )
