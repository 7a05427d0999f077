"""Ten steps with regions that rest, beside text: read across as in PixArt, joined as in SD3, and of packed latents as in Flux."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.passes.helpers.denoisers import (
    TEXT,
    TOKENS,
    WIDTH,
    Joint,
    PixArt,
    adapted,
    angles_of,
    by_head,
    exported,
    mixed,
    modulated,
)
from tests.passes.helpers.streams import seeded
from tests.passes.rewriting.steps.test_steps import Loop, same_as_torch
from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce


def flux(path: Path) -> Path:
    """Two blocks of two streams, then two over both as one."""
    torch.manual_seed(0)
    return exported(seeded(Joint(2, text_first=True, packed=True)), path, free=False, dynamo=20)


def test_blocks_over_both_as_one_stream_compute_all(tmp_path: Path) -> None:
    path, target = flux(tmp_path / "flux.onnx"), tmp_path / "r.onnx"
    made = reduce(path, method="ras", budget=Budget.tokens([9]), output=target)
    assert [(site.transformer, site.tokens) for site in made.plan.sites] == [(0, 9)]
    for chosen, reason in (
        ([0, 1], "transformers 0, 1: the state .* is that of one transformer"),
        (
            [1],
            r"packed into a row for each of the 19 tokens, \[B,N,U\]; the tokens are made of no such input",
        ),
    ):
        with pytest.raises(TokenrtError, match=reason):
            reduce(path, method="ras", budget=Budget.tokens([12]), transformers=chosen)


class Across(Loop):
    """PixArt: active patches read the text by themselves."""

    def step(self, latent: Tensor, timestep: Tensor, active: Tensor, text: Tensor | None = None) -> Tensor:
        net, every = self.net, torch.arange(len(latent))[:, None]
        time = net.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        shared = net.shared(functional.silu(time)).reshape(-1, 6, WIDTH)
        x = (net.enter(latent).flatten(2).transpose(1, 2) + net.places)[every, active]
        text = functional.gelu(net.caption(text))
        for number, block in enumerate(net.blocks):
            shift, scale, gate, *fed = (block.table[None] + shared).chunk(6, dim=1)
            h = modulated(x, shift, scale)
            query, key, value = (by_head(part(h)) for part in block.own[:3])
            keys, values = (
                self._all(kept, number, now, active) for kept, now in ((self.keys, key), (self.values, value))
            )
            x = x + gate * block.own[3](mixed(query, keys, values))
            query, key, value, out = block.cross
            x = x + out(mixed(by_head(query(x)), by_head(key(text)), by_head(value(text))))
            shift, scale, gate = fed
            up = functional.gelu(block.up(modulated(x, shift, scale)), approximate="tanh")
            x = x + gate * block.down(up)
        shift, scale = (net.table[None] + time[:, None]).chunk(2, dim=1)
        return self.picture(net.leave(modulated(x, shift, scale)), active)


class Beside(Loop):
    """SD3 and Flux, of packed latents: text is computed in every step, and sees the keys of all patches."""

    def step(self, latent: Tensor, timestep: Tensor, active: Tensor, text: Tensor | None = None) -> Tensor:
        assert text is not None
        net, every = self.net, torch.arange(len(latent))[:, None]
        time = net.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        x, angles = net.enter(latent)[every, active], angles_of(TOKENS + TEXT).to(latent)
        for number, (image, words) in enumerate(zip(net.image, net.text, strict=True)):
            numbers = image.numbers(time), words.numbers(time)
            query, key, value = image.parts(adapted(x, *numbers[0][:2]), angles[TEXT:][active][:, None])
            keys, values = (
                self._all(kept, number, now, active) for kept, now in ((self.keys, key), (self.values, value))
            )
            other = words.parts(adapted(text, *numbers[1][:2]), angles[:TEXT])
            pairs = zip(other, (query, keys, values), strict=True)
            both = mixed(*(torch.cat(pair, dim=2) for pair in pairs))
            x = image.fed(x + numbers[0][2][:, None] * image.out(both[:, TEXT:]), numbers[0])
            text = words.fed(text + numbers[1][2][:, None] * words.out(both[:, :TEXT]), numbers[1])
        return self.whole(net.leave(x), active)

    @staticmethod
    def unsettled(update: Tensor) -> Tensor:
        """[B,N] of rows [B,N,4*4], channels outermost."""
        return update.unflatten(2, (4, 4)).std(dim=2).mean(dim=2)


@pytest.mark.parametrize("dynamo", [20, *(pytest.param(form, marks=pytest.mark.slow) for form in (0, 23))])
@pytest.mark.parametrize("family", ["pixart", "packed"])
def test_ten_steps_are_a_loop_in_torch(family: str, dynamo: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = seeded(PixArt() if family == "pixart" else Joint(text_first=True, packed=True))
    path = exported(net, tmp_path / "net.onnx", free=not dynamo, dynamo=dynamo)
    same_as_torch(net, path, tmp_path / "resting.onnx", Across if family == "pixart" else Beside)
