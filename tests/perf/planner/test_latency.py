"""Tables of latency: right where times are what they assume, plain about what was not timed, and kept as they were measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenrt.errors import TokenrtError
from tokenrt.passes.planning.plan import Budget, Plan
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.planner.latency.parts import Times, attention, feedforward, measure, parts_of, reduction
from tokenrt.perf.planner.latency.sweep import Timed, empty, run, table
from tokenrt.perf.planner.latency.table import Table, at, monotone
from tokenrt.perf.planner.workbench import Workbench
from tokenrt.perf.profile import timing

SMALL = PlainViT(width=64, heads=2, blocks=4, patch=16, image=96, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("latency") / "model.onnx")


@pytest.fixture(scope="module")
def reducer(model: Path) -> Reducer:
    return Reducer.of(model)


def _attention(tokens: int, weighted: bool) -> float:
    return 1e-3 * tokens + 2e-5 * tokens**2 + 2e-3 * weighted


def _feedforward(tokens: int) -> float:
    return 2e-3 * tokens


def _reduction(arriving: int, staying: int) -> float:
    return 3e-3 + 1e-4 * arriving + 1e-6 * arriving**2 + 2e-4 * (arriving - staying)


def _world(plan: Plan | None) -> Times:
    """The times of a world in which the table's assumptions hold."""
    sites = {} if plan is None else {site.block: site for site in plan.sites}
    here, weighted, parts = SMALL.tokens, False, {"before the blocks": 0.05}
    for block in range(SMALL.blocks):
        parts[attention(block)] = _attention(here, weighted)
        site = sites.get(block)
        if site is not None and plan is not None:
            parts[reduction(block)] = _reduction(here, site.tokens)
            here, weighted = site.tokens, weighted or plan.at(site).merges
        parts[feedforward(block)] = _feedforward(here)
    return Times(sum(parts.values()), parts, 10.0)


def _table(reducer: Reducer) -> Table:
    budgets = [
        Budget.remove(1),
        Budget.remove(3),
        Budget.remove(8),
        Budget.keep(0.5, [0]),
        Budget.keep(0.7, [1, 2]),
    ]
    plans = [None, *(reducer.plan("tome", budget) for budget in budgets)]
    blank = Table("", "ort-cpu", 1, 1, "", 0, SMALL.tokens, SMALL.blocks, (), (), (), {}, {})
    return table([Timed(plan, _world(plan)) for plan in plans], blank)


@pytest.mark.parametrize(
    "budget", [Budget.remove(2), Budget.remove(5), Budget.keep(0.6, [0]), Budget.keep(0.8, [0, 2])], ids=str
)
def test_a_plan_that_was_not_timed(reducer: Reducer, budget: Budget) -> None:
    plan = reducer.plan("tome", budget)
    assert _table(reducer).predict(plan).ratio == pytest.approx(_world(plan).whole, rel=0.01)


def test_the_unreduced_model(reducer: Reducer) -> None:
    plan = replace(reducer.plan("tome", Budget.remove(2)), sites=())
    assert _table(reducer).predict(plan).ratio == pytest.approx(_world(None).whole, rel=1e-6)


def test_an_interval_is_as_wide_as_the_error(reducer: Reducer) -> None:
    found = replace(_table(reducer), error=0.1).predict(reducer.plan("tome", Budget.remove(2)))
    assert (found.low, found.high) == pytest.approx((0.9 * found.ratio, 1.1 * found.ratio))
    assert found.speedup == pytest.approx(1 / found.ratio)


def test_what_was_not_timed_is_refused(reducer: Reducer) -> None:
    found = _table(reducer)
    with pytest.raises(TokenrtError, match="did not time topk, only tome: sweep with --methods topk"):
        found.predict(reducer.plan("topk", Budget.remove(2)))
    with pytest.raises(TokenrtError, match="come back"):
        found.predict(reducer.plan("tomesd", Budget.remove(9)))
    with pytest.raises(TokenrtError, match="a model with 37 tokens and 4 blocks, the plan for 36"):
        found.predict(replace(reducer.plan("tome", Budget.remove(2)), tokens=36))


