"""Regions that rest in a U-Net: of its first transformer, where all rows go on into convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.helpers.running import run, session
from tests.passes.helpers.streams import HEADS, seeded
from tests.passes.test_unet import TOKENS, UNet, exported, feeds, given
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

STEPS, KEEP, GAMMA = 10, TOKENS // 2, -0.3
AHEAD = -0.1
"""What a step goes along the noise."""


class Loop:
    """The published step in torch: active places of the first transformer see the keys and values of all.

    Places that rest stay as they were until a convolution reads them: in the first level's result, and where that is put beside
    what comes from below.
    """

    def __init__(self, net: Any) -> None:
        self.net, self.kept = net, dict[Any, Tensor]()

    def step(self, latent: Tensor, context: Tensor, active: Tensor) -> Tensor:
        """The noise of a latent [B,4,h,w], places `active` [B,K] computed."""
        net = self.net
        wide = self._level(net.enter(latent), context, active)
        narrow = net.level(1, net.down(wide), context, None)
        both = torch.cat([wide, functional.interpolate(narrow, scale_factor=2.0)], dim=1)
        both = self._rested("both", both, active)
        noise: Tensor = net.leave(net.level(2, net.up(both), context, None))
        return noise

    def _level(self, x: Tensor, context: Tensor, active: Tensor) -> Tensor:
        picture = torch.arange(len(x))[:, None]
        here = self.net.norms[0](x).flatten(2).transpose(1, 2)[picture, active]
        for number, block in enumerate(self.net.levels[0]):
            h, own = block.first(here), block.own
            key, value = (
                self._all((number, part), getattr(own, part)(h), active) for part in ("key", "value")
            )
            parts = [rows.unflatten(2, (HEADS, -1)).transpose(1, 2) for rows in (own.query(h), key, value)]
            mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
            here = here + own.out(mixed)
            here = here + block.cross(block.second(here), context)
            left, gate = block.up(block.third(here)).chunk(2, dim=-1)
            here = here + block.down(left * functional.gelu(gate))
        whole = here.new_zeros(len(x), TOKENS, here.shape[2])
        whole[picture, active] = here
        return self._rested("first", x + whole.transpose(1, 2).reshape(x.shape), active)

    def _rested(self, name: str, x: Tensor, active: Tensor) -> Tensor:
        """A picture [B,C,h,w] whose places that rest are as they were."""
        rows = x.flatten(2).transpose(1, 2)[torch.arange(len(x))[:, None], active]
        return self._all(name, rows, active).transpose(1, 2).reshape(x.shape)

    def _all(self, name: Any, rows: Tensor, active: Tensor) -> Tensor:
        """[B,N,C] with the active rows as they are now."""
        if active.shape[1] == TOKENS:
            self.kept[name] = rows.clone()
        self.kept[name][torch.arange(len(rows))[:, None], active] = rows
        return self.kept[name]


def in_torch(net: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The noise of ten steps in float64, and how often each place has rested behind each."""
    latent, context = (value.double() for value in given(2))
    loop, rested, active = (
        Loop(net.double()),
        torch.zeros(2, TOKENS).double(),
        torch.arange(TOKENS).expand(2, -1),
    )
    noises, counts = list[Tensor](), list[Tensor]()
    with torch.no_grad():
        for number in range(STEPS):
            noises.append(loop.step(latent, context, active))
            rested = (rested + 1).scatter(1, active, rested.gather(1, active)) if number else rested
            counts.append(rested)
            update = AHEAD * noises[-1]
            latent = latent + update
            unsettled = update.std(dim=1).flatten(1) * (GAMMA * rested).exp()
            active = unsettled.argsort(dim=1)[:, :KEEP].sort(dim=1).values
    return noises, counts


def test_ten_steps_are_a_loop_in_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = seeded(UNet())
    path, inputs = exported(net, tmp_path, dynamic=False), feeds()
    budget = Budget.tokens([KEEP], [0])
    reduce(path, method="ras", budget=budget, options={"gamma": GAMMA}, output=tmp_path / "r.onnx")
    dense, resting = session(tmp_path / "r.dense.onnx"), session(tmp_path / "r.onnx")
    state = dict[str, Any]()
    noises, counts = in_torch(net)
    for number, (noise, rested) in enumerate(zip(noises, counts, strict=True)):
        used = resting if number else dense
        names = [value.name for value in used.get_outputs()]
        found = dict(zip(names, run(used, inputs | state), strict=True))
        assert np.abs(found["noise"] - noise.numpy()).max() < 1e-5, f"step {number}"
        np.testing.assert_array_equal(found["present_rested"], rested.numpy())
        state = {f"past_{name[8:]}": value for name, value in found.items() if name.startswith("present_")}
        state["update"] = np.float32(AHEAD) * found["noise"]
        inputs["latent"] = inputs["latent"] + state["update"]
    assert counts[-1].min() < counts[-1].max() < STEPS - 1


def test_a_step_goes_on_with_its_own_state(tmp_path: Path) -> None:
    """With the state of the same latent half of the patches are the whole step; of another, what rests stays as it was."""
    torch.manual_seed(0)
    path, given = exported(seeded(UNet()), tmp_path, dynamic=False), feeds()
    made = reduce(path, method="ras", budget=Budget.keep(0.5, [0]), output=tmp_path / "r.onnx")
    assert [(site.transformer, site.where) for site in made.plan.sites] == [(0, "before-block")]
    whole, resting = session(tmp_path / "r.dense.onnx"), session(tmp_path / "r.onnx")
    first = dict(zip([value.name for value in whole.get_outputs()], run(whole, given), strict=True))
    state = {f"past_{name[8:]}": value for name, value in first.items() if name.startswith("present_")}
    state["update"] = given["latent"]
    names = [value.name for value in resting.get_outputs()]
    again = dict(zip(names, run(resting, given | state), strict=True))
    np.testing.assert_array_equal(again.pop("present_rested").sum(axis=1), made.plan.sites[0].tokens)
    for name, found in again.items():
        np.testing.assert_allclose(found, first[name], atol=1e-6)
    other = given | state | {"latent": given["latent"] + 0.1}
    moved = dict(zip(names, run(resting, other), strict=True))
    change = np.abs(moved["present_output"] - first["present_output"]).max(axis=2)
    np.testing.assert_array_equal(change == 0, moved["present_rested"] == 1)
