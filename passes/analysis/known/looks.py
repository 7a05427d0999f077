"""Every place where queries attend to keys, in whatever form: what recognisers of known architectures start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np
import onnx_ir as ir

from tokenrt.passes.analysis.attention import POINTWISE, PRODUCTS
from tokenrt.passes.graph.shapes import Shapes

HIDDEN = -1e3
"""Scores that a mask adds less than this to are hidden."""


@dataclass(frozen=True)
class Look:
    """One attention: scores [..., Q, K] of products of queries and keys. lead: all axes in front, of pictures and heads."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    queries: int
    keys: int
    lead: int
    causal: bool


@dataclass
class Scene:
    """A graph, its attentions in order, and what each value is made of."""

    graph: ir.Graph
    shapes: Shapes
    _above: dict[ir.Value, frozenset[ir.Node]] = field(default_factory=dict)

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        made = (
            _of_node(node, self.shapes) if node.op_type == "Attention" else _of_softmax(node, self.shapes)
            for node in self.graph
            if node.op_type in ("Attention", "Softmax")
        )
        return tuple(look for look in made if look is not None)

    def above(self, value: ir.Value) -> frozenset[ir.Node]:
        """The nodes that a value is computed by."""
        if value not in self._above:
            found, todo = set[ir.Node](), [value]
            while todo:
                node = todo.pop().producer()
                if node is not None and node not in found:
                    found.add(node)
                    todo.extend(each for each in node.inputs if each is not None)
            self._above[value] = frozenset(found)
        return self._above[value]

    def own(self, value: ir.Value, beside: ir.Value) -> frozenset[ir.Node]:
        """The nodes that a value is computed by and another is not."""
        return self.above(value) - self.above(beside)

    def pooled(self, value: ir.Value, beside: ir.Value, least: int = 1) -> bool:
        """Whether a value is made of `least` coarser tokens or more: they are averaged or resized where another does not pass."""
        return any(
            _coarse(node, self.shapes) >= least for node in self.own(value, beside) if node.op_type in POOLS
        )


POOLS = frozenset({"AveragePool", "ReduceMean", "Resize"})


def _coarse(node: ir.Node, shapes: Shapes) -> int:
    """The places that a pool leaves of more; 0 where it leaves as many, as a norm does, whose mean is over channels."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or not (shapes.known(data) and shapes.known(out)):
        return 0
    before, after = shapes.of(data), shapes.of(out)
    means = node.op_type == "ReduceMean"
    if prod(after) >= prod(before) or (means and after[-1:] != before[-1:]):
        return 0
    return prod(after[1:-1] if means else after[2:])


def _of_softmax(node: ir.Node, shapes: Shapes) -> Look | None:
    scores, causal = node.inputs[0], False
    if scores is None or not shapes.known(scores) or len(shapes.of(scores)) < 3:
        return None
    dims = shapes.of(scores)
    if node.attributes["axis"].value not in (-1, len(dims) - 1) if "axis" in node.attributes else False:
        return None
    product = scores.producer()
    while product is not None and product.op_type in POINTWISE:
        causal = causal or any(_triangle(value, dims) for value in product.inputs)
        ways = [value for value in product.inputs if value is not None and value.producer() is not None]
        ways = [value for value in ways if shapes.known(value) and shapes.of(value) == dims]
        product = ways[0].producer() if ways else None
    if product is None or product.op_type not in PRODUCTS:
        return None
    query, key = product.inputs[:2]
    if query is None or key is None or query.const_value is not None or key.const_value is not None:
        return None
    return Look(node, query, key, dims[-2], dims[-1], prod(dims[:-2]), causal)


def _of_node(node: ir.Node, shapes: Shapes) -> Look | None:
    query, key = node.inputs[:2]
    if query is None or key is None or not (shapes.known(query) and shapes.known(key)):
        return None
    dims, others = shapes.of(query), shapes.of(key)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    causal = _triangle(mask, (*dims[:-1], others[-2]))
    causal = causal or ("is_causal" in node.attributes and bool(node.attributes["is_causal"].value))
    return Look(node, query, key, dims[-2], others[-2], prod(dims[:-2]), causal)


def _triangle(value: ir.Value | None, dims: tuple[int, ...]) -> bool:
    """Whether a constant hides every later key from each query and no earlier one."""
    if value is None or value.const_value is None or tuple(value.const_value.shape)[-2:] != dims[-2:]:
        return False
    table = value.const_value.numpy()
    table = table.reshape(-1, *table.shape[-2:])[0]
    shown = table if table.dtype == np.bool_ else table > HIDDEN
    later = np.triu(np.ones(table.shape, np.bool_), 1)
    return len(table) > 1 and bool(np.array_equal(shown, ~later) or np.array_equal(shown, later))
