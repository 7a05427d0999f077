"""The attentions of a diffusion U-Net: at each level a grid becomes tokens, and tokens become a grid."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from tests.helpers.tolerance import within_twice
from tests.passes.helpers.probes import Pairs, Strong, registered
from tests.passes.helpers.refusals import refused_call, refused_line
from tests.passes.helpers.running import attended, close, run, session
from tests.passes.helpers.streams import CONTEXT, WIDTH, Block, Cells, Plan, Walk, plain, seeded
from tokenrt.cli import app
from tokenrt.passes.inspect import inspect
from tokenrt.passes.planning.plan import Budget, PlannedSite
from tokenrt.passes.planning.plan import Plan as Planned
from tokenrt.passes.reduce import plan, reduce
from tokenrt.targets.build import build

HEIGHT, BREADTH = 8, 6
TOKENS, FEW = HEIGHT * BREADTH, HEIGHT * BREADTH // 4
BLOCKS = (2, 1, 1)
"""On the way down at full resolution, at half, on the way up at full resolution."""
CELLS = Cells({TOKENS: (HEIGHT, BREADTH), FEW: (HEIGHT // 2, BREADTH // 2)})


class UNet(nn.Module):
    """A level at full resolution, one at half, and back up."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = (nn.Conv2d(*ends, 3, padding=1) for ends in ((4, WIDTH), (WIDTH, 4)))
        self.down = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.up = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, WIDTH) for _ in BLOCKS)
        self.levels = nn.ModuleList(nn.ModuleList(Block(CONTEXT) for _ in range(n)) for n in BLOCKS)

    def forward(
        self,
        latent: Tensor,
        context: Tensor,
        method: Any = None,
        reduced: Plan | None = None,
        around: bool = True,
    ) -> Tensor:
        how = (method, reduced, around) if reduced else None
        wide = self.level(0, self.enter(latent), context, how)
        narrow = self.level(1, self.down(wide), context, how)
        both = torch.cat([wide, functional.interpolate(narrow, scale_factor=2.0)], dim=1)
        noise: Tensor = self.leave(self.level(2, self.up(both), context, how))
        return noise

    def level(self, number: int, x: Tensor, context: Tensor, how: Any) -> Tensor:
        """The transformer of this number; its tokens leave as `how` says: a method, counts, and the place."""
        tokens = self.norms[number](x).flatten(2).transpose(1, 2)
        walk = None
        if how is not None:
            walk = Walk(how[0], how[2], {b: keep for (t, b), keep in how[1].items() if t == number})
        for place, block in enumerate(self.levels[number]):
            tokens = block(tokens, context, walk, place)
        tokens = tokens if walk is None else walk.back(tokens)
        return x + tokens.transpose(1, 2).reshape(x.shape)


