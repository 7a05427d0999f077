"""Diffusion transformers: norms and gates made of the timestep, rotary positions, and attention over text and image at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.denoisers import SIDE, TEXT, TOKENS, DiT, Joint, exported, given
from tests.passes.helpers.refusals import refused_call
from tests.passes.helpers.running import attended, run, session
from tests.passes.helpers.streams import Cells, plain, seeded
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

CELLS = Cells({TOKENS: (SIDE, SIDE)})


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
    return exported(dit, file, free=request.param == "free", dynamo=20 * (request.param == "dynamo"))


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


@pytest.mark.parametrize("dynamo", [0, 20], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("text_first", [False, True], ids=["image-first", "text-first"])
def test_attention_over_two_streams_is_refused_by_name(text_first: bool, dynamo: int, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("dynamo", [0, 20], ids=["torchscript", "dynamo"])
def test_blocks_over_both_as_one_stream_are_reduced(dynamo: int, tmp_path: Path) -> None:
    """Behind joint blocks; their MLP lies beside the attention, joined along the channels before one product."""
    net = seeded(Joint(single=3, text_first=True))
    file = exported(net, tmp_path / "joint.onnx", free=not dynamo, dynamo=dynamo)
    found = inspect(file)
    assert (found.tokens, len(found.blocks)) == (TOKENS + TEXT, 3)
    assert sum("joint attention" in refusal.reason for refusal in found.refusals) == 2
    keep = {0: 15, 1: 9}
    made = reduce(file, method="slice", budget=Budget.tokens([*keep.values()], [*keep]))
    compare(made, net, keep=keep)
