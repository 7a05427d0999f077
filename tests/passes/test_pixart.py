"""PixArt's blocks: gates made of numbers that all blocks share and a table of each, and text that is read across."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.denoisers import SIDE, TEXT, TOKENS, First, PixArt, exported, given
from tests.passes.helpers.running import attended, run, session
from tests.passes.helpers.streams import Cells, Soft, Tome, Topk, plain, seeded
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce

BLOCKS = 3
SOFT = Soft((SIDE, SIDE), (2, SIDE))


def compare(made: Any, net: nn.Module, **how: Any) -> None:
    """Within twice the error of plain torch in float32."""
    inputs = given(net)
    (found,) = run(session(made.model), {name: value.numpy() for name, value in inputs.items()})
    double, single = (plain(net, inputs.values(), kind, **how)[0] for kind in (torch.float64, torch.float32))
    within_twice(found, double, single)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return seeded(PixArt(BLOCKS))


@pytest.fixture(
    scope="module", params=[20, *(pytest.param(form, marks=pytest.mark.slow) for form in (0, 23))]
)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("pixart") / "pixart.onnx"
    return exported(seeded(PixArt(BLOCKS)), file, free=not request.param, dynamo=request.param)


def test_what_is_read_across_is_part_of_a_block(path: Path) -> None:
    """So tokens that left take the last product of a block no more than its attention."""
    found = inspect(path)
    assert (found.tokens, found.grid, found.protected) == (TOKENS, (SIDE, SIDE), 0)
    every = ("around-attention", "after-attention", "after-block")
    assert [row.sites for row in found.blocks] == [every, every, every[:2]]
    reasons = [each.reason for each in found.refusals if "attention at" in each.where]
    assert reasons == ["it does not read the residual stream's tokens"] * BLOCKS


def test_the_published_method_for_diffusion(path: Path, net: nn.Module) -> None:
    """Queries of the text's attention are all tokens again."""
    keep = {(0, 0): 10, (0, 2): 8}
    made = reduce(path, method="tomesd", budget=Budget.tokens([10, 8], [0, 2]))
    compare(made, net, plan=keep, method=Cells({TOKENS: (SIDE, SIDE)}))
    inputs = {name: value.numpy() for name, value in given(net).items()}
    assert attended(made.model, inputs) == [10, TEXT, TOKENS, TEXT, 8, TEXT]


@pytest.mark.parametrize(
    ("name", "method", "keep", "options"),
    [
        ("slice", First(), [13, 10, 7], {}),
        ("tome", Tome(), [12, 10, 7], {}),
        ("topk", Topk(), [12, 9, 6], {}),
        ("topk", Topk(by_key=True), [11, 8], {"score": "key_norm"}),
        ("expedit", SOFT, [8], SOFT.options),
    ],
    ids=["slice", "tome", "topk-received", "topk-keys", "expedit"],
)
def test_tokens_that_leave_for_good(
    name: str, method: Any, keep: list[int], options: Any, path: Path, net: nn.Module
) -> None:
    """Those left alone read the text, and the head puts all of them back on the grid."""
    made = reduce(path, method=name, budget=Budget.tokens(keep, [*range(len(keep))]), options=options)
    assert {site.where for site in made.plan.sites} == {"after-attention"}
    compare(
        made, net, plan={(0, block): count for block, count in enumerate(keep)}, method=method, around=False
    )


def test_behind_a_block_is_behind_its_mlp(path: Path, net: nn.Module) -> None:
    """Not between its two attentions: the tokens that leave have read the text and gone through the gated MLP."""
    gone = list[Tensor]()

    def cut(_: nn.Module, __: Any, x: Tensor) -> Tensor:
        gone.append(x[:, 9:])
        return x[:, :9]

    made = reduce(path, method="slice", budget=Budget.tokens([9], [0]), site="after-block")
    net.blocks[0].register_forward_hook(cut)
    net.blocks[-1].register_forward_hook(lambda _, __, x: torch.cat([x, gone.pop()], dim=1))
    compare(made, net)


def test_a_step_goes_on_with_its_own_state(path: Path, net: nn.Module, tmp_path: Path) -> None:
    """With the state of the same latent a step that computes half of the patches is the whole step."""
    reduce(path, method="ras", budget=Budget.tokens([8]), output=tmp_path / "r.onnx")
    whole, resting = session(tmp_path / "r.dense.onnx"), session(tmp_path / "r.onnx")
    inputs = {name: value.numpy() for name, value in given(net).items()}
    first = dict(zip([value.name for value in whole.get_outputs()], run(whole, inputs), strict=True))
    assert {name for name in first if "key" in name} == {f"present_key_{block}" for block in range(BLOCKS)}
    state = {f"past_{name[8:]}": value for name, value in first.items() if name.startswith("present_")}
    names = [value.name for value in resting.get_outputs()]
    again = dict(zip(names, run(resting, {**inputs, **state, "update": inputs["latent"]}), strict=True))
    np.testing.assert_array_equal(again.pop("present_rested").sum(axis=1), TOKENS - 8)
    for name, found in again.items():
        np.testing.assert_allclose(found, first[name], atol=1e-5)
    moved = {**inputs, **state, "update": inputs["latent"], "latent": inputs["latent"] + 1}
    again = dict(zip(names, run(resting, moved), strict=True))
    change = np.abs(again["present_output"] - first["present_output"]).max(axis=2)
    np.testing.assert_array_equal(change == 0, again["present_rested"] == 1)
