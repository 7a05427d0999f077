"""Products in whole waves of whole tiles, counted by hand, and the nodes they are read from."""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir
import pytest

from tokenrt.passes.graph.shapes import infer
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.steps import Product, products

CHIP = Chip(
    "small", multiprocessors=10, bandwidth=1e15, vector=1.0, tensor=1e12, products=1.0, clock=1.0, launch=1e-6
)
WAVE = 2 * 128 * 128 * 64 * 10 / 1e12
"""Ten tiles of 128 by 128 at a depth of 64."""


@pytest.mark.parametrize(
    ("rows", "columns", "waves"),
    [
        (1280, 128, 1),
        (1281, 128, 1.25),
        (1153, 128, 1),
        (2560, 128, 2),
        (64, 64, 0.25),
        (128, 128, 0.25),
        (640, 64, 0.25),
    ],
)
def test_time_has_steps(rows: int, columns: int, waves: float) -> None:
    """Tiles of 64 are a quarter of the work: where the last wave would be nearly empty they end earlier."""
    assert Product(rows, columns, 64).seconds(CHIP) == pytest.approx(waves * WAVE)


def test_bytes_count_where_they_take_longer() -> None:
    slow = Chip("slow", 10, 1e3, 1.0, 1e30, 1.0, 1.0, 1e-6)
    assert Product(2, 3, 5, count=4).seconds(slow) == pytest.approx(2 * 4 * (10 + 15 + 6) / 1e3)


TEXT = """
<ir_version: 10, opset_import: ["" : 18]>
small (float[N,4,8] x, float[N,3,4,4] p) => (y, z, c)
<float[8,6] w = {%s}, float[5,3,2,2] k = {%s}> {
  y = MatMul(x, w)
  t = Transpose<perm = [0, 2, 1]>(x)
  z = MatMul(x, t)
  c = Conv<kernel_shape = [2, 2], strides = [2, 2]>(p, k)
}
"""


def test_nodes() -> None:
    text = TEXT % (",".join(["1"] * 48), ",".join(["1"] * 60))
    model = ir.from_proto(onnx.parser.parse_model(text))
    shapes = infer(model)
    found = {node.outputs[0].name: products(node, shapes, 3) for node in model.graph}
    assert found == {
        "y": (Product(12, 6, 8),),
        "t": (),
        "z": (Product(4, 4, 8, 3),),
        "c": (Product(12, 5, 12),),
    }
