"""Plans on a GPU by the model: launches cost at batch 1, work counts in large batches, and time has steps."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tokenrt.errors import TargetError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.planner.latency.modelled import modelled
from tokenrt.targets import load

SMALL = PlainViT(width=192, heads=3, blocks=6)


@pytest.fixture(scope="module")
def reducer(tmp_path_factory: pytest.TempPathFactory) -> Reducer:
    return Reducer.of(SMALL.write(tmp_path_factory.mktemp("modelled") / "model.onnx", seed=None))


def test_launches_cost_at_batch_one_and_work_in_large_batches(reducer: Reducer) -> None:
    every, once = (reducer.plan("topk", budget) for budget in (Budget.remove(20), Budget.keep(0.5, [1])))
    h100 = load("h100")
    one, many = (modelled(reducer, once, h100, batch=batch) for batch in (1, 256))
    assert not one.pays
    assert many.pays
    assert many.ratio < one.ratio
    assert modelled(reducer, every, h100).added > modelled(reducer, once, h100).added > 0


def test_time_has_steps(reducer: Reducer) -> None:
    """Between two counts of tokens that fill as many waves nothing is gained."""
    times = [
        modelled(reducer, reducer.plan("topk", Budget.tokens([count], [0])), load("h100"), batch=16).after
        for count in range(150, 190, 4)
    ]
    gains = [after - before for before, after in pairwise(times)]
    assert max(gains) > 10 * sorted(gains)[len(gains) // 2] > 0


def test_a_target_that_is_not_modelled(reducer: Reducer) -> None:
    with pytest.raises(TargetError, match="an estimate of time needs"):
        modelled(reducer, reducer.plan("topk", Budget.remove(4)), load("ort-cpu"))
