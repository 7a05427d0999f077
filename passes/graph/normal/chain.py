"""From a softmax up to the product it weighs and down to the product it is weighed in, or where that way stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from tokenrt.passes.graph.normal.builder import LAYOUT
from tokenrt.passes.graph.shapes import Shapes

ABOVE = frozenset("Add Cast Clip Div Dropout Identity Max Mul Sub Where".split()) | LAYOUT
"""Operators between the product and the softmax: scaling, masks, bias, layout."""

BELOW = frozenset("Cast Dropout Identity Where Mul".split()) | LAYOUT
"""Operators between the softmax and the product with the values: guards against empty rows, gates, layout."""

Steps = tuple[tuple[ir.Node, int], ...]
"""Nodes on the way, each with the input that the way enters."""


@dataclass(frozen=True)
class Chain:
    """An attention: product, what is above the softmax, the softmax, what is below it, the product that is weighed.

    side: the input of `weighted` that holds the weights.
    """

    product: ir.Node
    above: Steps
    softmax: ir.Node
    below: Steps
    weighted: ir.Node
    side: int

    def values(self) -> list[ir.Value]:
        """What it computes on the way, from the product to the weights."""
        nodes = (self.product, *(n for n, _ in self.above), self.softmax, *(n for n, _ in self.below))
        return [node.outputs[0] for node in nodes]

    def nodes(self) -> list[ir.Node]:
        above, below = ([node for node, _ in steps] for steps in (self.above, self.below))
        return [self.product, *above, self.softmax, *below, self.weighted]


def chain(softmax: ir.Node, shapes: Shapes) -> Chain | None:
    """The attention around a softmax, where each step on the way is one that this module knows."""
    up, down = climb(softmax.inputs[0], shapes), next(descend(softmax.outputs[0], shapes), None)
    if up is None or down is None:
        return None
    return Chain(up[0], up[1], softmax, *down)


def between_activations(node: ir.Node) -> bool:
    """Whether it is a product of two computed sides, of floats or of codes."""
    return node.op_type in ("MatMul", "MatMulInteger") and all(
        value is not None and value.const_value is None for value in node.inputs[:2]
    )


def climb(value: ir.Value | None, shapes: Shapes) -> tuple[ir.Node, Steps] | None:
    """The product of two computed sides that a value is made of, and the steps from there.

    Where several lead to one, the last input counts, as the earlier ones are biases made of products as well.
    """
    return _climb(value, shapes, {})


def _climb(
    value: ir.Value | None, shapes: Shapes, known: dict[ir.Value, tuple[ir.Node, Steps] | None]
) -> tuple[ir.Node, Steps] | None:
    node = value.producer() if value is not None else None
    if value is None or node is None or not shapes.known(value):
        return None
    if value not in known:
        known[value] = None
        if between_activations(node):
            known[value] = (node, ())
        elif node.op_type in ABOVE:
            for index in _ways(node, value, shapes):
                found = _climb(node.inputs[index], shapes, known)
                if found is not None:
                    known[value] = (found[0], (*found[1], (node, index)))
    return known[value]


def _ways(node: ir.Node, value: ir.Value, shapes: Shapes) -> list[int]:
    """Inputs that have the size of the result: the others broadcast."""
    if node.op_type in LAYOUT:
        return [0]
    dims = shapes.of(value)
    return [
        index
        for index, step in enumerate(node.inputs)
        if step is not None and shapes.known(step) and shapes.of(step) == dims
    ]


def descend(value: ir.Value, shapes: Shapes) -> Iterator[tuple[Steps, ir.Node, int]]:
    """Products of two computed sides that take a value, or what layout and guards make of it: steps, product, side."""
    for node, index in value.uses():
        if between_activations(node):
            yield (), node, index
        elif node.op_type in BELOW and (index == 0 or node.op_type not in LAYOUT):
            out = node.outputs[0]
            same = node.op_type in LAYOUT or (
                shapes.known(out) and shapes.known(value) and shapes.of(out) == shapes.of(value)
            )
            if same and shapes.known(out):
                for steps, product, side in descend(out, shapes):
                    yield ((node, index), *steps), product, side
