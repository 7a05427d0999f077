"""What launches of the form of functions compute and move, by hand."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import tokenrt
from tokenrt import Budget
from tokenrt.passes.graph.shapes import BATCH
from tokenrt.perf.bench.plain_vit import PlainViT
from tokenrt.perf.cost import fusion, loops, sites
from tokenrt.perf.cost.chip import Chip
from tokenrt.targets import load

LEVELS = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[B,4] x, float[4,2] w) => (float[B,4] y, float[B,2] z) {
  axes = Constant <value_ints = [1]> ()
  shape = Shape (x)
  mean = ReduceMean (x, axes)
  away = Sub (x, mean)
  top = ReduceMax (away, axes)
  y = Div (away, top)
  z = MatMul (x, w)
  still = ReduceSum (shape)
}
"""
"""x - mean(x) over its own maximum, and a product beside it: two levels, of which the first starts twice."""


def test_levels_by_hand() -> None:
    graph = ir.from_onnx_text(LEVELS).graph
    told = fusion.computed(graph)
    assert fusion.levels(graph, told) == 2
    assert fusion.levels(graph, told, lambda node: node.op_type == "MatMul") == 1
    assert fusion.levels([], told) == 0


def test_launches_by_hand() -> None:
    graph = ir.from_onnx_text(LEVELS).graph
    told = fusion.computed(graph)
    dims = {
        "x": (BATCH, 4),
        "mean": (BATCH, 1),
        "away": (BATCH, 4),
        "top": (BATCH, 1),
        "w": (4, 2),
        "z": (BATCH, 2),
    }
    first, second = fusion.launched(graph, told, dims, 10)
    assert first.operations == 4 * 40 + 2 * 20 * 4
    assert first.bytes == 4 * 10 + 4 * (40 + 8 + 20)
    assert (second.operations, second.bytes) == (4 * 40, 4 * 10)
    chip = Chip("one", 10, bandwidth=1e9, vector=1e6, tensor=1e13, products=1e13, clock=1e9, launch=1e-6)
    assert second.seconds(chip) == pytest.approx(1e-6 + 160e-6)
    assert fusion.launched(graph, told, {}, 10) == [fusion.Level(), fusion.Level()]
    assert fusion.launched([], told, dims, 1) == []


LOOP = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[B,4] x) => (float[B,4] y) {
  keep = Constant <value_ints = [50]> ()
  protect = Constant <value_ints = [1]> ()
  many = Sub (keep, protect)
  turns = Squeeze (many)
  yes = Constant <value = bool {1}> ()
  y = Loop <body = turn (int64 t, bool on, float[] state) => (bool still, float[] next) {
    still = Identity (on)
    top = ArgMax <axis = 1> (state)
    here = Cast <to = 1> (top)
    total = ReduceSum <keepdims = 1> (here)
    next = Add (state, total)
  }> (turns, yes, x)
}
"""


def test_a_loop_launches_at_every_turn() -> None:
    graph = ir.from_onnx_text(LOOP).graph
    told = fusion.computed(graph)
    assert loops.turns(graph[-1]) == 49
    assert fusion.levels(graph, told) == 49 * 2
    assert len(fusion.launched(graph, told, {"x": (BATCH, 4)}, 2)) == 49 * 2
    silent = ir.from_onnx_text(
        LOOP.replace("ArgMax <axis = 1>", "Neg").replace("ReduceSum <keepdims = 1>", "Neg")
    ).graph
    assert fusion.levels(silent, fusion.computed(silent)) == 49
    unknown = ir.from_onnx_text(LOOP.replace("Squeeze (many)", "Mul (many, many)")).graph
    assert loops.turns(unknown[-1]) is None
    assert fusion.levels(unknown, fusion.computed(unknown)) == 2


@pytest.mark.parametrize(
    ("method", "turns", "each"),
    [("divprune", 49, 1), ("atc", 58, 1), ("token_pooling", 3, 1), ("kmedoids", 3, 2)],
)
def test_methods_that_choose_one_after_the_other(method: str, turns: int, each: int, tmp_path: Path) -> None:
    """Every turn of these is a launch or more, which a count of layers does not see."""
    form = PlainViT(width=64, heads=2, blocks=4, patch=16, image=224, classes=10)
    model = form.write(tmp_path / "vit.onnx")
    budget = Budget.keep(0.25, [1]) if method == "divprune" else Budget.keep(0.7, [1])
    plan = tokenrt.plan(model, method=method, budget=budget)
    (site,) = sites.cost_of(model, plan, load("h100")).sites
    assert turns * each <= site.functions <= turns * each * 8 + 20
    assert site.plugins is not None
