"""An attention site of a diffusion U-Net: a grid becomes tokens, blocks with cross-attention follow, tokens become a grid."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.probes import Line, Pairs, Strong, registered
from tests.passes.running import attended, run, session
from tests.tolerance import within_twice
from tokenrt.passes.inspect import inspect
from tokenrt.passes.plan import Budget
from tokenrt.passes.reduce import reduce

WIDTH, CONTEXT, HEADS, HEIGHT, BREADTH = 16, 12, 2, 8, 6
TOKENS = HEIGHT * BREADTH


class Attention(nn.Module):
    """Queries of one stream, keys and values of another; sizes [N] are added to the logits as logarithms."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key, self.value = (nn.Linear(context, WIDTH, bias=False) for _ in range(2))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor, sizes: Tensor | None = None) -> Tensor:
        parts = self.query(x), self.key(context), self.value(context)
        q, k, v = (p.reshape(p.shape[0], p.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2) for p in parts)
        logits = q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5
        mixed = (logits if sizes is None else logits + sizes.log()).softmax(dim=-1) @ v
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return result


class Block(nn.Module):
    """Self-attention, cross-attention, gated MLP; `plan` (a method and K) reduces the first one's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.own, self.cross = Attention(WIDTH), Attention(CONTEXT)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, context: Tensor, method: Any = None, keep: int = 0) -> Tensor:
        h = self.first(x)
        x = x + (self.own(h, h) if method is None else self.reduced(h, method, keep))
        x = x + self.cross(self.second(x), context)
        left, gate = self.up(self.third(x)).chunk(2, dim=-1)
        result: Tensor = x + self.down(left * functional.gelu(gate))
        return result

    def reduced(self, h: Tensor, method: Any, keep: int) -> Tensor:
        line = Line(h[0], h.new_ones(h.shape[1]))
        short = method(line, h[0], keep)[None]
        sizes = line.sizes if method.proportional else None
        return line.back(self.own(short, short, sizes)[0])[None]


class UNet(nn.Module):
    """A level at full resolution, one at half, and back up."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, WIDTH, 3, padding=1), nn.Conv2d(2 * WIDTH, 4, 3, padding=1)
        self.down = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, WIDTH) for _ in range(2))
        self.wide = nn.ModuleList(Block() for _ in range(2))
        self.narrow = Block()

    def forward(
        self, latent: Tensor, context: Tensor, method: Any = None, keep: int = 0, blocks: Sequence[int] = ()
    ) -> Tensor:
        x = self.enter(latent)
        tokens = self.norms[0](x).flatten(2).transpose(1, 2)
        for number, block in enumerate(self.wide):
            tokens = block(tokens, context, method if number in blocks else None, keep)
        x = x + tokens.transpose(1, 2).reshape(x.shape)
        y = self.down(x)
        tokens = self.narrow(self.norms[1](y).flatten(2).transpose(1, 2), context)
        y = functional.interpolate(y + tokens.transpose(1, 2).reshape(y.shape), scale_factor=2.0)
        noise: Tensor = self.leave(torch.cat([x, y], dim=1))
        return noise


@pytest.fixture(autouse=True, scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with registered(tmp_path_factory.mktemp("probes")) as module:
        yield module


def given(batch: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(2)
    latent = torch.randn(batch, 4, HEIGHT, BREADTH, generator=made)
    return latent, torch.randn(batch, 5, CONTEXT, generator=made)


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    made = UNet().eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        elif parameter.ndim == 1:
            # Norms of unequal weight: without them all tokens have one length, and rounding decides which is longest.
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return made


@pytest.fixture(scope="module", params=["dynamic", "fixed"])
def path(request: pytest.FixtureRequest, net: UNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("unet") / "unet.onnx"
    names = ("latent", "context", "noise")
    axes = {name: {0: "batch"} for name in names} if request.param == "dynamic" else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            given(2),
            str(file),
            dynamo=False,
            opset_version=17,
            input_names=names[:2],
            output_names=names[2:],
            dynamic_axes=axes,
        )
    return file


def test_its_grid_and_the_place_of_its_blocks(path: Path) -> None:
    found = inspect(path)
    assert found.grid == (HEIGHT, BREADTH)
    assert found.tokens == TOKENS
    assert found.protected == 0
    assert [row.sites[0] for row in found.blocks] == ["around-attention"] * 2
    reasons = [refusal.reason for refusal in found.refusals]
    own = [reason for reason in reasons if "a transformer of its own" in reason]
    assert len(own) == 1
    assert f"over {TOKENS // 4} tokens that start anew" in own[0]
    assert f"the first is reduced, here that of {TOKENS} tokens" in own[0]
    assert sum("does not read the residual stream's tokens" in reason for reason in reasons) == 2


@pytest.mark.parametrize(
    "method", [Pairs(0), Strong(0), Strong(0, spread=True)], ids=["pairs", "strong", "spread"]
)
def test_tokens_leave_for_the_attention_alone(path: Path, net: UNet, method: Pairs | Strong) -> None:
    keep = 30
    options = {"spread": method.spread} if isinstance(method, Strong) else {}
    # State goes from block to block; the plain form below has none, so one block is reduced.
    blocks = [0, 1] if isinstance(method, Pairs) else [1]
    result = reduce(
        path,
        method=f"{type(method).__name__.lower()}_around",
        budget=Budget.tokens([keep] * len(blocks), blocks),
        options=options,
    )
    latent, context = given(2)
    found = run(session(result.model), {"latent": latent.numpy(), "context": context.numpy()})[0]
    if isinstance(method, Pairs):
        counts = attended(result.model, {"latent": latent.numpy(), "context": context.numpy()})
        assert counts == [keep, 5, keep, 5, TOKENS // 4, 5]

    def plain(kind: torch.dtype) -> Any:
        pairs = zip(latent.to(kind), context.to(kind), strict=True)
        with torch.no_grad():
            return torch.cat(
                [copy.deepcopy(net).to(kind)(a[None], b[None], method, keep, blocks) for a, b in pairs]
            )

    within_twice(found, plain(torch.float64), plain(torch.float32))


def test_the_published_method_for_diffusion(path: Path) -> None:
    """Half the tokens leave around both attentions; a 2 x 2 cell keeps one destination."""
    result = reduce(path, method="tomesd", budget=Budget.keep(0.5, [0, 1]))
    assert [site.tokens for site in result.plan.sites] == [TOKENS // 2] * 2
    latent, context = given(2)
    feeds = {"latent": latent.numpy(), "context": context.numpy()}
    (found,), (wanted,) = run(result.model, feeds), run(path, feeds)
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    assert 0 < float(np.abs(found - wanted).max()) < float(np.abs(wanted).max())
