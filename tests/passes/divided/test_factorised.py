"""A factorised encoder, frames one by one and then their class tokens: a frame may choose its own places, a clip its frames."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tokenrt
from tests.passes.analysis.test_attended import Attention, exported
from tests.passes.divided.reference import Cut
from tests.passes.helpers.running import run
from tokenrt import Budget

T, P, C, SIDE = 6, 16, 32, 16


class Block(nn.Module):
    """Attention and MLP; `share` [R,K,N] makes the tokens fewer behind the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.attention = nn.LayerNorm(C), nn.LayerNorm(C), Attention("plain", 1)
        self.mlp = nn.Sequential(nn.Linear(C, 2 * C), nn.GELU(), nn.Linear(2 * C, C))

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.first(x), torch.arange(1))
        x = x if share is None else share @ x
        return x + self.mlp(self.second(x))


class Factorised(nn.Module):
    """ViViT's second form on clips [B,T,3,h,w]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, C, SIDE // 4, SIDE // 4), nn.Parameter(torch.randn(1, 1, C))
        self.places, self.times = nn.Parameter(torch.randn(1, P + 1, C)), nn.Parameter(torch.randn(1, T, C))
        self.spatial, self.temporal = (nn.ModuleList(Block() for _ in range(2)) for _ in range(2))
        self.head = nn.Linear(C, 5)

    def forward(self, x: Tensor, places: Cut | None = None, frames: Cut | None = None) -> Tensor:
        tokens = self.patches(x.reshape(-1, 3, SIDE, SIDE)).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.first.expand(tokens.shape[0], -1, -1), tokens), 1) + self.places
        for block, cut in zip(self.spatial, (places, None), strict=True):
            tokens = block(tokens, cut and cut.weights()[0])
        clip = tokens[:, 0].reshape(-1, T, C) + self.times
        for block, cut in zip(self.temporal, (frames, None), strict=True):
            clip = block(clip, cut and cut.weights()[0])
        if frames is None:
            return self.head(clip.mean(1))
        size = frames.weights()[1][..., None]
        return self.head((size * clip).sum(1) / size.sum(1))


GIVEN = torch.randn(2, T, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Factorised, Path]:
    torch.manual_seed(0)
    net = Factorised().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return net, exported(net, GIVEN, tmp_path_factory.mktemp("vivit") / "m.onnx", free=True)


def test_two_encoders_are_two_transformers(model: tuple[Factorised, Path]) -> None:
    found = tokenrt.inspect(model[1])
    assert [(each.tokens, each.across, len(each.blocks)) for each in found.transformers] == [
        (P + 1, 1, 2),
        (T, 1, 2),
    ]
    assert not found.refusals


@pytest.mark.parametrize(("encoder", "count"), [(0, 9), (1, 4)], ids=["places", "frames"])
@pytest.mark.parametrize("method", ["slice", "sta", "tempme"])
def test_an_encoder_equals_torch(
    model: tuple[Factorised, Path], method: str, encoder: int, count: int
) -> None:
    """Each frame has its own places left out or merged; each clip its frames."""
    net, path = model
    reduced = tokenrt.reduce(
        path,
        method=method,
        budget=Budget.tokens([count], [0]),
        transformers=[encoder],
        proportional_attention=False,
        source_map=True,
    )
    found, sources = run(reduced.model, {"x": GIVEN.numpy()})
    behind = torch.from_numpy(sources)
    assert behind.shape == ((2 * T, P + 1), (2, T))[encoder]
    cut = Cut(torch.arange(behind.shape[1]).expand_as(behind), behind)
    with torch.no_grad():
        expected, whole = net(GIVEN, **{("places", "frames")[encoder]: cut}), net(GIVEN)
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)
    assert (expected - whole).abs().max() > 1e-3
