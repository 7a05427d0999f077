"""A search on a small model: what it recommends, what it writes, and that a stopped one ends with the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from typer.testing import CliRunner

import tokenrt
from tests.passes.helpers import tiny
from tokenrt.cli import app
from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.tune import search
from tokenrt.perf.tune.outcome import Outcome

SMALL = PlainViT(width=64, heads=2, blocks=4, patch=16, image=80, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("tune") / "model.onnx")


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    (given,) = onnx.load(model, load_external_data=False).graph.input
    pictures = np.random.default_rng(0).standard_normal((8, 3, 80, 80), np.float32)
    np.savez(path, allow_pickle=False, **{given.name: pictures})
    return path


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TRIES", 6)


def tuned(model: Path, data: Path, folder: Path, **more: object) -> Outcome:
    given = {"flops": 0.75, "methods": ["tome", "topk"], "threads": 1, **more}
    return tokenrt.tune(model, data=data, output=folder, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "TRIES", 6)
        return tuned(model, data, folder), folder


def test_the_recommended_plan_is_within_the_wish_and_no_rule_harms_less(run: tuple[Outcome, Path]) -> None:
    found, _ = run
    assert found.ok
    best = found.recommended
    assert best is not None
    assert best.ratio <= 0.75
    rules = [each for each in found.plans if not each.candidate.searched and each.ratio <= 0.75]
    assert len({each.candidate.origin for each in rules}) >= 8
    assert best.mean <= min(each.mean for each in rules) + 1e-12
    assert any(each.candidate.origin.startswith("sum over") for each in found.plans)
    assert any(each.candidate.origin == "changed and run" for each in found.plans)


def test_what_is_written_is_the_recommended_plan(run: tuple[Outcome, Path], model: Path, data: Path) -> None:
    found, folder = run
    assert found.recommended is not None
    told = json.loads((folder / "run.json").read_text())
    assert told["plans"][told["recommended"]]["spec"] == found.recommended.plan.spec()
    assert told["state"] == "met"
    assert {**told["asked"], "folder": ""} == {"folder": "", "data": str(data), "samples": 32, "threads": 1}
    again = tokenrt.reduce(model, plan=folder / "best.toml", output=folder / "again.onnx")
    assert again.plan.spec() == found.recommended.plan.spec()
    written, made = (onnx.load(folder / name).graph for name in ("reduced.onnx", "again.onnx"))
    assert [node.op_type for node in written.node] == [node.op_type for node in made.node]
    assert len([*(folder / "plans").glob("*.toml")]) == len(found.front)


def test_one_that_was_stopped_ends_with_the_same(
    run: tuple[Outcome, Path], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = run
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])
    again = tuned(model, data, tmp_path)
    assert [each.plan.spec() for each in again.plans] == [each.plan.spec() for each in whole.plans]
    assert again.verdict == whole.verdict
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == len(lines) + 1


def test_with_two_workers_of_which_one_is_killed_it_ends_with_the_same(
    run: tuple[Outcome, Path], model: Path, data: Path, tmp_path: Path
) -> None:
    whole, folder = run
    killed = list[int]()

    def kill(stage: str) -> None:
        workers = [
            each for each in psutil.Process().children(recursive=True) if "spawn_main" in str(each.cmdline())
        ]
        if stage.startswith("plan ") and workers and not killed:
            killed.append(workers[0].pid)
            workers[0].kill()

    found = tuned(model, data, tmp_path, workers=2, progress=kill)
    assert killed
    for name in ("plans", "verdict", "recommended", "state", "left_out"):
        assert found.as_dict()[name] == whole.as_dict()[name]
    judged = [set((each / "journal.jsonl").read_text().splitlines()) for each in (folder, tmp_path)]
    assert judged[0] == judged[1]


def test_a_wish_about_harm_gets_the_cheapest_plan_within_it(model: Path, data: Path, tmp_path: Path) -> None:
    found = tuned(model, data, tmp_path, flops=None, max_drop=0.01, methods=["topk"])
    assert found.recommended is not None
    assert found.recommended.mean <= 0.01
    rules = [each for each in found.plans if each.mean <= 0.01 and not each.candidate.searched]
    assert found.recommended.ratio <= min(each.ratio for each in rules)


def test_what_cannot_be_met_is_said_and_nothing_is_written(model: Path, data: Path, tmp_path: Path) -> None:
    line = [
        "tune",
        str(model),
        "--data",
        str(data),
        "-o",
        str(tmp_path),
        "--methods",
        "topk",
        "--threads",
        "1",
    ]
    done = CliRunner().invoke(app, [*line, "--flops", "0.01", "--json"])
    assert done.exit_code == 3, done.output
    told = json.loads(done.stdout)
    assert told["recommended"] is None
    assert "cannot be had; the nearest is topk" in told["verdict"]
    assert "GMACs are left" in told["verdict"]
    assert 0.01 < told["plans"][told["nearest"]]["ratio"] < 1
    assert not (tmp_path / "reduced.onnx").exists()
    assert not (tmp_path / "best.toml").exists()


def test_on_a_gpu_a_small_model_is_best_left_alone(model: Path, data: Path, tmp_path: Path) -> None:
    found = tuned(model, data, tmp_path, flops=None, speedup=1.2, target="h100", methods=["tome"])
    assert not found.ok
    assert found.state == "nothing helps"
    assert "Change nothing" in found.verdict
    assert "the nearest is tome, " in found.verdict
    assert "launches more than the" in found.verdict
    assert found.nearest is not None
    assert found.nearest.ratio > 1
    assert found.status == 3
    assert not (tmp_path / "reduced.onnx").exists()


def test_a_model_that_is_fast_enough_is_left_alone(model: Path, data: Path, tmp_path: Path) -> None:
    found = tuned(model, data, tmp_path, flops=None, latency=50.0, target="h100", methods=["tome"])
    assert found.state == "nothing helps"
    assert not found.plans
    assert "which is within the wish" in found.verdict
    assert not (tmp_path / "reduced.onnx").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--flops 0.5 --methods nosuch", "no method is called 'nosuch'"),
        ("--flops 0.5 --methods ,", "name one with --methods"),
        ("", "needs one wish"),
        ("--flops 0.5 --speedup 2", "--flops and --speedup"),
        ("--latency 1 --target nowhere", "nowhere"),
        ("--flops 0.5 --workers 0", "--workers 0: expected a number of processes from 1"),
        ("--flops 0.5 --workers host:80", "--workers host:80: expected a number of processes from 1"),
    ],
)
def test_bad_input_is_one_message(line: str, why: str, data: Path, tmp_path: Path) -> None:
    onnx.save(tiny.model(), tmp_path / "m.onnx")
    words = [
        "tune",
        str(tmp_path / "m.onnx"),
        "--data",
        str(data),
        "-o",
        str(tmp_path / "run"),
        *line.split(),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2, done.output
    assert why in " ".join(done.stderr.split())


def test_a_folder_that_is_a_file(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(TokenrtError, match="cannot make the folder"):
        tuned(model, data, tmp_path / "run")


def test_a_folder_holds_one_run(run: tuple[Outcome, Path], model: Path, data: Path) -> None:
    with pytest.raises(TokenrtError, match="holds a run with another wish: name another folder"):
        tuned(model, data, run[1], flops=0.8)


def test_budgets_of_a_person_are_among_the_rules(run: tuple[Outcome, Path], model: Path) -> None:
    """The mildest constant removal that is cheap enough: one token less a block is not."""
    found, _ = run
    rule = next(each for each in found.plans if each.candidate.origin == "topk, constant")
    leave = rule.plan.arriving()[0] - rule.plan.sites[0].tokens
    milder = tokenrt.plan(model, method="topk", budget=Budget.remove(leave - 1))
    assert rule.ratio <= 0.75 < milder.macs_after / milder.macs_before
