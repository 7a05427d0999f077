"""Regions that rest for a step: ten steps by the two files, state carried by the host, are a loop in torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.passes.helpers.denoisers import SIDE, TOKENS, DiT, adapted, by_head, exported, given, mixed, turned
from tests.passes.helpers.refusals import refused_call
from tests.passes.helpers.running import session
from tests.passes.helpers.streams import seeded
from tokenrt.passes.checking.check import check
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reduce import plan, reduce
from tokenrt.targets.build import build

STEPS, KEEP, GAMMA = 10, 9, -0.3
AHEAD = -0.1
"""What a step goes along the noise."""


class Loop:
    """The published step in torch: active patches go through the blocks and see the keys and values of all."""

    def __init__(self, net: Any) -> None:
        self.net, self.keys, self.values = net, dict[int, Tensor](), dict[int, Tensor]()
        self.rows = torch.empty(0)

    def step(self, latent: Tensor, timestep: Tensor, active: Tensor, text: Tensor | None = None) -> Tensor:
        """The noise of a latent [B,4,h,w], patches `active` [B,K] computed."""
        net, every = self.net, torch.arange(len(latent))[:, None]
        time = net.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        x = net.enter(latent).flatten(2).transpose(1, 2)[every, active]
        angles = net.angles[active][:, None]
        for number, block in enumerate(net.blocks):
            numbers = block.numbers(time)
            here = adapted(x, *numbers[:2])
            query, key = (turned(by_head(part(here)), angles) for part in (block.query, block.key))
            keys = self._all(self.keys, number, key, active)
            values = self._all(self.values, number, by_head(block.value(here)), active)
            x = block.fed(x + numbers[2][:, None] * block.out(mixed(query, keys, values)), numbers)
        shift, scale = net.adapt(functional.silu(time)).chunk(2, dim=1)
        return self.picture(net.leave(adapted(x, shift, scale)), active)

    def whole(self, rows: Tensor, active: Tensor) -> Tensor:
        """The rows of all patches, those that rest as they were."""
        self.rows = rows.clone() if active.shape[1] == TOKENS else self.rows
        self.rows[torch.arange(len(rows))[:, None], active] = rows
        return self.rows.clone()

    def picture(self, rows: Tensor, active: Tensor) -> Tensor:
        patches = self.whole(rows, active).reshape(-1, SIDE, SIDE, 2, 2, 4)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 4, 2 * SIDE, 2 * SIDE)

    @staticmethod
    def unsettled(update: Tensor) -> Tensor:
        """[B,N]: how the channels of each patch's update vary."""
        return update.std(dim=1).unflatten(2, (SIDE, 2)).unflatten(1, (SIDE, 2)).mean(dim=(2, 4)).flatten(1)

    @staticmethod
    def _all(kept: dict[int, Tensor], number: int, now: Tensor, active: Tensor) -> Tensor:
        """[B,H,N,D] with the active rows as they are now."""
        if active.shape[1] == TOKENS:
            kept[number] = torch.empty_like(now)
        picture = torch.arange(len(now))[:, None]
        kept[number][picture, :, active] = now.transpose(1, 2)
        return kept[number]


def chosen(each: Tensor, rested: Tensor) -> Tensor:
    """The K patches [B,K] that are least unsettled, weighed by how often they rested."""
    return (each * (GAMMA * rested).exp()).argsort(dim=1)[:, :KEEP].sort(dim=1).values


def in_torch(net: nn.Module, kind: torch.dtype, way: type[Loop] = Loop) -> tuple[list[Tensor], list[Tensor]]:
    """The noise of ten steps, and which patches each computed."""
    inputs = {name: value.to(kind) for name, value in given(net).items()}
    latent, times, loop = inputs["latent"], inputs["timestep"], way(net.to(kind))
    rested, active = torch.zeros(2, TOKENS, dtype=kind), torch.arange(TOKENS).expand(2, -1)
    noises, actives = list[Tensor](), list[Tensor]()
    with torch.no_grad():
        for number in range(STEPS):
            noises.append(loop.step(latent, times + 0.1 * number, active, inputs.get("text")))
            actives.append(active)
            update = AHEAD * noises[-1]
            latent, active = latent + update, chosen(loop.unsettled(update), rested)
            rested = (rested + 1).scatter(1, active, rested.gather(1, active))
    net.to(torch.float32)
    return noises, actives


def stepped(
    dense: onnxruntime.InferenceSession, resting: onnxruntime.InferenceSession, inputs: dict[str, Any]
) -> tuple[list[Any], list[Any]]:
    """The noise of ten steps by the two files, and the state of resting after each."""
    latent, times, first = inputs["latent"], inputs["timestep"], inputs["timestep"].dtype
    state, noises, rested = dict[str, Any](), list[Any](), list[Any]()
    for number in range(STEPS):
        feed = {**inputs, "latent": latent, "timestep": (times + 0.1 * number).astype(first)}
        used = resting if number else dense
        names = [value.name for value in used.get_outputs()]
        found = dict(zip(names, used.run(None, {**feed, **state}), strict=True))
        update = AHEAD * found["noise"]
        latent = latent + update.astype(latent.dtype)
        state = {f"past_{name[8:]}": value for name, value in found.items() if name.startswith("present_")}
        state["update"] = update.astype(np.float32)
        noises.append(found["noise"])
        rested.append(state["past_rested"])
    return noises, rested


