"""Products on tensor cores as a GPU runs them: in tiles, as many at once as it has multiprocessors, so that time has steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from tokenrt.passes.graph.shapes import Shapes
from tokenrt.perf.cost.chip import Chip
from tokenrt.perf.cost.fusion import images

TILES = (128, 64)
"""Rows and columns of a tile: the usual one, and the one that is taken where it ends earlier."""

HALF = 2
"""Bytes of an element: products are those of a model in float16."""


@dataclass(frozen=True)
class Product:
    """`count` products [rows, depth] by [depth, columns] in one launch."""

    rows: int
    columns: int
    depth: int
    count: int = 1

    def seconds(self, chip: Chip) -> float:
        """Whole waves of whole tiles, or the bytes where these take longer; without the launch."""
        return max(min(self._waves(tile, chip) for tile in TILES), self._bytes() / chip.bandwidth)

    def _waves(self, tile: int, chip: Chip) -> float:
        tiles = -(-self.rows // tile) * -(-self.columns // tile) * self.count
        each = 2.0 * tile * tile * self.depth * chip.multiprocessors / chip.tensor
        return -(-tiles // chip.multiprocessors) * each

    def _bytes(self) -> float:
        edges = self.rows * self.depth + self.depth * self.columns + self.rows * self.columns
        return float(HALF * self.count * edges)


def products(node: ir.Node, shapes: Shapes, batch: int) -> tuple[Product, ...]:
    """The products of a node; none of one that is no product, or whose shapes the run alone tells.

    Rows of all images are one product where the right side is the same for them, as weights are.
    """
    make = PRODUCTS.get(node.op_type)
    values = [value for value in (*node.inputs, node.outputs[0]) if value is not None]
    if make is None or not all(map(shapes.known, values)):
        return ()
    return make(node, [images(shapes.of(value), batch) for value in values])


def _matmul(node: ir.Node, dims: list[list[int]]) -> tuple[Product, ...]:
    left, right, made = dims[0], dims[1], dims[-1]
    transposed = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].value
    depth = left[0 if transposed else -1]
    if len(right) == 2:
        return (Product(prod(made[:-1]), made[-1], depth),)
    return (Product(made[-2], made[-1], depth, prod(made[:-2])),)


def _convolution(node: ir.Node, dims: list[list[int]]) -> tuple[Product, ...]:
    kernel, made = dims[1], dims[-1]
    return (Product(made[0] * prod(made[2:]), kernel[0], prod(kernel[1:])),)


def _attention(node: ir.Node, dims: list[list[int]]) -> tuple[Product, ...]:
    query, key, value = dims[:3]
    count, rows, width = prod(query[:-2]), query[-2], query[-1]
    return Product(rows, key[-2], width, count), Product(rows, value[-1], key[-2], count)


PRODUCTS = {"MatMul": _matmul, "Gemm": _matmul, "Conv": _convolution, "Attention": _attention}
"""Operators that tensor cores compute, each by a function of its node and the shapes of its inputs and output."""
