"""`reduce` refuses nothing that `inspect` offers of vision parts as exported: every site of every block, every output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.export.helpers import vision_language as small
from tests.passes.helpers.offered import disagreements
from tokenrt.cli import app
from tokenrt.passes.planning.plan import PLACES, Budget, Where
from tokenrt.passes.reduce import reduce

PICTURES = [name for name in small.FILES if not name.startswith("qwen")]
"""Those that hand on a row for each token or square of tokens; merge units are another file's."""


def compare(path: Path, wheres: tuple[Where, ...]) -> None:
    assert disagreements(path, wheres=wheres) == []
    answer = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert answer.exit_code == 0
    offered = json.loads(answer.stdout)
    assert offered["known"] == []
    assert [outlet["name"] for outlet in offered["outlets"]]
    for outlet in offered["outlets"]:
        left = outlet["tokens"] - 1
        for method in ("slice", "divprune"):
            made = reduce(path, method=method, budget=Budget.tokens([left]), site=f"output:{outlet['name']}")
            assert made.plan.outputs[0].tokens == left
            assert all(value.shape is not None for value in made.model.graph.outputs)


@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_two_towers(name: str) -> None:
    compare(small.onnx(name, 17, "torchscript"), PLACES[1:2])


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("name", PICTURES)
def test_every_tower(name: str, opset: int) -> None:
    compare(small.onnx(name, opset), PLACES)