def test_a_staircase_stays_one() -> None:
    """Shares that never fall are kept as they are, and between two counts the line through them is taken."""
    steps = monotone([(64, 1.0), (65, 2.0), (128, 2.0), (129, 3.0)])
    assert steps == ((64, 1.0), (65, 2.0), (128, 2.0), (129, 3.0))
    assert at(steps, 100) == 2.0
    assert at(steps, 32) == 0.5
    assert at(steps, 258) == 6.0


def test_noise_is_pooled() -> None:
    assert monotone([(3, 1.0), (1, 2.0), (2, 1.5), (4, 9.0)]) == ((1, 1.5), (2, 1.5), (3, 1.5), (4, 9.0))
    assert monotone([(1, 1.0), (1, 3.0), (2, 4.0)]) == ((1, 2.0), (2, 4.0))


def test_a_table_is_what_was_measured(reducer: Reducer, tmp_path: Path) -> None:
    found, path = _table(reducer), tmp_path / "table.json"
    found.save(path)
    assert Table.load(path) == found
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "milliseconds": 5.0}))
    with pytest.raises(TokenrtError, match="was changed since it was measured"):
        Table.load(path)
    path.write_text("{}")
    with pytest.raises(TokenrtError, match="no table of"):
        Table.load(path)


def test_parts_add_up_to_the_run(tmp_path: Path) -> None:
    model = replace(SMALL, width=256, heads=4).write(tmp_path / "wide.onnx")
    with Workbench.of(model, threads=1) as bench:
        plan = bench.reducer.plan("tome", Budget.remove(4))
        found = measure(
            bench,
            bench.reducer.reduce(plan).model,
            parts_of(bench.reducer.prepared),
            timing.feeds(bench.original(), 2),
            rounds=3,
        )
        assert empty(bench, "", 2).tokens == 37
    assert sum(found.without(found.noted).parts.values()) == pytest.approx(found.whole)
    blocks = [name(block) for block in range(4) for name in (attention, feedforward, reduction)]
    assert all(name in found.parts for name in blocks)
    assert sum(found.parts[name] for name in blocks) > 0.3 * found.whole


def test_the_profiler_is_taken_from_each_kernel_alike() -> None:
    noted = Times(1.0, {"a": 0.6, "b": 0.6, "c": 0.01}, 10.0, {"a": 2, "b": 17, "c": 2})
    assert noted.noted == pytest.approx(0.01)
    found = noted.without(0.01).parts
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["a"] / found["b"] == pytest.approx(0.58 / 0.43)
    assert found["c"] / found["a"] == pytest.approx(0.002 / 0.58)


def test_a_sweep_writes_its_table(model: Path, tmp_path: Path) -> None:
    told = list[str]()
    found = run(
        model,
        ["topk"],
        output=tmp_path / "t.json",
        rounds=2,
        threads=1,
        progress=lambda what, *_: told.append(what),
    )
    assert Table.load(found.path) == found.table
    assert told[0] == "the unreduced model"
    assert len(told) > 8
    assert set(found.table.reductions) == {"slice", "topk"}
    assert np.diff([share for _, share in found.table.attention]).min() >= 0
    assert not found.table.weighted
    assert found.table.error > 0
    found.table.check_made_for(model)
    other = SMALL.write(tmp_path / "other.onnx", seed=1)
    with pytest.raises(TokenrtError, match="another model"):
        found.table.check_made_for(other)
    with pytest.raises(TokenrtError, match="measured on a slide rule"):
        replace(found.table, machine="a slide rule").check_made_for(model)


def test_a_method_without_a_place(model: Path) -> None:
    with pytest.raises(TokenrtError, match="tomee"):
        run(model, ["tomee"], rounds=2, threads=1)
