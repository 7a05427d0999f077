"""What the zoo knows about one model, and the wrappers that give every model plain named inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WIDTH, HEADS, BLOCKS, IMAGE, WORDS, VOCABULARY = 64, 4, 4, 64, 32, 50
PICTURES = 8
"""Pictures of a clip."""
POSITIVE, NEGATIVE = frozenset({"positive"}), frozenset({"negative"})
Pick = Callable[[Any], Any]
Zero = Callable[[nn.Module], None]
Finish = Callable[[Path], None]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One model of the zoo and what a test may rely on.

    `inputs` is a key of `INPUTS`. `tokens` is N at the first block, protected ones included; `protected` is
    how many lead the sequence (class, distillation, registers). `follows` is what consumes the last block:
    class-token, mean-pool, attention-pool, dense, tokens, several joined by "+", or none. `zero` sets
    position tables and biases to zero; it is None where there are none to set (rotary). `fuse` is the model
    type for onnxruntime's transformer optimizer, None where it knows no such model. `finish` changes the
    exported file, as other tools do that users run behind the export.
    """

    name: str
    make: Callable[[], nn.Module]
    outputs: tuple[str, ...]
    follows: str
    tokens: int = 17
    protected: int = 1
    inputs: str = "image"
    tags: frozenset[str] = POSITIVE
    zero: Zero | None = None
    fuse: str | None = None
    blocks: int = BLOCKS
    heads: int = HEADS
    width: int = WIDTH
    finish: Finish | None = None


class Image(nn.Module):
    """Calls `net` with `pixel_values` and returns what `pick` takes from its result."""

    def __init__(self, net: nn.Module, pick: Pick = lambda result: result, **options: Any) -> None:
        super().__init__()
        self.net, self.pick, self.options = net, pick, options

    def forward(self, pixel_values: Tensor) -> Any:
        return self.pick(self.net(pixel_values, **self.options))


class Text(Image):
    """The same for text: `input_ids` and `attention_mask` [B, N], the mask 0 where a position is padding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:  # type: ignore[override]
        return self.pick(self.net(input_ids=input_ids, attention_mask=attention_mask, **self.options))


class Decode(Image):
    """One step of two blocks: new word, mask over past and new words, past keys and values [B, H, P, D]."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past_key_0: Tensor,
        past_value_0: Tensor,
        past_key_1: Tensor,
        past_value_1: Tensor,
    ) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache([(past_key_0, past_value_0), (past_key_1, past_value_1)])
        result = self.net(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True
        )
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (result.logits, *present)


def embedded(result: Any) -> Any:
    return result.last_hidden_state, result.pooler_output


def logits(result: Any) -> Any:
    return result.logits


def zero(*suffixes: str) -> Zero:
    """A hook that zeroes every parameter whose name ends in one of `suffixes`, and wants at least one."""

    def hook(module: nn.Module) -> None:
        found = [parameter for name, parameter in module.named_parameters() if name.endswith(suffixes)]
        if not found:
            raise LookupError(f"no parameter ends in {suffixes}")
        with torch.no_grad():
            for parameter in found:
                parameter.zero_()

    return hook


def _image(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, IMAGE, IMAGE)}


def _one_image(batch: int) -> dict[str, Tensor]:
    """One picture, whatever is asked for: the model has no batch."""
    return _image(1)


def _latent(batch: int) -> dict[str, Tensor]:
    return {"latent": torch.randn(batch, 4, 8, 8), "timestep": torch.rand(batch) * 10}


def _video(batch: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, PICTURES, 3, IMAGE, IMAGE)}


def _text(batch: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, WORDS, dtype=torch.int64)
    for row in range(batch):
        mask[row, WORDS - 5 * (row % 3) :] = 0
    return {"input_ids": torch.randint(1, VOCABULARY, (batch, WORDS)), "attention_mask": mask}


def _decode(batch: int, heads: int = HEADS, past: int = 7) -> dict[str, Tensor]:
    made = {
        "input_ids": torch.randint(1, VOCABULARY, (batch, 1)),
        "attention_mask": torch.ones(batch, past + 1).long(),
    }
    for block in (0, 1):
        for kind in ("key", "value"):
            made[f"past_{kind}_{block}"] = torch.randn(batch, heads, past, WIDTH // HEADS)
    return made


_PAST = {f"past_{kind}_{block}": {0: "batch", 2: "past"} for block in (0, 1) for kind in ("key", "value")}
_WORDS = {"input_ids": {0: "batch"}, "attention_mask": {0: "batch"}}
_DECODE = {"input_ids": {0: "batch"}, "attention_mask": {0: "batch", 1: "past_and_new"}, **_PAST}

# kind -> (examples of a batch size, the axes that may change and their names)
INPUTS: dict[str, tuple[Callable[[int], dict[str, Tensor]], dict[str, dict[int, str]]]] = {
    "image": (_image, {"pixel_values": {0: "batch"}}),
    "one-image": (_one_image, {}),
    "latent": (_latent, {"latent": {0: "batch"}, "timestep": {0: "batch"}}),
    "video": (_video, {"pixel_values": {0: "batch"}}),
    "text": (_text, _WORDS),
    "text-dynamic": (_text, {name: {0: "batch", 1: "sequence"} for name in _WORDS}),
    "decode": (_decode, _DECODE),
    "decode-grouped": (lambda batch: _decode(batch, heads=2), _DECODE),
}


def randomise(module: nn.Module) -> None:
    """Weights that make every part matter: attention logits of unit variance, no bias 0, no norm 1."""
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape)
            if parameter.ndim in (2, 4):
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            elif parameter.ndim == 3:
                parameter.copy_(0.5 * noise)
            else:
                parameter.add_(0.1 * noise)
