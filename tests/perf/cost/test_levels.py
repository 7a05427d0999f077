"""What launches of the form of functions compute and move, by hand."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tokenrt.passes.graph.shapes import BATCH
from tokenrt.perf.cost import fusion
from tokenrt.perf.cost.chip import Chip


def test_launches_by_hand() -> None:
    """x - mean(x) over its own maximum, and a product beside it: two levels, of which the first starts twice."""
    text = """
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
    graph = ir.from_onnx_text(text).graph
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
    chip = Chip("one", 10, bandwidth=1e9, vector=1e6, tensor=1e13, clock=1e9, launch=1e-6)
    assert second.seconds(chip) == pytest.approx(1e-6 + 160e-6)
    assert fusion.launched(graph, told, {}, 10) == [fusion.Level(), fusion.Level()]
    assert fusion.launched([], told, dims, 1) == []