@pytest.fixture(autouse=True, scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with registered(tmp_path_factory.mktemp("probes")) as module:
        yield module


def given(batch: int) -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(2)
    latent = torch.randn(batch, 4, HEIGHT, BREADTH, generator=made)
    return latent, torch.randn(batch, 5, CONTEXT, generator=made)


def feeds(batch: int = 2) -> dict[str, Any]:
    latent, context = given(batch)
    return {"latent": latent.numpy(), "context": context.numpy()}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return seeded(UNet())


@pytest.fixture(scope="module", params=["fixed", pytest.param("dynamic", marks=pytest.mark.slow)])
def path(request: pytest.FixtureRequest, net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(net, tmp_path_factory.mktemp("unet"), dynamic=request.param == "dynamic")


@pytest.fixture(scope="module")
def free(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a free batch, whose shapes take longer to compute."""
    return exported(net, tmp_path_factory.mktemp("free"), dynamic=True)


def exported(net: nn.Module, folder: Path, *, dynamic: bool) -> Path:
    file = folder / "unet.onnx"
    names = ("latent", "context", "noise")
    axes = {name: {0: "batch"} for name in names} if dynamic else {}
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


def compare(made: Any, net: nn.Module, method: Any, reduced: Plan, around: bool = True) -> None:
    """Within twice the float32 error of plain torch, and every attention sees the tokens planned for it."""
    (found,) = run(session(made.model), feeds())
    how: dict[str, Any] = {"method": method, "reduced": reduced, "around": around}
    double, single = (plain(net, given(2), kind, **how)[0] for kind in (torch.float64, torch.float32))
    within_twice(found, double, single)
    if isinstance(method, Strong):
        return  # It has a softmax of its own.
    here = []
    for number, blocks in enumerate(BLOCKS):
        tokens = FEW if number == 1 else TOKENS
        for block in range(blocks):
            left = reduced.get((number, block), tokens)
            here += [left if around else tokens, 5]
            tokens = tokens if around else left
    assert attended(made.model, feeds()) == here


def test_every_transformer_is_found(path: Path) -> None:
    found = inspect(path)
    assert [each.tokens for each in found.transformers] == [TOKENS, FEW, TOKENS]
    assert [each.grid for each in found.transformers] == [
        CELLS.grids[each.tokens] for each in found.transformers
    ]
    assert [len(each.blocks) for each in found.transformers] == [*BLOCKS]
    assert (found.tokens, found.grid, found.protected) == (TOKENS, (HEIGHT, BREADTH), 0)
    assert {row.sites[0] for each in found.transformers for row in each.blocks} == {"around-attention"}
    reasons = [refusal.reason for refusal in found.refusals]
    assert len(reasons) == sum(BLOCKS)
    assert all("does not read the residual stream's tokens" in reason for reason in reasons)
    assert [each["tokens"] for each in found.as_dict()["transformers"]] == [TOKENS, FEW, TOKENS]


@pytest.mark.parametrize(
    "method", [Pairs(0), Strong(0), Strong(0, spread=True)], ids=["pairs", "strong", "spread"]
)
def test_tokens_leave_for_the_attention_alone(path: Path, net: nn.Module, method: Pairs | Strong) -> None:
    options = {"spread": method.spread} if isinstance(method, Strong) else {}
    made = reduce(
        path,
        method=f"{type(method).__name__.lower()}_around",
        budget=Budget.tokens([30], [0]),
        options=options,
    )
    compare(made, net, method, {(0, 0): 30, (2, 0): 30})


@pytest.mark.parametrize(
    "which",
    [
        None,
        [1],
        [0, 2],
        "all",
        *(pytest.param(some, marks=pytest.mark.slow) for some in ([0], [2], [0, 1], [1, 2])),
    ],
    ids=str,
)
def test_the_published_method_for_diffusion(path: Path, net: nn.Module, which: Any) -> None:
    """Half the tokens leave around the first attention of each chosen transformer; a 2 x 2 cell keeps one destination."""
    chosen = which if isinstance(which, list) else {None: [0, 2], "all": [0, 1, 2]}[which]
    made = reduce(path, method="tomesd", budget=Budget.keep(0.5, [0]), transformers=which)
    sites = {(site.transformer, site.block): site.tokens for site in made.plan.sites}
    assert sites == {(number, 0): (FEW if number == 1 else TOKENS) // 2 for number in chosen}
    compare(made, net, CELLS, sites)
    applied = [site for site in made.report.sites if site.status == "applied"]
    assert [site.transformer for site in applied] == chosen


def test_the_batch_stays_free(free: Path, net: nn.Module) -> None:
    reduced = reduce(free, method="tomesd", budget=Budget.keep(0.5, [0]), transformers="all")
    compare(reduced, net, CELLS, {(site.transformer, site.block): site.tokens for site in reduced.plan.sites})
    made = session(reduced.model)
    rows = [run(made, {name: value[i : i + 1] for name, value in feeds(3).items()})[0] for i in range(3)]
    close(run(made, feeds(3)), [np.concatenate(rows)])


@pytest.mark.parametrize("which", [None, [0, 1], "all"], ids=str)
def test_tokens_that_stay_away_are_back_before_each_grid(path: Path, net: nn.Module, which: Any) -> None:
    """By default the first transformer; sizes and restoring are each transformer's own."""
    made = reduce(path, method="pairs_stay", budget=Budget.remove(5), transformers=which)
    counts = {(0, 0): 43, (0, 1): 38, (1, 0): FEW - 5, (2, 0): 43}
    chosen = which if isinstance(which, list) else {None: [0], "all": [0, 1, 2]}[which]
    reduced = {key: keep for key, keep in counts.items() if key[0] in chosen}
    assert {(site.transformer, site.block): site.tokens for site in made.plan.sites} == reduced
    compare(made, net, Pairs(0), reduced, around=False)
    rest = [number for number in range(3) if number not in chosen]
    assert all(f"{number} (" in made.plan.notes[0] for number in rest)
    assert bool(made.plan.notes) == bool(rest)


def test_one_block_before_a_grid(path: Path, net: nn.Module, tmp_path: Path) -> None:
    """Behind a transformer's only block every token is needed again, behind its own attention not: text and MLP follow."""
    how: dict[str, Any] = {"method": "pairs_stay", "budget": Budget.remove(5), "transformers": [2]}
    told = r"saves no work: of 8 attentions 4 can take one, and right behind it every token is needed again"
    refused_call(tmp_path, told, lambda: reduce(path, site="after-block", output=tmp_path / "r.onnx", **how))
    made = reduce(path, **how)
    assert made.plan.macs_after < made.plan.macs_before
    compare(made, net, Pairs(0), {(2, 0): TOKENS - 5}, around=False)


def test_removing_nothing_changes_nothing(path: Path) -> None:
    made = reduce(path, method="tomesd", budget=Budget.remove(0), transformers="all", allow_noop=True)
    close(run(session(made.model), feeds()), run(path, feeds()))


def test_work_is_that_of_all_transformers(path: Path) -> None:
    """One removes what it removes with the others, and a share of the work is met by all together."""
    saved = []
    for which in ([0], [1], [2], "all"):
        made = plan(path, method="tomesd", budget=Budget.keep(0.5, [0]), transformers=which)
        saved.append(made.macs_before - made.macs_after)
    assert saved[0] == saved[2] > saved[1] > 0
    assert sum(saved[:3]) == saved[3]
    made = plan(path, method="tomesd", budget=Budget.flops(0.85))
    assert made.macs_after <= 0.85 * made.macs_before
    removed = [before - site.tokens for before, site in zip(made.arriving(), made.sites, strict=True)]
    assert [site.transformer for site in made.sites] == [0, 0, 2]
    assert max(removed) - min(removed) <= 1


def test_a_plan_file_holds_all_of_it(path: Path, tmp_path: Path) -> None:
    made = plan(path, method="tomesd", budget=Budget.keep(0.5, [0]), transformers=[1, 2])
    made.save(tmp_path / "plan.toml")
    text = (tmp_path / "plan.toml").read_text()
    read = Planned.load(tmp_path / "plan.toml")
    assert (read.transformers, read.sites, read.grid) == (made.transformers, made.sites, made.grid)
    first, second = (reduce(path, plan=each) for each in (made, tmp_path / "plan.toml"))
    np.testing.assert_array_equal(*(run(each.model, feeds())[0] for each in (first, second)))
    # Edited by hand: a site in the transformer that had none.
    (tmp_path / "plan.toml").write_text(
        text + '\n[[site]]\ntransformer = 0\nblock = 1\nwhere = "around-attention"\ntokens = 40\n'
    )
    sites = reduce(path, plan=tmp_path / "plan.toml").plan.sites
    assert sites[0] == PlannedSite(1, "around-attention", 40, 0)
    assert [site.transformer for site in sites] == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("transformer = 2", "transformer = 3"), "site 1 is in transformer 3, and the plan lists 3"),
        (("tokens = 12", "tokens = 13"), "transformer 1: the plan is for 13 tokens, the model has 12"),
        (("grid = [4, 3]", "grid = [4, 4]"), "transformer 1: grid 4x4 has 16 cells"),
        (("method =", "tokens = 48\nmethod ="), r"tokens stand beside \[\[transformer\]\] tables"),
    ],
)
def test_a_plan_file_that_does_not_fit(
    path: Path, tmp_path: Path, change: tuple[str, str], told: str
) -> None:
    file = tmp_path / "plan.toml"
    plan(path, method="tomesd", budget=Budget.keep(0.5, [0]), transformers=[1, 2]).save(file)
    file.write_text(file.read_text().replace(*change))
    refused_line(tmp_path, told, "reduce", path, "-o", tmp_path / "r.onnx", "--plan", file)


