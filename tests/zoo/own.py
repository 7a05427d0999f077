"""Models written here: dense heads, several taps, post-norm and bias-free blocks, one with no attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .entry import BLOCKS, HEADS, IMAGE, NEGATIVE, WIDTH, Entry, zero
from .hugging_face import TABLE, hugging_face


class Dense(nn.Module):
    """A dense head as saliency models have it: drop the leading tokens, reshape to the grid, ConvTranspose.

    `taps` names the blocks (counted from 0) whose features are joined; without it the normed last block is.
    """

    def __init__(self, net: nn.Module, lead: int = 1, taps: Sequence[int] = ()) -> None:
        super().__init__()
        self.net, self.lead, self.taps = net, lead, tuple(taps)
        channels = WIDTH * max(1, len(self.taps))
        first, second = nn.ConvTranspose2d(channels, 16, 2, stride=2), nn.ConvTranspose2d(16, 1, 2, stride=2)
        self.up = nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())

    def forward(self, pixel_values: Tensor) -> Tensor:
        result = self.net(pixel_values, output_hidden_states=bool(self.taps))
        levels = (
            [result.hidden_states[tap + 1] for tap in self.taps] if self.taps else [result.last_hidden_state]
        )
        grid = torch.cat([level[:, self.lead :] for level in levels], dim=-1)
        side = int(grid.shape[1] ** 0.5)
        upsampled: Tensor = self.up(grid.transpose(1, 2).reshape(grid.shape[0], grid.shape[2], side, side))
        return upsampled


class PostNorm(nn.Module):
    """Patches through post-norm blocks with explicit softmax attention, mean pooling, linear head."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 16, 16)
        self.position = nn.Parameter(torch.zeros(1, 16, WIDTH))
        self.query_key_value = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH, bias) for _ in range(BLOCKS))
        self.project = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias) for _ in range(BLOCKS))
        self.first = nn.ModuleList(nn.LayerNorm(WIDTH, bias=bias) for _ in range(BLOCKS))
        self.second = nn.ModuleList(nn.LayerNorm(WIDTH, bias=bias) for _ in range(BLOCKS))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH, bias) for _ in range(BLOCKS))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH, bias) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 10, bias)

    def _attend(self, x: Tensor, block: int) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.query_key_value[block](x).chunk(3, dim=-1)
        q, k, v = (part.reshape(batch, tokens, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
        attention = torch.softmax(q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5, dim=-1)
        projected: Tensor = self.project[block]((attention @ v).transpose(1, 2).reshape(batch, tokens, WIDTH))
        return projected

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patch(pixel_values).flatten(2).transpose(1, 2) + self.position
        for block in range(BLOCKS):
            x = self.first[block](x + self._attend(x, block))
            x = self.second[block](x + self.down[block](torch.relu(self.up[block](x))))
        pooled: Tensor = self.head(x.mean(dim=1))
        return pooled


class Mlp(nn.Module):
    """No attention at all: flatten and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(3 * IMAGE * IMAGE, 32), nn.ReLU(), nn.Linear(32, 10)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        result: Tensor = self.layers(pixel_values)
        return result


def _dinov2(**options: int) -> nn.Module:
    return hugging_face("Dinov2Model", "Dinov2Config", mlp_ratio=2, **options)


def _vit() -> nn.Module:
    return hugging_face("ViTModel", "ViTConfig")


SALIENCY, LOGITS, POSITION = ("saliency",), ("logits",), zero("position")
ENTRIES = (
    Entry("dense_dinov2", lambda: Dense(_dinov2()), SALIENCY, "dense", zero=TABLE, fuse="vit"),
    Entry(
        "dense_dinov2_patch8",
        lambda: Dense(_dinov2(patch_size=8)),
        SALIENCY,
        "dense",
        65,
        zero=TABLE,
        fuse="vit",
    ),
    Entry("dense_taps", lambda: Dense(_vit(), taps=(1, 3)), SALIENCY, "dense", zero=TABLE, fuse="vit"),
    Entry("post_norm", PostNorm, LOGITS, "mean-pool", 16, 0, zero=POSITION),
    Entry("post_norm_bias_free", lambda: PostNorm(bias=False), LOGITS, "mean-pool", 16, 0, zero=POSITION),
    Entry("mlp", Mlp, LOGITS, "none", 0, 0, tags=NEGATIVE, blocks=0),
)
