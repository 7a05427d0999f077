"""Diffusion transformers: norms and gates made of the timestep, rotary positions, and attention over text and image at once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.probes import Line
from tests.passes.helpers.refusals import refused_call
from tests.passes.helpers.running import attended, run, session
from tests.passes.helpers.streams import Cells, plain, seeded
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

WIDTH, HEADS, SIDE, TEXT = 16, 2, 4, 3
TOKENS = SIDE * SIDE
CELLS = Cells({TOKENS: (SIDE, SIDE)})


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions for [B,H,N,D]; angles [N,D]."""
    left, right = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-right, left], dim=-1) * angles.sin()


def angles_of(tokens: int) -> Tensor:
    half = torch.arange(tokens)[:, None] / 3.0 ** torch.arange(WIDTH // HEADS // 2)
    return torch.cat([half, half], dim=1)


def by_head(x: Tensor) -> Tensor:
    return x.unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)


def adapted(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, (WIDTH,)) * (1 + scale[:, None]) + shift[:, None]


def mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Stream(nn.Module):
    """What one stream brings to an attention, and what it makes of the result: adaptive norms, gates, MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.adapt = nn.Linear(WIDTH, 6 * WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def numbers(self, time: Tensor) -> tuple[Tensor, ...]:
        return self.adapt(functional.silu(time)).chunk(6, dim=1)

    def parts(self, h: Tensor, angles: Tensor) -> list[Tensor]:
        q, k, v = (by_head(part(h)) for part in (self.query, self.key, self.value))
        return [turned(q, angles), turned(k, angles), v]

    def fed(self, x: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        *_, shift, scale, gate = numbers
        h = functional.gelu(self.up(adapted(x, shift, scale)), approximate="tanh")
        return x + gate[:, None] * self.down(h)


class DiT(nn.Module):
    """Three blocks on patches of a latent; the head puts its patches back on the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.time = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(2, WIDTH)
        self.blocks = nn.ModuleList(Stream() for _ in range(3))
        self.adapt, self.leave = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 16)
        self.register_buffer("angles", angles_of(TOKENS))

    def forward(
        self, latent: Tensor, timestep: Tensor, keep: dict[int, int] | None = None, method: Any = None
    ) -> Tensor:
        """keep: tokens left at each block; the first of them stay, or `method` merges for the attention alone."""
        time = self.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        x, angles, gone = self.enter(latent).flatten(2).transpose(1, 2), self.angles, list[Tensor]()
        for number, block in enumerate(self.blocks):
            numbers = block.numbers(time)
            count = (keep or {}).get(number, x.shape[1])
            here = adapted(x, *numbers[:2])
            if method is not None and count < x.shape[1]:
                line = Line(x[0], x.new_ones(x.shape[1]), stream=x[0])
                short = method(line, here[0], count)[None]
                at = self.angles[first_members(line.left[0][0], count)]
                result = line.back(block.out(mixed(*block.parts(short, at)))[0])[None]
            else:
                result = block.out(mixed(*block.parts(here, angles)))
            x = x + numbers[2][:, None] * result
            if method is None and count < x.shape[1]:
                gone.append(x[:, count:])
                x, angles = x[:, :count], angles[:count]
            x = block.fed(x, numbers)
        x = torch.cat([x, *reversed(gone)], dim=1)
        shift, scale = self.adapt(functional.silu(time)).chunk(2, dim=1)
        patches = self.leave(adapted(x, shift, scale)).reshape(-1, SIDE, SIDE, 2, 2, 4)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(-1, 4, 2 * SIDE, 2 * SIDE)


def first_members(assign: Tensor, count: int) -> Tensor:
    """The token whose place a merged one takes: the destination, which is the top left of its cell."""
    goals = {row * SIDE + column for row in range(0, SIDE, 2) for column in range(0, SIDE, 2)}
    members = [[token for token in range(len(assign)) if assign[token] == slot] for slot in range(count)]
    return torch.tensor([next((token for token in each if token in goals), each[0]) for each in members])


