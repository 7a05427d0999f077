"""Diffusion transformers: norms and gates made of the timestep, rotary positions, and attention over text and image at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.denoisers import SIDE, TOKENS, DiT, exported, given
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
