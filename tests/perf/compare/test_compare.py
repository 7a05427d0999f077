"""Reduced models side by side: what the table holds is what each model is, alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner, Result

import tokenrt
from tokenrt.cli import app
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.compare import compare as module
from tokenrt.perf.compare.comparison import Comparison

SMALL = PlainViT(width=64, heads=2, blocks=3, patch=16, image=64, classes=10)
SAMPLES, TAKEN = 6, 4


@dataclass(frozen=True)
class Desk:
    """A folder with an original, models reduced from it, and data."""

    folder: Path
    original: Path
    data: Path
    pixels: np.ndarray

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    original = SMALL.write(folder / "vit.onnx")
    for name, leave in {"mild": 1, "strong": 4}.items():
        made = tokenrt.reduce(
            original, method="tome", budget=Budget.remove(leave), output=folder / f"{name}.onnx"
        )
        made.plan.save(folder / f"{name}.toml")
    tokenrt.convert(folder / "mild.onnx", precision="fp16", check=False, output=folder / "half.onnx")
    stripped = onnx.load(folder / "strong.onnx")
    del stripped.metadata_props[:]
    onnx.save(stripped, folder / "foreign.onnx")
    pixels = np.random.default_rng(0).standard_normal((SAMPLES, 3, 64, 64), np.float32)
    np.savez(folder / "data.npz", allow_pickle=False, pixel_values=pixels)
    return Desk(folder, original, folder / "data.npz", pixels)


@pytest.fixture(scope="module")
def found(desk: Desk) -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "REPEATS", 2)
        return tokenrt.compare(
            [desk / name for name in ("mild.onnx", "strong.toml", "half.onnx", "foreign.onnx")],
            original=desk.original,
            data=desk.data,
            samples=TAKEN,
            target="h100",
            rounds=3,
            threads=1,
        )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPEATS", 1)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def divergence(desk: Desk, name: str, samples: int) -> float:
    """Mean KL divergence of the classes from the original's, by NumPy."""
    answers = []
    for path in (desk.original, desk / name):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = session.run(None, {"pixel_values": desk.pixels[:samples]})[0].astype(np.float64)
        shifted = logits - logits.max(1, keepdims=True)
        answers.append(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
    p, q = answers
    return float((np.exp(p) * (p - q)).sum(1).mean())


def test_rows_come_as_given_with_tokens_of_their_plans(found: Comparison) -> None:
    assert [row.name for row in found.rows] == ["mild", "strong", "half", "foreign"]
    assert [row.contestant.tokens() for row in found.rows] == [(17, 14), (17, 5), (17, 14), None]


def test_work_and_memory_are_those_of_the_plan(found: Comparison, desk: Desk) -> None:
    mild, strong, half, foreign = found.rows
    whole = found.original.cost
    assert whole is not None
    for row, name in ((mild, "mild"), (strong, "strong"), (half, "mild"), (foreign, "strong")):
        plan = Plan.load(desk / f"{name}.toml")
        assert whole.macs == plan.macs_before
        assert row.cost is not None
        assert row.cost.macs == pytest.approx(
            plan.macs_after, rel=0.02
        )  # and what the method itself computes
        assert row.cost.macs >= plan.macs_after
        assert row.work(found.original) == row.cost.macs / whole.macs
        assert row.cost.peak <= whole.peak
    assert half.cost is not None
    assert mild.cost is not None
    assert half.cost.peak < 0.7 * mild.cost.peak


def test_size_is_that_of_the_files(found: Comparison, desk: Desk) -> None:
    mild, strong, half, _ = found.rows
    assert mild.bytes == (desk / "mild.onnx").stat().st_size
    assert (
        strong.bytes == (desk / "strong.onnx").stat().st_size
    )  # of the plan's model, which is not written for good
    assert half.bytes < 0.6 * mild.bytes
    beside = desk / "vit.onnx.data"
    assert found.original.bytes == desk.original.stat().st_size + (
        beside.stat().st_size if beside.exists() else 0
    )


def test_harm_is_what_numpy_finds_on_as_many_samples(found: Comparison, desk: Desk) -> None:
    assert found.told["samples"] == TAKEN
    for row, name in zip(found.rows, ("mild", "strong", None, "strong"), strict=True):
        if name is not None:
            assert row.harm.mean == pytest.approx(divergence(desk, f"{name}.onnx", TAKEN), rel=1e-3)
        low, high = row.harm.interval()
        assert low < row.harm.mean < high
    mild, strong, half, _ = found.rows
    assert mild.harm.mean < strong.harm.mean
    assert half.harm.mean == pytest.approx(mild.harm.mean, rel=0.2)
    assert set(found.measures.values()) == {
        "KL divergence of the classes' probabilities from the original's, in nats"
    }


def test_all_are_timed_in_the_same_rounds(found: Comparison) -> None:
    assert len({row.time.base_milliseconds for row in found.rows}) == 1
    for row in found.rows:
        assert row.time.rounds == 6
        assert 0 < row.time.low <= row.time.median <= row.time.high


def test_each_was_checked_and_a_gpu_is_modelled_where_the_plan_is_known(found: Comparison) -> None:
    assert all(row.check is not None and row.check.ok and row.check.samples == TAKEN for row in found.rows)
    mild, _, half, foreign = found.rows
    assert mild.modelled is not None
    assert half.modelled == mild.modelled
    assert mild.modelled.added > 0
    assert foreign.modelled is None
    assert foreign.notes == (
        "time on h100 is not modelled: the model does not say by which plan it was made",
    )


def test_the_table_tells_all_of_it(found: Comparison) -> None:
    from rich.console import Console

    console = Console(width=120, record=True)
    console.print(found)
    text = " ".join(console.export_text().split())
    for words in (
        "17→14",
        "17→5",
        "h100",
        "data.npz",
        "4 samples",
        "KL divergence",
        "unmeasured",
        "vit.onnx",
    ):
        assert words in text
    assert found.verdict() in text


def test_the_document_is_json(found: Comparison) -> None:
    told = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert [each["name"] for each in told["models"]] == ["mild", "strong", "half", "foreign"]
    first = told["models"][0]
    assert first["tokens"] == {"before": 17, "after": 14}
    assert first["check"]["ok"]
    assert first["modelled"]["evidence"] == "model, unmeasured"
    assert len(first["harm"]["samples"]) == TAKEN
    assert told["original"]["milliseconds"] > 0


@pytest.mark.usefixtures("quick")
def test_from_the_command_line_sorted_and_without_a_check(desk: Desk) -> None:
    done = run(
        "compare", desk / "strong.onnx", desk / "mild.onnx", "--original", desk.original, "--data", desk.data,
        "--rounds", 3, "--threads", 1, "--no-check", "--sort", "harm", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["name"] for each in told["models"]] == ["mild", "strong"]
    assert told["models"][0]["check"] is None
    assert told["batch"] == 1


@pytest.mark.usefixtures("quick")
def test_noise_serves_where_there_is_no_data(desk: Desk) -> None:
    found = tokenrt.compare(
        [desk / "mild.onnx"], original=desk.original, batch=3, samples=2, rounds=3, threads=1, check=False
    )
    assert "noise" in found.told["data"]
    assert found.told["batch"] == 3
    whole = found.original.cost
    assert whole is not None
    assert whole.macs == 3 * Plan.load(desk / "mild.toml").macs_before


def otherwise(desk: Desk, name: str) -> Path:
    """A model with another input."""
    path = desk / name
    if not path.exists():
        PlainViT(width=64, heads=2, blocks=2, patch=16, image=32, classes=10).write(path)
    return path


def renamed(desk: Desk, kind: str) -> Path:
    model = onnx.load(desk / "mild.onnx")
    values = model.graph.input if kind == "input" else model.graph.output
    old = values[0].name
    values[0].name = "other"
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == old else name for name in names]
    onnx.save(model, desk / f"other_{kind}.onnx")
    return desk / f"other_{kind}.onnx"