class Joint(nn.Module):
    """Blocks in which text and image attend to one another, each with weights of its own; then blocks over both as one."""

    def __init__(self, single: int = 0, text_first: bool = False) -> None:
        super().__init__()
        self.enter, self.time = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(2, WIDTH)
        self.image, self.text = (nn.ModuleList(Stream() for _ in range(2)) for _ in range(2))
        self.single = nn.ModuleList(Single() for _ in range(single))
        self.leave, self.text_first = nn.Linear(WIDTH, 4), text_first

    def forward(
        self, latent: Tensor, timestep: Tensor, text: Tensor, keep: dict[int, int] | None = None
    ) -> Tensor:
        time = self.time(torch.stack([timestep.cos(), timestep.sin()], dim=1))
        x, angles = self.enter(latent).flatten(2).transpose(1, 2), angles_of(TOKENS + TEXT).to(latent)
        for image, words in zip(self.image, self.text, strict=True):
            numbers = image.numbers(time), words.numbers(time)
            own = image.parts(adapted(x, *numbers[0][:2]), angles[TEXT:])
            other = words.parts(adapted(text, *numbers[1][:2]), angles[:TEXT])
            if self.text_first:
                both = mixed(*(torch.cat(pair, dim=2) for pair in zip(other, own, strict=True)))
                second, first = both[:, :TEXT], both[:, TEXT:]
            else:
                both = mixed(*(torch.cat(pair, dim=2) for pair in zip(own, other, strict=True)))
                first, second = both[:, :TOKENS], both[:, TOKENS:]
            x = image.fed(x + numbers[0][2][:, None] * image.out(first), numbers[0])
            text = words.fed(text + numbers[1][2][:, None] * words.out(second), numbers[1])
        if self.single:
            all_of_them, gone = torch.cat([text, x], dim=1), list[Tensor]()
            for number, block in enumerate(self.single):
                all_of_them = block(all_of_them, time, angles[: all_of_them.shape[1]])
                count = (keep or {}).get(number, all_of_them.shape[1])
                gone.append(all_of_them[:, count:])
                all_of_them = all_of_them[:, :count]
            x = torch.cat([all_of_them, *reversed(gone)], dim=1)[:, TEXT:]
        result: Tensor = self.leave(x)
        return result