@pytest.mark.parametrize(
    ("which", "told"),
    [
        ([3], "transformer 3 does not exist; the model has 3, counted from 0"),
        ([0, 0], "each of them once"),
        ([], "name one or more"),
        ("both", "expected their numbers, as in 0,2, or all"),
    ],
)
def test_transformers_that_are_not_there(path: Path, tmp_path: Path, which: Any, told: str) -> None:
    how: dict[str, Any] = {"method": "tomesd", "budget": Budget.remove(4), "output": tmp_path / "r.onnx"}
    refused_call(tmp_path, told, lambda: reduce(path, transformers=which, **how))


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (Budget.tokens([30], [0]), f"transformer 1: block 0: 30 tokens are to stay, but only {FEW} arrive"),
        (
            Budget.keep(0.5, [1]),
            "transformer 1: --layers: block 1 does not exist; the model has blocks 0 to 0",
        ),
        (Budget.remove(40), f"transformer 1: --remove 40: block 0 has {FEW} tokens"),
    ],
)
def test_a_budget_that_does_not_fit_one_of_them(
    path: Path, tmp_path: Path, budget: Budget, told: str
) -> None:
    how: dict[str, Any] = {"method": "tomesd", "budget": budget, "output": tmp_path / "r.onnx"}
    refused_call(tmp_path, told, lambda: reduce(path, transformers="all", **how))


