"""Multiply-accumulates of one image: matrix products, convolutions and attention, as the papers count them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import onnx_ir as ir

from tokenrt.passes.analysis.marks import Mark
from tokenrt.passes.graph.shapes import BATCH, Shapes

Term = tuple[int, tuple[Mark, ...]]


@dataclass(frozen=True)
class Cost:
    """A sum of products: a constant times the lengths of token axes, so that any counts can be tried at once."""

    terms: tuple[Term, ...]

    def macs(self, counts: Sequence[int]) -> int:
        return sum(constant * prod(mark.size(counts) for mark in marks) for constant, marks in self.terms)


def cost(
    nodes: Iterable[ir.Node], shapes: Shapes, marks: Mapping[ir.Node, tuple[tuple[Mark, ...], ...]]
) -> Cost:
    """The cost of nodes that see their inputs with these marks (missing: none)."""
    terms: list[Term] = []
    for node in nodes:
        if node.op_type in COUNTED and all(
            value is None or shapes.known(value) for value in (*node.inputs, *node.outputs)
        ):
            terms.extend(COUNTED[node.op_type](node, shapes, marks.get(node, ((),) * len(node.inputs))))
    return Cost(tuple(terms))


def _term(sizes: Sequence[int], marks: Mapping[int, Mark]) -> Term:
    """The product of sizes, with the axes in `marks` left open."""
    constant, used = 1, []
    for axis, size in enumerate(sizes):
        mark = marks.get(axis)
        if mark is not None:
            used.append(_per_image(mark))
        constant *= 1 if mark is not None else size // BATCH if size % BATCH == 0 else size
    return constant, tuple(used)


def _per_image(mark: Mark) -> Mark:
    outer = mark.outer // BATCH if mark.outer % BATCH == 0 else mark.outer
    inner = mark.inner // BATCH if mark.inner % BATCH == 0 else mark.inner
    return replace(mark, outer=outer, inner=inner)


def _matmul(node: ir.Node, shapes: Shapes, marks: tuple[tuple[Mark, ...], ...]) -> list[Term]:
    left, right = node.inputs[:2]
    assert left is not None
    assert right is not None
    a, b = shapes.of(left), shapes.of(right)
    out = shapes.of(node.outputs[0])
    open_axes = {mark.axis + len(out) - len(a): mark for mark in marks[0] if mark.axis != len(a) - 1}
    open_axes |= {mark.axis + len(out) - len(b): mark for mark in marks[1] if mark.axis != len(b) - 2}
    inner = next((mark for mark in marks[0] if mark.axis == len(a) - 1), None)
    return [_term((*out, a[-1]), open_axes | ({len(out): inner} if inner else {}))]


def _gemm(node: ir.Node, shapes: Shapes, marks: tuple[tuple[Mark, ...], ...]) -> list[Term]:
    left = node.inputs[0]
    assert left is not None
    transposed = "transA" in node.attributes and node.attributes["transA"].value
    depth = shapes.of(left)[0 if transposed else 1]
    return [_term((*shapes.of(node.outputs[0]), depth), dict(enumerate(marks[0][:1])))]


def _convolution(node: ir.Node, shapes: Shapes, marks: tuple[tuple[Mark, ...], ...]) -> list[Term]:
    data, weight = node.inputs[:2]
    assert data is not None
    assert weight is not None
    kernel = shapes.of(weight)
    base = shapes.of(data) if node.op_type == "ConvTranspose" else shapes.of(node.outputs[0])
    pointwise = set(kernel[2:]) == {1}
    return [_term((*base, *kernel[1:]), {mark.axis: mark for mark in marks[0]} if pointwise else {})]


def _attention(node: ir.Node, shapes: Shapes, marks: tuple[tuple[Mark, ...], ...]) -> list[Term]:
    query, key, value = node.inputs[:3]
    assert query is not None
    assert key is not None
    assert value is not None
    terms = []
    for other in (key, value):
        dims = shapes.of(query) if other is key else (*shapes.of(query)[:-1], shapes.of(other)[-1])
        q = next((mark for mark in marks[0] if mark.axis == len(dims) - 2), None)
        k = next((mark for mark in marks[1] if mark.axis == len(shapes.of(key)) - 2), None)
        sizes = (*dims, shapes.of(key)[-2])
        terms.append(_term(sizes, ({len(dims) - 2: q} if q else {}) | ({len(dims): k} if k else {})))
    return terms


COUNTED = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _convolution,
    "Attention": _attention,
}