class Single(nn.Module):
    """Attention and MLP side by side, joined along the channels in front of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.stream, self.out = Stream(), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor, time: Tensor, angles: Tensor) -> Tensor:
        shift, scale, gate, *_ = self.stream.numbers(time)
        h = adapted(x, shift, scale)
        both = [mixed(*self.stream.parts(h, angles)), functional.gelu(self.stream.up(h))]
        result: Tensor = x + gate[:, None] * self.out(torch.cat(both, dim=2))
        return result


def given(net: nn.Module) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(3)
    inputs = {
        "latent": torch.randn(2, 4, 2 * SIDE, 2 * SIDE, generator=made),
        "timestep": torch.tensor([0.3, 1.9]),
    }
    return inputs | ({"text": torch.randn(2, TEXT, WIDTH, generator=made)} if isinstance(net, Joint) else {})


def exported(net: nn.Module, file: Path, *, free: bool = True, dynamo: bool = False) -> Path:
    inputs = given(net)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            tuple(inputs.values()),
            str(file),
            dynamo=dynamo,
            opset_version=20 if dynamo else 17,
            input_names=[*inputs],
            output_names=["noise"],
            dynamic_axes={name: {0: "batch"} for name in (*inputs, "noise")} if free else None,
            **({"verbose": False} if dynamo else {}),
        )
    return file


def compare(made: Any, net: nn.Module, **how: Any) -> None:
    """Within twice the error of plain torch in float32."""
    inputs = given(net)
    (found,) = run(session(made.model), {name: value.numpy() for name, value in inputs.items()})
    double, single = (plain(net, inputs.values(), kind, **how)[0] for kind in (torch.float64, torch.float32))
    within_twice(found, double, single)


@pytest.fixture(scope="module")
def dit() -> nn.Module:
    return seeded(DiT())


@pytest.fixture(scope="module", params=["free", "fixed", "dynamo"])
def path(request: pytest.FixtureRequest, dit: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("dit") / "dit.onnx"
    return exported(dit, file, free=request.param == "free", dynamo=request.param == "dynamo")


def test_blocks_with_gates_are_found(path: Path) -> None:
    found = inspect(path)
    assert (found.tokens, found.grid, found.protected) == (TOKENS, (SIDE, SIDE), 0)
    every = ("around-attention", "after-attention", "after-block")
    assert [row.sites for row in found.blocks] == [
        every,
        every,
        every[:2],
    ]  # Behind the last block all tokens are read.
    assert not found.refusals


@pytest.mark.parametrize("keep", [{0: 13, 1: 10, 2: 7}, {1: 9}], ids=["each", "one"])
def test_tokens_that_are_cut_off(path: Path, dit: nn.Module, keep: dict[int, int]) -> None:
    made = reduce(path, method="slice", budget=Budget.tokens([*keep.values()], [*keep]))
    compare(made, dit, keep=keep)


def test_the_published_method_for_diffusion(path: Path, dit: nn.Module) -> None:
    """Around two attentions: the gate and the residual see all tokens, the merged ones stand at the destinations."""
    keep = {0: 10, 2: 8}
    made = reduce(path, method="tomesd", budget=Budget.tokens([*keep.values()], [*keep]))
    assert {site.block: (site.where, site.tokens) for site in made.plan.sites} == {
        block: ("around-attention", count) for block, count in keep.items()
    }
    inputs = {name: value.numpy() for name, value in given(dit).items()}
    assert attended(made.model, inputs) == [10, TOKENS, 8]
    compare(made, dit, keep=keep, method=CELLS)


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("text_first", [False, True], ids=["image-first", "text-first"])
def test_attention_over_two_streams_is_refused_by_name(
    text_first: bool, dynamo: bool, tmp_path: Path
) -> None:
    """Its keys are joined behind two projections; that says the message, with the node and what to do."""
    file = exported(
        seeded(Joint(text_first=text_first)), tmp_path / "joint.onnx", free=not dynamo, dynamo=dynamo
    )
    refusals = inspect(file).refusals
    assert len(refusals) == 2
    for refusal in refusals:
        assert refusal.where.startswith("attention at Softmax node ")
        assert "joint attention: Concat node '" in refusal.reason
        assert "a reduction follows one stream" in refusal.reason
        assert "reduce the model's blocks that have one stream" in refusal.reason
    for method in ("slice", "tomesd"):
        refused_call(
            tmp_path,
            "no transformer block can be reduced(.|\n)*joint attention: Concat node",
            lambda method=method: reduce(
                file, method=method, budget=Budget.remove(4), output=tmp_path / "r.onnx"
            ),
        )


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_blocks_over_both_as_one_stream_are_reduced(dynamo: bool, tmp_path: Path) -> None:
    """Behind joint blocks; their MLP lies beside the attention, joined along the channels before one product."""
    net = seeded(Joint(single=3, text_first=True))
    file = exported(net, tmp_path / "joint.onnx", free=not dynamo, dynamo=dynamo)
    found = inspect(file)
    assert (found.tokens, len(found.blocks)) == (TOKENS + TEXT, 3)
    assert sum("joint attention" in refusal.reason for refusal in found.refusals) == 2
    keep = {0: 15, 1: 9}
    made = reduce(file, method="slice", budget=Budget.tokens([*keep.values()], [*keep]))
    compare(made, net, keep=keep)
