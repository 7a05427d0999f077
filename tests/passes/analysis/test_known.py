"""`inspect` names architectures that spend less on tokens by design, each by its mechanism and no other by it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from tests.passes.helpers import architectures
from tokenrt.export.quiet import quiet
from tokenrt.passes.analysis.known.looks import Scene
from tokenrt.passes.analysis.known.recognise import RULES, recognise
from tokenrt.passes.analysis.prepare import prepare
from tokenrt.passes.inspect import inspect
from tokenrt.passes.methods import systems


def exported(system: str, folder: Path, dynamo: bool = False) -> Path:
    """The model of a system with names that say nothing."""
    module, x = architectures.model(system)
    path = folder / "model.onnx"
    with torch.no_grad(), quiet():
        torch.onnx.export(module, (x,), path, opset_version=18, dynamo=dynamo)
    proto = onnx.load(path)
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["script", "dynamo"]
)
@pytest.mark.parametrize("system", architectures.SYSTEMS)
def test_each_is_known_by_its_mechanism(system: str, dynamo: bool, tmp_path: Path) -> None:
    prepared = prepare(exported(system, tmp_path, dynamo))
    found = recognise(Scene(prepared.model.graph, prepared.shapes))
    assert [known.system for known in found] == [system] * bool(system)


def test_inspect_tells_of_it(tmp_path: Path) -> None:
    (known,) = inspect(exported("TokenPacker", tmp_path)).known
    assert str(known).startswith(
        "built like TokenPacker: each of its coarse queries attends to the 4 x 4 tokens of its own region, at Softmax node"
    )


def test_every_architecture_that_the_page_says_is_told_has_a_rule_and_a_model() -> None:
    told = {name for name, why in systems.NO_REWRITE.items() if why.startswith("an architecture")}
    ruled = {name for names in RULES for name in names.split(", ")}
    assert {name.rpartition("/ ")[2] for name in told} == ruled
    assert {name for name in architectures.SYSTEMS if name} == {*RULES}