def test_the_command_line(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.onnx"
    line = [
        "reduce",
        str(path),
        "-o",
        str(out),
        "--method",
        "tomesd",
        "--remove",
        "5",
        "--source-map",
        "--json",
    ]
    answer = CliRunner().invoke(app, [*line, "--transformers", "1,2"])
    assert answer.exit_code == 0, answer.output
    document = json.loads(answer.stdout)
    applied = [site for site in document["sites"] if site["status"] == "applied"]
    assert [(site["transformer"], site["tokens_in"], site["tokens_out"]) for site in applied] == [
        (1, FEW, FEW - 5),
        (2, TOKENS, TOKENS - 5),
    ]
    assert [each["blocks"] for each in document["plan"]["transformers"]] == [*BLOCKS]
    ready = session(out)
    assert [value.name for value in ready.get_outputs()] == [
        "noise",
        "token_source_map_1",
        "token_source_map_2",
    ]
    _, few, many = run(ready, feeds())
    for found, count in ((few, FEW), (many, TOKENS)):
        assert found.shape == (2, count)
        assert all(sorted(set(row.tolist())) == list(range(count - 5)) for row in found)
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert all(f"transformer {number}: " in shown.stdout for number in range(3))


def test_the_function_form_builds(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.onnx"
    reduce(path, method="tomesd", budget=Budget.keep(0.5, [0]), transformers="all", output=out)
    build(out, target="rtx-sm89", output=tmp_path / "r.engine")
    assert (tmp_path / "r.engine").stat().st_size > 0
