"""A factorised encoder, frames one by one and then their class tokens: a frame may choose its own places, a clip its frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tokenrt
from tests.passes.analysis.test_attended import Attention, exported, ran
from tokenrt import Budget

T, P, C, SIDE = 6, 16, 32, 16


class Block(nn.Module):
    """Attention and MLP; the first `left` tokens go on behind the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.attention = nn.LayerNorm(C), nn.LayerNorm(C), Attention("plain", 1)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor, left: int | None = None) -> Tensor:
        x = (x + self.attention(self.first(x), torch.arange(1)))[:, :left]
        return x + self.mlp(self.second(x))


class Factorised(nn.Module):
    """ViViT's second form on clips [B,T,3,h,w]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, C, SIDE // 4, SIDE // 4), nn.Parameter(torch.randn(1, 1, C))
        self.places, self.times = nn.Parameter(torch.randn(1, P + 1, C)), nn.Parameter(torch.randn(1, T, C))
        self.spatial, self.temporal = (nn.ModuleList(Block() for _ in range(2)) for _ in range(2))
        self.head = nn.Linear(C, 5)

    def forward(self, x: Tensor, places: int | None = None, frames: int | None = None) -> Tensor:
        tokens = self.patches(x.reshape(-1, 3, SIDE, SIDE)).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.first.expand(tokens.shape[0], -1, -1), tokens), 1) + self.places
        for block, left in zip(self.spatial, (places, None), strict=True):
            tokens = block(tokens, left)
        clip = tokens[:, 0].reshape(-1, T, C) + self.times
        for block, left in zip(self.temporal, (frames, None), strict=True):
            clip = block(clip, left)
        return self.head(clip.mean(1))


@pytest.mark.filterwarnings("ignore")
def test_both_encoders_are_reduced(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, given = Factorised().eval(), torch.randn(2, T, 3, SIDE, SIDE)
    path = exported(net, given, tmp_path / "m.onnx", free=True)
    found = tokenrt.inspect(path)
    assert [(each.tokens, each.across, len(each.blocks)) for each in found.transformers] == [
        (P + 1, 1, 2),
        (T, 1, 2),
    ]
    assert not found.refusals
    for number, (places, frames) in enumerate([(9, None), (None, 4)]):
        budget = Budget.tokens([places or frames or 0], [0])
        reduced = tokenrt.reduce(path, method="slice", budget=budget, transformers=[number])
        with torch.no_grad():
            expected = net(given, places, frames).numpy()
        np.testing.assert_allclose(ran(reduced.model, given), expected, rtol=0, atol=2e-6)
