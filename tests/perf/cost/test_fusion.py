"""Launches of the form of functions, counted on the graph, against engine layers that TensorRT-RTX's builder counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tokenrt
from tokenrt.perf.bench.gpu.engine_layers import BUDGETS, CAPABILITIES, FORMS
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.cost import sites
from tokenrt.targets import load

COUNTED = json.loads((Path(__file__).parents[3] / "docs" / "results" / "engine_layers.json").read_text())
FORM = PlainViT(width=384, heads=6, blocks=12, patch=16, image=224, classes=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FORM.write(tmp_path_factory.mktemp("vit") / "vit.onnx")


MORE = {"tome": 0, "pitome": 2, "topk": 1, "evit": 0}
"""Launches of a site that the builder fuses into others and the model does not."""


@pytest.mark.parametrize("method", BUDGETS)
def test_launches_of_a_site_are_about_the_layers_of_an_engine(method: str, model: Path) -> None:
    plan = tokenrt.plan(model, method=method, budget=BUDGETS[method])
    found = sites.cost_of(model, plan, load("rtx-sm89"))
    (counted,) = (
        row["layers_a_site"]
        for row in COUNTED["rows"]
        if (row["method"], row["form"], row["batch"], row["capability"])
        == (method, FORMS[1], 1, CAPABILITIES[0])
    )
    each = found.functions / len(plan.sites)
    assert 0 <= each - counted <= MORE[method], (each, counted)
