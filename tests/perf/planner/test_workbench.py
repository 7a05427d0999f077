"""A try on the workbench computes what the reduced file computes, and costs its runs and little else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenrt.errors import PlanError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reduce import reduce
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.planner.workbench import Workbench, answers
from tokenrt.perf.profile import timing

SMALL = PlainViT(width=192, heads=3, blocks=4, patch=16, image=96, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("workbench") / "model.onnx")


@pytest.fixture(scope="module")
def bench(model: Path) -> Iterator[Workbench]:
    with Workbench.of(model, threads=1) as bench:
        yield bench


def test_a_try_computes_what_the_file_computes(model: Path, bench: Workbench, tmp_path: Path) -> None:
    planned = bench.reducer.plan("tome", Budget.remove(6))
    reduce(model, plan=planned, output=tmp_path / "reduced.onnx")
    for written, tried in (
        (model, bench.original()),
        (tmp_path / "reduced.onnx", bench.trial(planned).session),
    ):
        opened = timing.session(written, threads=1)
        feeds = [timing.feeds(opened, 2, seed) for seed in (0, 1)]
        for wanted, found in zip(answers(opened, feeds), answers(tried, feeds), strict=True):
            assert wanted.keys() == found.keys()
            for name, array in wanted.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["topk", "atc"])
def test_without_reuse_of_buffers_numbers_are_the_same(bench: Workbench, method: str) -> None:
    made = bench.reducer.reduce(bench.reducer.plan(method, Budget.remove(6))).model
    usual, freed = bench.opener(made, 1)(), bench.opener(made, 1, reuse=False)()
    feeds = [timing.feeds(usual, 2)]
    for wanted, found in zip(answers(usual, feeds), answers(freed, feeds), strict=True):
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_plan_that_does_not_fit_is_no_trial(bench: Workbench) -> None:
    planned = bench.reducer.plan("tome", Budget.remove(6))
    with pytest.raises(PlanError, match="the plan is for 38 tokens"):
        bench.trial(replace(planned, tokens=38))


def test_weights_are_written_once(bench: Workbench) -> None:
    (file,) = bench.weights.folder.iterdir()
    before = file.stat()
    made = bench.reducer.reduce(bench.reducer.plan("topk", Budget.remove(6))).model
    assert len(bench.weights.serialized(made)) < before.st_size / 4
    bench.session(made)
    assert [*bench.weights.folder.iterdir()] == [file]
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.usefixtures("prepared_anew")
def test_a_try_takes_less_of_the_processor_than_a_reduction(model: Path, bench: Workbench) -> None:
    """Paired, in processor time: the rest of the machine does not count, and no duration is asked for."""
    planned = bench.reducer.plan("tome", Budget.remove(6))

    def spent(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    ratios = [
        spent(lambda: bench.trial(planned)) / spent(lambda: timing.session(reduce(model, plan=planned).model))
        for _ in range(5)
    ]
    assert np.median(ratios) < 0.6
