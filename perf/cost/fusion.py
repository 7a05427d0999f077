"""How many launches a runtime that fuses needs for part of a graph, counted on the graph: a model of TensorRT's fusion.

A product, a reduction over an axis, a softmax, a sort or a scatter ends a launch: what follows waits for all of it. What works
element by element, gathers or moves data goes with the launch before or after it. So launches are counted as the levels of such
operators, those on one level started together, and a Loop launches anew at every turn, which a count of an engine's layers does
not see. For methods without loops `tests/perf/cost/test_fusion.py` holds the model to the layers that TensorRT-RTX's builder
counts, docs/results/engine_layers.json: ToMe 8 a site, top-k 4 or 5, as lowered for GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from tokenrt.passes.analysis.attention import cores
from tokenrt.passes.graph.shapes import BATCH, Dims, Shapes
from tokenrt.perf.cost import loops
from tokenrt.perf.cost.chip import Chip, constant

ENDS = frozenset(
    {
        "ArgMax", "ArgMin", "Attention", "Conv", "ConvTranspose", "CumSum", "Einsum", "Gemm", "GlobalAveragePool",
        "GlobalMaxPool", "GroupNormalization", "LayerNormalization", "LpNormalization", "LpPool", "MatMul", "MatMulInteger",
        "MultiHeadAttention", "RMSNormalization", "ScatterElements", "ScatterND", "Softmax", "TopK",
    }
)  # fmt: skip
"""Operators that end a launch, beside those whose name begins with Reduce."""


def ends(node: ir.Node) -> bool:
    """Whether what follows a node waits for all of it."""
    return node.op_type in ENDS or node.op_type.startswith("Reduce")


def computed(graph: ir.Graph, told: Iterable[ir.Value] = ()) -> set[ir.Value]:
    """The values that depend on what the model is given, or on what is told, not only on its shape."""
    found = {*graph.inputs, *told}
    for node in graph:
        if node.op_type not in ("Shape", "Size") and any(value in found for value in node.inputs):
            found.update(node.outputs)
    return found


@dataclass(frozen=True)
class Level:
    """Launches that wait for the same ones before, and start together. Units: float32 operations, bytes."""

    operations: float = 0
    bytes: float = 0

    def seconds(self, chip: Chip) -> float:
        return chip.launch + max(self.operations / chip.vector, self.bytes / chip.bandwidth)


def levels(
    nodes: Iterable[ir.Node], told: Collection[ir.Value], single: Callable[[ir.Node], bool] = ends
) -> int:
    """Levels of the nodes that end a launch, among these, which come in order; told: what is computed in the graph."""
    return len({level for level, _ in _reached(nodes, told, single)})


def launched(
    nodes: Iterable[ir.Node], told: Collection[ir.Value], dims: Mapping[str, Dims], batch: int
) -> list[Level]:
    """The levels with what is computed on each.

    dims: shapes by name, with BATCH for the images; what has none counts for nothing.
    """
    found = dict[int, Level]()
    for level, node in _reached(nodes, told, ends):
        before, (operations, moved) = found.get(level, Level()), _work(node, dims, batch)
        found[level] = Level(before.operations + operations, before.bytes + moved)
    return [found[level] for level in sorted(found)]


def _reached(
    nodes: Iterable[ir.Node], told: Collection[ir.Value], single: Callable[[ir.Node], bool]
) -> Iterator[tuple[int, ir.Node]]:
    """The nodes that end a launch, each with its level."""
    reached: dict[ir.Value, int] = {}
    for node in nodes:
        if not any(value in told for value in node.outputs):
            continue
        level = max((reached.get(value, 0) for value in node.inputs if value is not None), default=0)
        for _ in range(_launches(node, told, single)):
            level += 1
            yield level, node
        reached.update(dict.fromkeys(node.outputs, level))


def _launches(node: ir.Node, told: Iterable[ir.Value], single: Callable[[ir.Node], bool]) -> int:
    """Launches of a node one after the other: a Loop's are those of all turns, of which each is one at the least."""
    inner = loops.body(node)
    if inner is None:
        return int(single(node))
    turns = loops.turns(node)
    return (1 if turns is None else turns) * max(levels(inner, computed(inner, told), single), 1)


def whole(graph: ir.Graph, shapes: Shapes) -> int:
    """Launches of a model as the builder of TensorRT-RTX fuses it, by a rule that its count of layers bears out.

    Each product, normalisation and other reduction is one. An attention is two, whatever it is written as: itself, and the layout
    of what it takes. Those around them are a constant. `tests/perf` compares the rule with engines.
    """
    told = computed(graph)
    nodes = [node for node in graph if any(value in told for value in node.outputs)]
    # Two products and a softmax, or one node of its own.
    attention = sum(1 if core.fused else -1 for core in cores(graph, shapes))
    return sum(_launches(node, told, ends) for node in nodes) + attention + int(constant("layers_around"))


FUSED = 4
"""Operations for each element that a reduction reads, with the comparisons and products that are fused in front of it."""

SINGLE = 4
"""Bytes of an element: scores and sums are float32."""


def _work(node: ir.Node, dims: Mapping[str, Dims], batch: int) -> tuple[float, float]:
    """Operations of a node, and bytes that it writes or that a product reads."""
    # Of a Loop, what it carries from turn to turn; shapes inside are not known.
    read = [_elements(value, dims, batch) for value in node.inputs if value is not None]
    written = sum(_elements(value, dims, batch) for value in node.outputs)
    if node.op_type != "MatMul":
        return FUSED * max(read, default=0), SINGLE * written
    shape = dims.get(str(node.inputs[0].name), ()) if node.inputs[0] is not None else ()
    return 2 * written * (shape[-1] if shape else 0), SINGLE * (written + sum(read))


def _elements(value: ir.Value, dims: Mapping[str, Dims], batch: int) -> float:
    return float(prod(images(dims[str(value.name)], batch))) if str(value.name) in dims else 0.0


def images(shape: Dims, batch: int) -> list[int]:
    """The shape for so many images."""
    return [size // BATCH * batch if size and size % BATCH == 0 else size for size in shape]
