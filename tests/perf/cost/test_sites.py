"""What `plan --target` says: launches by site in both forms, time where the profile allows, and nothing refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tokenrt
from tokenrt.cli import app
from tokenrt.errors import TargetError
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.report import PlanCost, Times
from tokenrt.perf.cost.sites import cost_of
from tokenrt.targets import load

FORM = PlainViT(width=192, heads=3, blocks=4, patch=16, image=224, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FORM.write(tmp_path_factory.mktemp("vit") / "vit.onnx")


def cost(model: Path, method: str, target: str, batch: int = 1) -> PlanCost:
    plan = tokenrt.plan(model, method=method, budget=tokenrt.Budget.keep(0.7, [1, 2]))
    return cost_of(model, plan, load(target), batch=batch)


@pytest.mark.parametrize(("target", "launches"), [("l4", 3), ("h100", 2)])
def test_a_site_by_plugin_is_its_operators_and_what_stands_around_them(
    model: Path, target: str, launches: int
) -> None:
    """ToMe: the mean of keys, then TokenMerge, whose launches the table has: one where there are clusters of blocks."""
    from tokenrt.perf.cost.operators import work

    found = cost(model, "tome", target)
    match = {
        "sources": [*range(1, 197, 2)],
        "destinations": [*range(2, 197, 2)],
        "others": [0],
        "keep": [139],
        "remove": [58],
    }
    chip = Chip.of(load(target))
    call = work("TokenMerge", [(1, 197, 192), (1, 197, 1), (1, 197, 64)], {**match, "order": 0}, chip=chip)
    first = found.sites[0]
    assert first.plugins == 1 + len(call.launches) == launches
    alone = chip.launch + call.seconds(chip)
    assert alone <= (first.plugins_seconds or 0) < alone + 1e-6, (
        "the mean of 197 x 3 x 64 keys is a launch and little more"
    )
    assert first.functions * chip.launch <= (first.functions_seconds or 0) < 2 * first.functions * chip.launch
    assert found.functions == sum(site.functions for site in found.sites)


def test_the_model_s_launches_are_counted_on_the_model(tmp_path: Path) -> None:
    """As many as the engine of DeiT-S has layers; others have their own."""
    counted = json.loads((Path(__file__).parents[3] / "docs/results/engine_layers.json").read_text())
    wanted = {row["base"] for row in counted["rows"] if row["batch"] == 1}
    found = [
        cost(
            PlainViT(width=384, heads=6, blocks=blocks, patch=16).write(tmp_path / f"{blocks}.onnx"),
            "topk",
            "h100",
        )
        for blocks in (12, 24)
    ]
    assert {found[0].launches} == wanted == {101}
    assert found[1].launches == 101 + 12 * 8


def test_one_image_on_a_large_gpu_does_not_pay_and_many_do(model: Path) -> None:
    few, many = (cost(model, "topk", "h100", batch) for batch in (1, 256))
    assert few.times is not None
    assert "it does not pay" in few.times.verdict(1)
    assert many.times is not None
    assert many.times.before / min(many.times.functions, many.times.plugins or 1) > 1.1


def test_what_a_target_does_not_say_is_said(model: Path) -> None:
    rtx, cpu = cost(model, "topk", "rtx-sm89"), cost(model, "topk", "ort-cpu")
    assert rtx.functions > 0
    assert rtx.plugins is rtx.times is None
    assert [note.split(" ")[0] for note in rtx.notes] == ["target", "rtx-sm89"]
    assert (cpu.sites, cpu.launches) == ((), None)
    assert "no engine of TensorRT's" in cpu.notes[0]
    with pytest.raises(TargetError, match="--batch 0"):
        cost(model, "topk", "h100", 0)


def test_a_plugin_that_refuses_a_node_is_not_counted(model: Path) -> None:
    plan = tokenrt.plan(
        model, method="token_pooling", budget=tokenrt.Budget.keep(0.7, [1]), options={"iterations": 500}
    )
    found = cost_of(model, plan, load("h100"))
    assert found.plugins is None
    assert "stays a function: rounds is 500, the plugin takes" in found.notes[0]
    assert found.times is not None
    assert found.times.plugins is None


def test_a_count_that_fails_refuses_no_plan(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenrt.perf.cost import sites

    def fails(*_: object, **__: object) -> None:
        raise TargetError("the shape of x is not known")

    monkeypatch.setattr(sites, "_plugins", fails)
    found = cost(model, "topk", "h100")
    assert found.notes == ("launches were not counted: the shape of x is not known",)
    assert found.plan.sites


def test_on_the_command_line(model: Path, tmp_path: Path) -> None:
    line = [
        "plan",
        str(model),
        "--method",
        "evit",
        "--keep",
        "0.7",
        "--layers",
        "1,2",
        "-o",
        str(tmp_path / "p.toml"),
    ]
    plain = CliRunner().invoke(app, [*line, "--json"])
    costed = CliRunner().invoke(app, [*line, "--json", "--target", "a100", "--batch", "8"])
    assert costed.exit_code == 0, costed.stderr
    told = json.loads(costed.stdout)
    found = told.pop("cost")
    assert told == json.loads(plain.stdout)
    assert found["evidence"] == "model, unmeasured"
    assert (found["target"], found["batch"], len(found["sites"])) == ("a100", 8, 2)
    assert found["launches"]["model"] == 4 * 8 + 5
    assert found["launches"]["functions"] == sum(site["functions"] for site in found["sites"]) > 0
    shown = CliRunner().invoke(app, [*line, "--target", "a100"], env={"COLUMNS": "200"})
    assert "model, unmeasured" in shown.stdout
    assert "--multiple-of 8" in shown.stdout
    assert CliRunner().invoke(app, [*line, "--target", "a1000"]).exit_code == 2


def test_verdicts() -> None:
    assert (
        Times(1e-3, 0.5e-3).verdict(8)
        == "time at batch 8: 1000 us before, 500 us as functions: 2.00 times as fast at best"
    )
    assert (
        Times(1e-3, 1.2e-3, 1.1e-3)
        .verdict(1)
        .endswith("1200 us as functions, 1100 us by plugin: it does not pay")
    )
