"""A model prepared once gives for every plan what `reduce` gives, and stays as it was."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from tests.helpers import prepared
from tokenrt.errors import PlanError
from tokenrt.passes.planning.plan import Budget
from tokenrt.passes.planning.request import Request
from tokenrt.passes.reduce import plan, reduce
from tokenrt.passes.reducer import Reducer
from tokenrt.perf.bench.plain_vit import PlainViT

SMALL = PlainViT(width=64, heads=2, blocks=3, patch=16, image=64, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.write(tmp_path_factory.mktemp("reducer") / "model.onnx")


def _bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


@pytest.mark.usefixtures("prepared_anew")
@pytest.mark.parametrize("method", ["tome", "topk"])
def test_plans_and_models_are_those_of_the_verbs(model: Path, method: str) -> None:
    reducer = Reducer.of(model)
    before = _bytes(reducer.prepared.model)
    for removed in (4, 2, 4):
        planned = reducer.plan(method, Budget.remove(removed))
        assert planned == plan(model, method=method, budget=Budget.remove(removed))
        made, wanted = reducer.reduce(planned), reduce(model, plan=planned)
        assert made.plan == wanted.plan
        assert _bytes(made.model) == _bytes(wanted.model)
        assert replace(made.report, seconds=0.0) == replace(wanted.report, seconds=0.0)
    assert _bytes(reducer.prepared.model) == before


def test_weights_are_shared(model: Path) -> None:
    reducer = Reducer.of(model)
    made = reducer.reduce(reducer.plan("tome", Budget.remove(4))).model
    tensors = {id(value.const_value) for value in reducer.prepared.model.graph.initializers.values()}
    large = [value.const_value for value in made.graph.initializers.values() if value.const_value is not None]
    large = [tensor for tensor in large if tensor.nbytes > 64 * 64]
    assert len(large) >= 4 * SMALL.blocks
    assert all(id(tensor) in tensors for tensor in large)


def test_other_protected_tokens_need_no_other_preparation(model: Path) -> None:
    reducer = Reducer.of(model)
    asked = Request(protect="3,5")
    planned = reducer.plan("tome", Budget.remove(4), asked)
    assert planned == plan(model, method="tome", budget=Budget.remove(4), protect="3,5")
    assert reducer.reduce(planned).plan.protect == 3
    assert reducer.reduce(reducer.plan("tome", Budget.remove(4))).plan.protect == 1


def test_an_edited_plan_is_checked(model: Path) -> None:
    reducer = Reducer.of(model)
    planned = reducer.plan("tome", Budget.remove(4))
    with pytest.raises(PlanError, match="block 0"):
        reducer.reduce(replace(planned, sites=(replace(planned.sites[0], tokens=1), *planned.sites[1:])))


def test_a_model_that_tests_share_and_one_has_changed_is_told(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "HELD", OrderedDict())
    first = prepared.once(model)
    assert prepared.once(model) is first
    assert prepared.once(model, protect="3") is not first
    first.model.graph.outputs.pop()
    with pytest.raises(AssertionError, match="was changed by who used it before"):
        prepared.once(model)