WRONG: dict[str, tuple[Callable[[Desk], list[object]], str]] = {
    "missing": (lambda desk: [desk / "none.onnx"], "no such file or directory"),
    "twice": (lambda desk: [desk / "mild.onnx", desk / "mild.onnx"], "mild.onnx comes twice"),
    "the original": (lambda desk: [desk.original], "vit.onnx is the original itself"),
    "another kind": (lambda desk: [desk.data], "neither a model (.onnx), nor a plan (.toml)"),
    "another size": (lambda desk: [otherwise(desk, "small.onnx")], "small: input 'pixel_values' is"),
    "another input": (
        lambda desk: [renamed(desk, "input")],
        "other_input: the inputs of the two models differ",
    ),
    "another output": (
        lambda desk: [renamed(desk, "output")],
        "other_output: the outputs of the two models differ",
    ),
    "no such data": (lambda desk: [desk / "mild.onnx", "--data", desk / "none"], "no such file or directory"),
    "a target that is not modelled": (
        lambda desk: [desk / "mild.onnx", "--target", "rtx-sm89"],
        "does not state",
    ),
    "no target": (lambda desk: [desk / "mild.onnx", "--target", "h1000"], "no target 'h1000'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_compared_is_told_in_a_message(desk: Desk, case: str) -> None:
    words, message = WRONG[case]
    done = run("compare", "--original", desk.original, *words(desk))
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert not done.stdout


def test_nothing_to_compare_is_bad_input(desk: Desk) -> None:
    assert run("compare", "--original", desk.original).exit_code == 2
    with pytest.raises(tokenrt.TokenrtError, match="nothing to compare"):
        tokenrt.compare([], original=desk.original)


def test_data_of_another_size_is_told(desk: Desk, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=False, pixel_values=np.zeros((2, 3, 9, 9), np.float32))
    done = run("compare", desk / "mild.onnx", "--original", desk.original, "--data", tmp_path / "d.npz")
    assert done.exit_code == 2
    assert "expected samples of input 'pixel_values'" in " ".join(done.stderr.split())


@pytest.mark.usefixtures("quick")
def test_a_batch_that_is_fixed_is_kept(desk: Desk, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.onnx"
    shape = ["pixel_values=2x3x64x64"]
    tokenrt.reduce(desk.original, method="tome", budget=Budget.remove(1), shape=shape, output=fixed)
    done = run("compare", fixed, "--original", desk.original, "--batch", 3)
    assert done.exit_code == 2
    assert "--batch 3: the models have a fixed batch of 2" in " ".join(done.stderr.split())
    found = tokenrt.compare(
        [fixed, desk / "mild.onnx"], original=desk.original, rounds=3, threads=1, check=False
    )
    assert found.told["batch"] == 2
    alone, other = found.rows
    assert alone.cost is not None
    assert other.cost is not None
    assert alone.cost.macs == other.cost.macs
    assert alone.cost.batch == other.cost.batch == 2
    assert alone.harm.mean == pytest.approx(other.harm.mean, rel=1e-3)


def test_bfloat16_has_no_time_here(desk: Desk, tmp_path: Path) -> None:
    tokenrt.convert(desk / "mild.onnx", precision="bf16", check=False, output=tmp_path / "brain.onnx")
    done = run("compare", tmp_path / "brain.onnx", "--original", desk.original)
    assert done.exit_code == 2
    assert "brain is in bfloat16" in done.stderr