@pytest.fixture(scope="module")
def dit() -> nn.Module:
    torch.manual_seed(0)  # No two patches are so near in any step that rounding decides which rests.
    return seeded(DiT())


def made(path: Path, out: Path) -> Path:
    budget = Budget.tokens([KEEP], [0])
    reduce(path, method="ras", budget=budget, options={"gamma": GAMMA}, output=out)
    return out


@pytest.mark.parametrize(
    "form", ["free", "23", *(pytest.param(form, marks=pytest.mark.slow) for form in ("fixed", "20"))]
)
def test_ten_steps_are_a_loop_in_torch(form: str, dit: nn.Module, tmp_path: Path) -> None:
    path = exported(
        dit, tmp_path / "dit.onnx", free=form == "free", dynamo=int(form) if form.isdigit() else 0
    )
    same_as_torch(dit, path, tmp_path / "resting.onnx", Loop)


def same_as_torch(net: nn.Module, path: Path, target: Path, way: type[Loop]) -> None:
    """Ten steps with their state: the noise of each, and how often each patch has rested."""
    out = made(path, target)
    dense, resting = session(target.with_suffix(".dense.onnx")), session(out)
    inputs = {name: value.numpy() for name, value in given(net).items()}
    noises, rested = stepped(dense, resting, inputs)
    wanted, actives = in_torch(net, torch.float64, way)
    count = np.zeros((2, TOKENS))
    for number, (found, judge) in enumerate(zip(noises, wanted, strict=True)):
        assert np.abs(found - judge.numpy()).max() < 1e-5, f"step {number}"
        if number:
            every = np.ones((2, TOKENS))
            np.put_along_axis(every, actives[number].numpy(), 0, axis=1)
            count += every
        np.testing.assert_array_equal(rested[number], count)
    assert count.min() < count.max() < STEPS - 1


def test_what_the_host_is_told(dit: nn.Module, tmp_path: Path) -> None:
    """Every past input has a present output of one shape in both files, and check takes both."""
    path = exported(dit, tmp_path / "dit.onnx")
    out = made(path, tmp_path / "resting.onnx")
    told = json.loads((tmp_path / "resting.onnx.json").read_text())
    assert told["dense"] == "resting.dense.onnx"
    assert told["inputs"]["update"]["shape"] == ["batch", 4, 2 * SIDE, 2 * SIDE]
    files = [session(out), session(tmp_path / told["dense"])]
    inputs = {value.name: value.shape for value in files[0].get_inputs()}
    assert {*inputs} == {"latent", "timestep", "update", *(pair["past"] for pair in told["state"])}
    assert [value.name for value in files[1].get_inputs()] == ["latent", "timestep"]
    for file in files:
        outputs = {value.name: value.shape for value in file.get_outputs()}
        assert {*outputs} == {"noise", *(pair["present"] for pair in told["state"])}
        for pair in told["state"]:
            assert inputs[pair["past"]] == outputs[pair["present"]] == pair["shape"]
    names = {pair["past"] for pair in told["state"]}
    assert names == {
        "past_rested",
        "past_output",
        *(f"past_{p}_{n}" for n in range(3) for p in ("key", "value")),
    }
    for file in (out, tmp_path / told["dense"]):
        report = check(path, file, samples=1)
        assert not [row for row in report.properties if not row.ok]


def test_a_plan_says_where_it_sits(dit: nn.Module, tmp_path: Path) -> None:
    path = exported(dit, tmp_path / "dit.onnx")
    for budget in (Budget.tokens([KEEP]), Budget.remove(TOKENS - KEEP), Budget.keep(KEEP / TOKENS, [0])):
        found = plan(path, method="ras", budget=budget)
        assert [(site.block, site.where, site.tokens) for site in found.sites] == [(0, "before-block", KEEP)]
    found.save(tmp_path / "plan.toml")
    assert Plan.load(tmp_path / "plan.toml").sites == found.sites
    assert 0.5 < found.macs_after / found.macs_before < 0.75
    refused_call(
        tmp_path,
        "block 1 before-block: ras chooses once for all blocks",
        lambda: reduce(path, method="ras", budget=Budget.tokens([KEEP], [1]), output=tmp_path / "r.onnx"),
    )
    refused_call(
        tmp_path,
        "--site after-block: ras sits before-block",
        lambda: reduce(
            path,
            method="ras",
            budget=Budget.tokens([KEEP]),
            site="after-block",
            output=tmp_path / "r.onnx",
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["rtx-sm80", "rtx-sm86", "rtx-sm89", "rtx-sm120"])
def test_both_files_build(target: str, dit: nn.Module, tmp_path: Path) -> None:
    made(exported(dit, tmp_path / "dit.onnx"), tmp_path / "resting.onnx")
    for name in ("resting.onnx", "resting.dense.onnx"):
        build(tmp_path / name, target=target, output=tmp_path / "r.engine")
        assert (tmp_path / "r.engine").stat().st_size > 0
